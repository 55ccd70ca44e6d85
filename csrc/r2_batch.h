// A whole batch in one call: r2_crop, gt_down, masked_gradient and the cells' statistics of every
// sample, a row of depth read once and used for all while it is near.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "cells.h"
#include "gt_down.h"
#include "masked_gradient.h"
#include "pool.h"
#include "r2_crop.h"
#include "stream.h"

namespace litedepth {

using GtDown = void (*)(const In<float, 2>&, const Out<float, 2>&);

// One sample's maps of depth: metres on the canvas (Hc, Wc), the others on the prediction's (h, w).
struct DepthMaps {
    Out<float, 2> metres, low, grad_x, grad_y;
    Out<bool, 2> M_x, M_y;
    Out<float, 2> n, mean, M2;
};

inline In<float, 2> readable(const Out<float, 2>& out) {
    auto stride = out.stride;
    stride[1] = sizeof(float);  // any, where there is one column
    return {out.data, out.shape, stride};
}

// Depths of a map without any depth: every number 0, every mask false.
inline void no_depth(const DepthMaps& maps) {
    for (const Out<float, 2>* out : {&maps.metres, &maps.low, &maps.grad_x, &maps.grad_y, &maps.n,
                                     &maps.mean, &maps.M2})
        for (std::ptrdiff_t i = 0; i < out->shape[0]; ++i)
            std::fill_n(out->row(i), out->shape[1], 0.0f);
    for (const Out<bool, 2>* out : {&maps.M_x, &maps.M_y})
        for (std::ptrdiff_t i = 0; i < out->shape[0]; ++i)
            std::fill_n(out->row(i), out->shape[1], false);
}

// metres of the crop's h x w pixels, and of each cell n, mean and M2 of logs[raw] over the pixels
// whose raw is not 0. gt_down and masked_gradient of metres.
inline void depth_maps(const In<std::uint16_t, 2>& depth, const In<double, 2>& affine, int h, int w,
                       float depth_scale, const float* logs, GtDown gt_down, bool streamed,
                       const DepthMaps& maps) {
    const std::int64_t Hc = maps.metres.shape[0], Wc = maps.metres.shape[1];
    const std::int64_t hl = maps.low.shape[0], wl = maps.low.shape[1];
    // A cell's mean is that of gt_down, bit for bit, although the pixels are added in another
    // order: metres are k / depth_scale for k < 2^16, 24 bits each over 17 binary orders of
    // magnitude at the most, so that a double holds the sum of 2^12 of them without rounding.
    const std::int64_t pixels = (Hc / hl + 1) * (Wc / wl + 1);
    const bool exact = pixels <= 4096 && 1.0f / depth_scale >= FLT_MIN &&
                       65535.0f / depth_scale <= FLT_MAX;
    const bool by_cell = gt_down == gt_down_cell && exact;

    DepthRows rows(depth, affine, h, w);
    std::vector<std::uint16_t> buffers(kRows * rows.buffer_size());
    std::vector<float> found(kRows * kColumns), near(kRows * kColumns), zeros(Wc, 0.0f);
    const auto clear = [&](std::int64_t v, std::int64_t from) {
        float* out = maps.metres.row(v) + from;
        const int n = static_cast<int>(Wc - from);
        if (streamed)
            stream(zeros.data(), out, n);
        else
            std::fill_n(out, n, 0.0f);
    };
    ColumnSums sums(w);
    std::vector<int> first(wl + 1);  // column of each cell, within the crop
    for (std::int64_t j = 0; j <= wl; ++j)
        first[j] = static_cast<int>(std::min<std::int64_t>(cell_start(j, Wc, wl), w));
    for (std::int64_t i = 0; i < hl; ++i) {
        const std::int64_t top = cell_start(i, Hc, hl), end = cell_start(i + 1, Hc, hl);
        const std::int64_t bottom = std::min<std::int64_t>(end, h);
        sums.clear();
        for (std::int64_t v = top; v < bottom;) {
            const int R = bottom - v >= kRows ? kRows : 1;
            const std::uint16_t* raw[kRows];
            for (int r = 0; r < R; ++r)
                raw[r] = rows.row(static_cast<int>(v) + r, &buffers[r * rows.buffer_size()]);
            for (int u = 0; u < w; u += kColumns) {
                const int n = std::min(kColumns, w - u);
                const float* metres[kRows];
                for (int r = 0; r < R; ++r) {
                    float* out = maps.metres.row(v + r) + u;
                    float* first = streamed ? &near[r * kColumns] : out;
                    metres[r] = first;
                    to_metres(raw[r] + u, depth_scale, first, n);
                    if (streamed) stream(first, out, n);
                    rows.prefetch_row(static_cast<int>(v) + r + kRows, u, n);
                    look_up(raw[r] + u, logs, &found[r * kColumns], n);
                }
                (R == kRows ? add_many_rows : add_one_row)(metres, found.data(), n, &sums.S1[u],
                                                           &sums.S2[u], &sums.metres[u],
                                                           &sums.n[u]);
            }
            for (int r = 0; r < R; ++r) clear(v + r, w);
            v += R;
        }
        for (std::int64_t v = std::max<std::int64_t>(top, h); v < end; ++v) clear(v, 0);

        float *n = maps.n.row(i), *mean = maps.mean.row(i), *M2 = maps.M2.row(i);
        float* low = maps.low.row(i);
        for (std::int64_t j = 0; j < wl; ++j) {
            double S1 = 0.0, S2 = 0.0, metres = 0.0;
            std::int64_t count = 0;
            for (int u = first[j]; u < first[j + 1]; ++u) {
                S1 += sums.S1[u];
                S2 += sums.S2[u];
                metres += sums.metres[u];
                count += sums.n[u];
            }
            const double N = static_cast<double>(count);
            n[j] = static_cast<float>(count);
            mean[j] = count ? static_cast<float>(S1 / N) : 0.0f;
            M2[j] = count ? static_cast<float>(std::max(S2 - S1 * S1 / N, 0.0)) : 0.0f;
            if (by_cell) low[j] = count ? static_cast<float>(metres / N) : 0.0f;
        }
    }
    if (streamed) stream_end();
    if (!by_cell) gt_down(readable(maps.metres), maps.low);
    masked_gradient(readable(maps.low), maps.grad_x, maps.grad_y, maps.M_x, maps.M_y);
}

// The arguments of a batch of B samples; the image or all depths may be absent.
struct Batch {
    std::vector<In<std::uint8_t, 3>> rgb;     // empty: no image
    std::vector<In<std::uint16_t, 2>> depth;  // data is null: no depth for this sample
    In<double, 3> affine;
    std::vector<std::array<int, 2>> crop;
    In<float, 3> lut;
    In<float, 1> pad;
    float depth_scale;
    const float* logs;  // 2^16 of them
    GtDown gt_down;
    Out<float, 4> image, metres, low, grad_x, grad_y;
    Out<bool, 4> M_x, M_y;
    Out<float, 4> n, mean, M2;
};

template <class T, std::size_t N>
In<T, N - 1> at(const In<T, N>& all, std::int64_t b) {
    In<T, N - 1> one{all.data + b * all.stride[0], {}, {}};
    std::copy(all.shape.begin() + 1, all.shape.end(), one.shape.begin());
    std::copy(all.stride.begin() + 1, all.stride.end(), one.stride.begin());
    return one;
}

// Sample b's map of an output (B, 1, h, w), or its planes of one (B, 3, h, w).
template <std::size_t N, class T>
Out<T, N> part(const Out<T, 4>& all, std::int64_t b) {
    Out<T, N> one{all.data + b * all.stride[0], {}, {}};
    std::copy(all.shape.end() - N, all.shape.end(), one.shape.begin());
    std::copy(all.stride.end() - N, all.stride.end(), one.stride.begin());
    return one;
}

inline void r2_batch(const Batch& batch, int threads) {
    const auto& size = batch.metres.shape;
    const bool streamed = size[0] * size[2] * size[3] * std::int64_t{sizeof(float)} >= kStreamFrom;
    parallel_for(threads, static_cast<std::int64_t>(batch.crop.size()), [&](std::int64_t b) {
        const auto affine = at(batch.affine, b);
        const auto [h, w] = batch.crop[b];
        const DepthMaps maps{part<2>(batch.metres, b), part<2>(batch.low, b),
                             part<2>(batch.grad_x, b), part<2>(batch.grad_y, b),
                             part<2>(batch.M_x, b),    part<2>(batch.M_y, b),
                             part<2>(batch.n, b),      part<2>(batch.mean, b),
                             part<2>(batch.M2, b)};
        if (batch.depth[b].data)
            depth_maps(batch.depth[b], affine, h, w, batch.depth_scale, batch.logs,
                       batch.gt_down, streamed, maps);
        else
            no_depth(maps);
        if (!batch.rgb.empty())
            crop_image(batch.rgb[b], affine, h, w, static_cast<int>(batch.metres.shape[2]),
                       static_cast<int>(batch.metres.shape[3]), at(batch.lut, b), batch.pad,
                       part<3>(batch.image, b));
    });
}

}  // namespace litedepth
