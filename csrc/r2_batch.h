// A whole batch in one call: crop, ground truth at the prediction's resolution, masked gradient and
// the statistics of Eq. 7, a row of depth read once and used for all while it is near.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "gt_down.h"
#include "masked_gradient.h"
#include "pool.h"
#include "r2_crop.h"
#include "simd.h"

namespace litedepth {

enum class GtDown { cell, nearest, bilinear };

// The arguments, of B samples; the image or any depth may be absent. image (B, 3, hn, wn), depth
// (B, 1, Hc, Wc) in metres, the other outputs (B, 1, h, w).
struct Batch {
    std::vector<In<std::uint8_t, 3>> rgb;   // empty: no image
    std::vector<In<std::uint16_t, 2>> raw;  // sensor units; data is null: no depth for this sample
    In<double, 3> affine;
    std::vector<std::array<int, 2>> crop;
    In<float, 3> lut;
    float depth_scale;
    const float* logs;  // of 2^16 raw depths, Eq. 7's ln(d + eps)
    GtDown mode;
    Out<float, 4> image, depth, depth_low, grad_x, grad_y;
    Out<bool, 4> M_x, M_y;
    Out<float, 4> cell_n, cell_mean, cell_M2;
};

LITEDEPTH_INLINE void to_metres_body(const std::uint16_t* raw, float depth_scale, int n,
                                     float* metres) {
    for (int u = 0; u < n; ++u) metres[u] = static_cast<float>(raw[u]) / depth_scale;
}
LITEDEPTH_VERSIONS(to_metres,
                   (const std::uint16_t* raw, float depth_scale, int n, float* metres),
                   (raw, depth_scale, n, metres))

// Sums over the pixels that are depths, by canvas column, of one row of cells: of x = ln(d + eps)
// and its square, of metres, and how many. In this order, columns first, many are added at once and
// yet every instruction set, however wide, adds the same numbers in the same order.
struct ColumnSums {
    std::vector<double> x, xx, metres;
    std::vector<std::int32_t> n;

    explicit ColumnSums(std::size_t w) : x(w), xx(w), metres(w), n(w) {}
    void clear() {
        for (auto* sum : {&x, &xx, &metres}) std::fill(sum->begin(), sum->end(), 0.0);
        std::fill(n.begin(), n.end(), 0);
    }
};

constexpr int kRows = 5;  // added at a time: the sums are loaded and stored once for all

// Adds kRows rows of n metres and their logarithms, row by row, a hole (metres 0) as nothing.
LITEDEPTH_INLINE void add_rows_body(const float* const* metres, const float* __restrict logs, int n,
                                    ColumnSums& sums) {
    double* __restrict sum_x = sums.x.data();
    double* __restrict sum_xx = sums.xx.data();
    double* __restrict sum_metres = sums.metres.data();
    std::int32_t* __restrict count = sums.n.data();
    const float* __restrict rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = metres[r];
    for (int u = 0; u < n; ++u) {
        double s = sum_x[u], ss = sum_xx[u], m = sum_metres[u];
        std::int32_t c = count[u];
        for (int r = 0; r < kRows; ++r) {
            const float d = rows[r][u];
            const bool there = d > 0.0f;
            const double x = only_if(there, logs[r * n + u]);
            s += x;
            ss += x * x;
            m += d;
            c += there;
        }
        sum_x[u] = s;
        sum_xx[u] = ss;
        sum_metres[u] = m;
        count[u] = c;
    }
}
LITEDEPTH_VERSIONS(add_rows,
                   (const float* const* metres, const float* logs, int n, ColumnSums& sums),
                   (metres, logs, n, sums))

// Sample b's depth in metres, and its mean, n, mean and M2 of x by cell.
inline void depth_and_cells(const Batch& batch, std::ptrdiff_t b) {
    const Out<float, 2> depth = batch.depth[b][0];
    const std::int64_t Hc = depth.shape[0], Wc = depth.shape[1];
    const std::int64_t hl = batch.depth_low.shape[2], wl = batch.depth_low.shape[3];
    const auto [h, w] = batch.crop[b];
    const In<double, 2> affine = batch.affine[b];
    DepthRows rows(batch.raw[b], affine, w);
    ColumnSums sums(w);
    std::vector<std::uint16_t> spare(w);
    std::vector<float> logs(kRows * w);
    const std::vector<float> holes(w, 0.0f);
    for (std::int64_t i = 0; i < hl; ++i) {
        sums.clear();
        const std::int64_t end = std::min<std::int64_t>(cell_start(i + 1, Hc, hl), h);
        for (std::int64_t v = cell_start(i, Hc, hl); v < end; v += kRows) {
            const float* metres[kRows];
            for (int r = 0; r < kRows; ++r) {
                metres[r] = holes.data();
                if (v + r >= end) continue;
                const std::uint16_t* raw = rows.row(static_cast<int>(v) + r, spare.data());
                look_up(raw, batch.logs, logs.data() + r * w, w);
                to_metres(raw, batch.depth_scale, w, depth.row(v + r));
                std::fill(depth.row(v + r) + w, depth.row(v + r + 1), 0.0f);  // beyond the crop
                metres[r] = depth.row(v + r);
            }
            add_rows(metres, logs.data(), w, sums);
        }
        for (std::int64_t j = 0; j < wl; ++j) {
            double x = 0.0, xx = 0.0, metres = 0.0;
            std::int64_t n = 0;
            const auto stop = std::min<std::int64_t>(cell_start(j + 1, Wc, wl), w);
            for (std::int64_t u = cell_start(j, Wc, wl); u < stop; ++u) {
                x += sums.x[u];
                xx += sums.xx[u];
                metres += sums.metres[u];
                n += sums.n[u];
            }
            const double N = static_cast<double>(std::max<std::int64_t>(n, 1));
            batch.cell_n.row(b, 0, i)[j] = static_cast<float>(n);
            batch.cell_mean.row(b, 0, i)[j] = static_cast<float>(x / N);
            batch.cell_M2.row(b, 0, i)[j] = static_cast<float>(std::max(xx - x * x / N, 0.0));
            batch.depth_low.row(b, 0, i)[j] = static_cast<float>(metres / N);
        }
    }
    std::fill(depth.row(h), depth.row(Hc), 0.0f);
}

// Every number 0, every mask false, of a sample without depth.
template <class T>
void clear(const Out<T, 4>& maps, std::ptrdiff_t b) {
    std::fill(maps.row(b, 0, 0), maps.row(b + 1, 0, 0), T{});
}

inline void r2_batch(const Batch& batch, int threads) {
    const std::array<std::int64_t, 2> canvas{batch.depth.shape[2], batch.depth.shape[3]};
    parallel_for(threads, static_cast<std::int64_t>(batch.crop.size()), [&](std::int64_t b) {
        if (batch.raw[b].data) {
            const Out<float, 2> depth = batch.depth[b][0], low = batch.depth_low[b][0];
            depth_and_cells(batch, b);
            if (batch.mode == GtDown::nearest) gt_down_nearest(depth, low);
            if (batch.mode == GtDown::bilinear) gt_down_bilinear(depth, low);
            masked_gradient(low, batch.grad_x[b][0], batch.grad_y[b][0], batch.M_x[b][0],
                            batch.M_y[b][0]);
        } else {
            for (const auto* maps : {&batch.depth, &batch.depth_low, &batch.grad_x, &batch.grad_y,
                                     &batch.cell_n, &batch.cell_mean, &batch.cell_M2})
                clear(*maps, b);
            clear(batch.M_x, b);
            clear(batch.M_y, b);
        }
        if (!batch.rgb.empty())
            crop_image(batch.rgb[b], batch.affine[b], batch.crop[b], canvas, batch.lut[b],
                       batch.image[b]);
    });
}

}  // namespace litedepth
