// Eq. 10 in cell form: a cell is the preimage of one output pixel under the nearest upsample, so all
// of it shares one prediction, and the upsampled map need not exist.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "arrays.h"
#include "cells.h"
#include "pool.h"
#include "simd.h"

namespace litedepth {

// What a row adds to each of its columns, for z = (e / c)^2 with e = d_hat - d in metres:
// rho += rho(e), slope += rho'(e) * c^2, count += 1. A hole adds 0, whatever is predicted there.
struct Columns {
    float *rho, *slope, *count;
};

// alpha = 1, the paper's: rho = s - 1 and rho' c^2 = e / s with s = sqrt(z + 1). s - 1 is z / (s + 1),
// which does not cancel, and both divisions are made of one.
LITEDEPTH_INLINE void charbonnier_row_body(const float* d_hat, const float* d, std::int64_t n,
                                           float inv_c, Columns to) {
    float* __restrict rho = to.rho;
    float* __restrict slope = to.slope;
    float* __restrict count = to.count;
    for (std::int64_t u = 0; u < n; ++u) {
        const bool valid = is_depth(d[u]);
        const float e = only_if(valid, d_hat[u] - d[u]), x = e * inv_c, z = x * x;
        const float s = std::sqrt(z + 1.0f), r = 1.0f / (s * (s + 1.0f));
        rho[u] += z * r * s;
        slope[u] += e * ((s + 1.0f) * r);
        count[u] += only_if(valid, 1.0f);
    }
}
LITEDEPTH_VERSIONS(charbonnier_row,
                   (const float* d_hat, const float* d, std::int64_t n, float inv_c, Columns to),
                   (d_hat, d, n, inv_c, to))

// alpha = 2: rho = z / 2 and rho' c^2 = e.
LITEDEPTH_INLINE void square_row_body(const float* d_hat, const float* d, std::int64_t n,
                                      float inv_c, Columns to) {
    float* __restrict rho = to.rho;
    float* __restrict slope = to.slope;
    float* __restrict count = to.count;
    for (std::int64_t u = 0; u < n; ++u) {
        const bool valid = is_depth(d[u]);
        const float e = only_if(valid, d_hat[u] - d[u]), x = e * inv_c;
        rho[u] += 0.5f * (x * x);
        slope[u] += e;
        count[u] += only_if(valid, 1.0f);
    }
}
LITEDEPTH_VERSIONS(square_row,
                   (const float* d_hat, const float* d, std::int64_t n, float inv_c, Columns to),
                   (d_hat, d, n, inv_c, to))

// k > 0 ? a : b, for k below 2^63; without a branch again.
LITEDEPTH_INLINE double pick(double a, double b, std::uint64_t k) {
    std::uint64_t a_bits, b_bits;
    std::memcpy(&a_bits, &a, sizeof a);
    std::memcpy(&b_bits, &b, sizeof b);
    const std::uint64_t none = 0 - ((k - 1) >> 63);
    b_bits = (b_bits & none) | (a_bits & ~none);
    std::memcpy(&b, &b_bits, sizeof b);
    return b;
}

// ln(1 + y) for y >= 0, to 1e-8 of itself: libm has no vector form that is the same everywhere.
LITEDEPTH_INLINE double log_1p(double y) {
    const double t = 1.0 + y;
    std::uint64_t bits;
    std::memcpy(&bits, &t, sizeof bits);
    const std::uint64_t k = (bits - 0x3fe6a09e667f3bcd) >> 52;  // t = 2^k m, m in sqrt(1/2)..sqrt(2)
    const std::uint64_t m_bits = bits - (k << 52), k_bits = k | 0x4330000000000000;  // 2^52 + k
    double m, exponent;
    std::memcpy(&m, &m_bits, sizeof m);
    std::memcpy(&exponent, &k_bits, sizeof exponent);
    const double f = pick(m - 1.0, y, k);  // k = 0: y has the digits that t has lost
    const double s = f / (2.0 + f), q = s * s;
    const double series = 1.0 + q * (1 / 3. + q * (1 / 5. + q * (1 / 7. + q * (1 / 9.))));
    return (exponent - 0x1p52) * 0.69314718055994531 + 2.0 * s * series;
}

// e^x - 1, to 1e-8 of itself; beyond +-709 it is that of 709, which is no float either, or -1.
LITEDEPTH_INLINE double exp_m1(double x) {
    constexpr double kLimit = 709.0;
    std::uint64_t size, limit;
    std::memcpy(&size, &x, sizeof x);
    std::memcpy(&limit, &kLimit, sizeof kLimit);
    size &= ~(std::uint64_t{1} << 63);
    x = pick(std::copysign(kLimit, x), x, (limit - size) >> 63);
    const double shifted = x * 1.4426950408889634 + 0x1.8p52;  // its last bits are round(x / ln 2)
    std::uint64_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    const double r = x - (shifted - 0x1.8p52) * 0.69314718055994531;
    const double series =
        1.0 + r * (1 / 2. + r * (1 / 6. + r * (1 / 24. + r * (1 / 120. + r * (1 / 720. + r *
        (1 / 5040. + r * (1 / 40320.)))))));
    const std::uint64_t scale_bits = (bits + 1023) << 52;
    double scale;
    std::memcpy(&scale, &scale_bits, sizeof scale);
    return scale * (r * series) + (scale - 1.0);
}

// Any other alpha: rho = b / alpha * p, rho' c^2 = e (p + 1) / (y + 1) with y = z / b, b = |alpha - 2|
// and p = (y + 1)^(alpha / 2) - 1.
LITEDEPTH_INLINE void general_row_body(const float* d_hat, const float* d, std::int64_t n,
                                       double inv_c, double alpha, Columns to) {
    float* __restrict rho = to.rho;
    float* __restrict slope = to.slope;
    float* __restrict count = to.count;
    const double b = std::abs(alpha - 2.0), inv_b = 1.0 / b, half = alpha / 2.0, factor = b / alpha;
    for (std::int64_t u = 0; u < n; ++u) {
        const bool valid = is_depth(d[u]);
        const double e = static_cast<double>(only_if(valid, d_hat[u])) - only_if(valid, d[u]);
        const double y = (e * inv_c) * (e * inv_c) * inv_b, p = exp_m1(half * log_1p(y));
        rho[u] += static_cast<float>(factor * p + (e - e));  // NaN for a d_hat that is not finite
        slope[u] += static_cast<float>(e * ((p + 1.0) / (y + 1.0)));
        count[u] += only_if(valid, 1.0f);
    }
}
LITEDEPTH_VERSIONS(general_row,
                   (const float* d_hat, const float* d, std::int64_t n, double inv_c, double alpha,
                    Columns to),
                   (d_hat, d, n, inv_c, alpha, to))

// The limits of Eq. 10 are where it divides by 0 or inf; so close to them it is theirs to 1e-7.
inline double beside_limits(double alpha) {
    constexpr double kNear = 1e-12, kFar = 1e12;
    if (std::abs(alpha) < kNear) return kNear;
    if (std::abs(alpha - 2.0) < kNear) return 2.0 - kNear;
    return std::clamp(alpha, -kFar, kFar);
}

// Per cell (i, j) of d_hat (N, 1, h, w), over the valid pixels (v, u) of d (N, 1, H, W) with
// floor(v * h / H) == i and floor(u * w / W) == j: the sum of rho(d_hat - d), of its derivative by
// d_hat, and their number. A cell row is one task and has one order of additions, so the result
// depends neither on `threads` nor on the instruction set.
inline void robust_cells(const In<float, 4>& d_hat, const In<float, 4>& d, double alpha, double c,
                         int threads, const Out<float, 4>& rho, const Out<float, 4>& slope,
                         const Out<float, 4>& count) {
    const std::int64_t h = d_hat.shape[2], w = d_hat.shape[3], H = d.shape[2], W = d.shape[3];
    constexpr std::int64_t kRows = 16;  // summed in float before they are added up in double
    const float inv_c = static_cast<float>(1.0 / c);
    const double shape = beside_limits(alpha);
    parallel_for(threads, d.shape[0] * h, [&](std::int64_t task) {
        const std::int64_t k = task / h, i = task % h;
        std::vector<float> columns(5 * W);
        std::vector<double> total(3 * w, 0.0);
        float *pred = columns.data(), *row = pred + W;
        const Columns sum{row + W, row + 2 * W, row + 3 * W};
        for (std::int64_t j = 0; j < w; ++j)
            std::fill(pred + cell_start(j, W, w), pred + cell_start(j + 1, W, w), d_hat(k, 0, i, j));

        const std::int64_t end = cell_start(i + 1, H, h);
        for (std::int64_t v = cell_start(i, H, h), stop; v < end; v = stop) {
            stop = std::min(v + kRows, end);
            std::fill(sum.rho, sum.rho + 3 * W, 0.0f);
            for (std::int64_t y = v; y < stop; ++y) {
                const char* start = d.data + k * d.stride[0] + y * d.stride[2];
                const float* values = reinterpret_cast<const float*>(start);
                if (d.stride[3] != sizeof(float) ||
                    reinterpret_cast<std::uintptr_t>(start) % alignof(float)) {
                    for (std::int64_t u = 0; u < W; ++u) row[u] = d(k, 0, y, u);
                    values = row;
                }
                if (alpha == 1.0)
                    charbonnier_row(pred, values, W, inv_c, sum);
                else if (alpha == 2.0)
                    square_row(pred, values, W, inv_c, sum);
                else
                    general_row(pred, values, W, 1.0 / c, shape, sum);
            }
            for (std::int64_t j = 0, u = 0; j < w; ++j) {
                double* to = total.data() + 3 * j;
                for (const std::int64_t next = cell_start(j + 1, W, w); u < next; ++u) {
                    to[0] += sum.rho[u];
                    to[1] += sum.slope[u];
                    to[2] += sum.count[u];
                }
            }
        }
        float *to_rho = rho.row(k, 0, i), *to_slope = slope.row(k, 0, i);
        float* to_count = count.row(k, 0, i);
        for (std::int64_t j = 0; j < w; ++j) {
            to_rho[j] = static_cast<float>(total[3 * j]);
            to_slope[j] = static_cast<float>(total[3 * j + 1] / (c * c));
            to_count[j] = static_cast<float>(total[3 * j + 2]);
        }
    });
}

}  // namespace litedepth
