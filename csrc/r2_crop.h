// Sec. 3.2, R^2 crop: one affine map takes a decoded sample to the network's image (bilinear,
// coloured) and to the canvas of depths in metres (nearest, holes stay holes).
#pragma once

#include <algorithm>
#include <vector>

#include "arrays.h"

namespace litedepth {

// Positions are compared with the source as doubles, before any cast: casting NaN or 1e300 to an
// integer is undefined.

// The source pixel nearest to (a * t + b) + c for canvas positions t = 0..n-1, or -1 if that is not
// in 0..side-1.
inline void nearest_index(std::int32_t* index, int n, double a, double b, double c, int side) {
    for (int t = 0; t < n; ++t) {
        const double at = ((a * t + b) + c) + 0.5;
        const double low = at >= 0.0 ? at : -1.0;
        const double inside = low < side ? low : -1.0;
        index[t] = static_cast<std::int32_t>(inside);  // from 0 up, the cast is floor
    }
}

// floor and fraction of (a * t + b) + c for canvas positions t. A position without any tap in the
// source becomes -2: its taps -2 and -1 both count as black.
inline void bilinear_index(std::int32_t* index, double* fraction, const std::vector<double>& t,
                           double a, double b, double c, int side) {
    for (std::size_t k = 0; k < t.size(); ++k) {
        const double at = (a * t[k] + b) + c;
        const double low = at >= -1.0 ? at : -2.0;
        const double inside = low < side ? low : -2.0;
        const std::int32_t cut = static_cast<std::int32_t>(inside);
        index[k] = cut - (inside < cut);  // the cast made -0.5 a 0, but its floor is -1
        fraction[k] = inside - index[k];
    }
}

// metres[v, u] of the crop's h x w pixels; the canvas beyond the crop is hole.
inline void crop_depth(const In<std::uint16_t, 2>& depth, const In<double, 2>& affine, int h, int w,
                       float depth_scale, const Out<float, 2>& metres) {
    const int H = static_cast<int>(depth.shape[0]), W = static_cast<int>(depth.shape[1]);
    const int Hc = static_cast<int>(metres.shape[0]), Wc = static_cast<int>(metres.shape[1]);
    std::vector<std::int32_t> x(w), y(w);
    std::vector<std::uint16_t> raw(w);
    for (int v = 0; v < h; ++v) {
        // Without rotation the columns are the same in every row, and a row has one y only.
        if (v == 0 || affine(0, 1) != 0.0)
            nearest_index(x.data(), w, affine(0, 0), affine(0, 1) * v, affine(0, 2), W);
        const int ys = affine(1, 0) != 0.0 ? w : 1;
        nearest_index(y.data(), ys, affine(1, 0), affine(1, 1) * v, affine(1, 2), H);
        std::fill(y.begin() + ys, y.end(), y[0]);

        for (int u = 0; u < w; ++u)
            raw[u] = (x[u] | y[u]) >= 0 ? depth(y[u], x[u]) : std::uint16_t{0};  // -1: outside
        float* out = metres.row(v);
        for (int u = 0; u < w; ++u) out[u] = static_cast<float>(raw[u]) / depth_scale;
        std::fill(out + w, out + Wc, 0.0f);
    }
    for (int v = h; v < Hc; ++v) std::fill_n(metres.row(v), Wc, 0.0f);
}

// The four pixels around each of n positions, as twelve rows: by channel, then p00, p01, p10, p11.
inline void fetch_taps(const In<std::uint8_t, 3>& rgb, const std::int32_t* y0,
                       const std::int32_t* x0, std::ptrdiff_t n, std::uint8_t* taps) {
    const std::ptrdiff_t H = rgb.shape[0], W = rgb.shape[1];
    for (std::ptrdiff_t j = 0; j < n; ++j) {
        const std::ptrdiff_t y = y0[j], x = x0[j];
        std::uint8_t* tap = taps + j;
        if (y >= 0 && y + 1 < H && x >= 0 && x + 1 < W) {
            for (int c = 0; c < 3; ++c, tap += 4 * n) {
                tap[0] = rgb(y, x, c);
                tap[n] = rgb(y, x + 1, c);
                tap[2 * n] = rgb(y + 1, x, c);
                tap[3 * n] = rgb(y + 1, x + 1, c);
            }
        } else {  // at the border: pixels outside the source are black
            for (int k = 0; k < 12; ++k, tap += n) {
                const std::ptrdiff_t yk = y + ((k >> 1) & 1), xk = x + (k & 1);
                const bool inside = yk >= 0 && yk < H && xk >= 0 && xk < W;
                *tap = inside ? rgb(yk, xk, k >> 2) : std::uint8_t{0};
            }
        }
    }
}

// image[:, i, j] of the crop's share of the network's hn x wn pixels; the rest is pad.
inline void crop_image(const In<std::uint8_t, 3>& rgb, const In<double, 2>& affine, int h, int w,
                       int Hc, int Wc, const In<float, 2>& lut, const In<float, 1>& pad,
                       const Out<float, 3>& image) {
    const int H = static_cast<int>(rgb.shape[0]), W = static_cast<int>(rgb.shape[1]);
    const int hn = static_cast<int>(image.shape[1]), wn = static_cast<int>(image.shape[2]);
    const int rows = static_cast<int>(std::int64_t{h} * hn / Hc);
    const int cols = static_cast<int>(std::int64_t{w} * wn / Wc);
    const double step_v = static_cast<double>(Hc) / hn, step_u = static_cast<double>(Wc) / wn;
    std::array<float, 3 * 256> table;
    for (int c = 0; c < 3; ++c)
        for (int k = 0; k < 256; ++k) table[256 * c + k] = lut(c, k);

    // One network row at a time: fetch its taps, then interpolate over contiguous memory.
    std::vector<double> canvas_u(cols), fx(cols), fy(cols);
    std::vector<std::int32_t> x0(cols), y0(cols), q(cols);
    std::vector<std::uint8_t> taps(std::size_t{12} * cols);
    for (int j = 0; j < cols; ++j) canvas_u[j] = (j + 0.5) * step_u - 0.5;

    for (int i = 0; i < rows; ++i) {
        const double v = (i + 0.5) * step_v - 0.5;
        const double xv = affine(0, 1) * v, yv = affine(1, 1) * v;
        bilinear_index(x0.data(), fx.data(), canvas_u, affine(0, 0), xv, affine(0, 2), W);
        bilinear_index(y0.data(), fy.data(), canvas_u, affine(1, 0), yv, affine(1, 2), H);
        fetch_taps(rgb, y0.data(), x0.data(), cols, taps.data());
        for (int c = 0; c < 3; ++c) {
            const std::uint8_t* p00 = taps.data() + std::size_t{4} * c * cols;
            const std::uint8_t *p01 = p00 + cols, *p10 = p01 + cols, *p11 = p10 + cols;
            for (int j = 0; j < cols; ++j) {
                const double top = p00[j] * (1 - fx[j]) + p01[j] * fx[j];
                const double bot = p10[j] * (1 - fx[j]) + p11[j] * fx[j];
                const double val = top * (1 - fy[j]) + bot * fy[j];
                q[j] = static_cast<std::int32_t>(val + 0.5);  // from 0 up, the cast is floor
            }
            float* out = image.row(c, i);
            for (int j = 0; j < cols; ++j) out[j] = table[256 * c + q[j]];
            std::fill(out + cols, out + wn, pad(c));
        }
    }
    for (int c = 0; c < 3; ++c)
        for (int i = rows; i < hn; ++i) std::fill_n(image.row(c, i), wn, pad(c));
}

}  // namespace litedepth
