// Eq. 10 in cell form (see cell_start): all of a cell shares one prediction, so that the upsampled
// map need not exist.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "arrays.h"
#include "pool.h"
#include "simd.h"

namespace litedepth {

// What a row adds to each of its columns, for z = (e / c)^2 with e = d_hat - d in metres:
// rho += rho(e), slope += rho'(e) * c^2, count += 1. A hole adds 0, whatever is predicted there.
struct Columns {
    float *rho, *slope, *count;
};

// alpha = 1, the paper's: rho = s - 1 and rho' c^2 = e / s with s = sqrt(z + 1). s - 1 is z / (s + 1),
// which does not cancel, and both divisions are made of one. alpha = 2: rho = z / 2, rho' c^2 = e.
LITEDEPTH_INLINE void robust_row_body(const float* d_hat, const float* d, std::int64_t n, int alpha,
                                      float inv_c, Columns to) {
    float* __restrict rho = to.rho;
    float* __restrict slope = to.slope;
    float* __restrict count = to.count;
    if (alpha == 1) {
        for (std::int64_t u = 0; u < n; ++u) {
            const bool valid = is_depth(d[u]);
            const float e = only_if(valid, d_hat[u] - d[u]), x = e * inv_c, z = x * x;
            const float s = std::sqrt(z + 1.0f), r = 1.0f / (s * (s + 1.0f));
            rho[u] += z * r * s;
            slope[u] += e * ((s + 1.0f) * r);
            count[u] += only_if(valid, 1.0f);
        }
    } else {
        for (std::int64_t u = 0; u < n; ++u) {
            const bool valid = is_depth(d[u]);
            const float e = only_if(valid, d_hat[u] - d[u]), x = e * inv_c;
            rho[u] += 0.5f * (x * x);
            slope[u] += e;
            count[u] += only_if(valid, 1.0f);
        }
    }
}
LITEDEPTH_VERSIONS(robust_row,
                   (const float* d_hat, const float* d, std::int64_t n, int alpha, float inv_c,
                    Columns to),
                   (d_hat, d, n, alpha, inv_c, to))

// Per cell of d_hat (N, 1, h, w), over the valid pixels of d (N, 1, H, W): the sum of
// rho(d_hat - d), of its derivative by d_hat, and their number. A cell row is one task and has one
// order of additions, so the result depends neither on `threads` nor on the instruction set.
inline void robust_cells(const In<float, 4>& d_hat, const In<float, 4>& d, int alpha, double c,
                         int threads, const Out<float, 4>& rho, const Out<float, 4>& slope,
                         const Out<float, 4>& count) {
    const std::int64_t h = d_hat.shape[2], w = d_hat.shape[3], H = d.shape[2], W = d.shape[3];
    constexpr std::int64_t kRows = 16;  // summed in float before they are added up in double
    parallel_for(threads, d.shape[0] * h, [&](std::int64_t task) {
        const std::int64_t k = task / h, i = task % h;
        std::vector<float> pred(W), spare, columns(3 * W);
        std::vector<double> total(3 * w, 0.0);
        const Columns sum{columns.data(), columns.data() + W, columns.data() + 2 * W};
        for (std::int64_t j = 0; j < w; ++j)
            std::fill(pred.data() + cell_start(j, W, w), pred.data() + cell_start(j + 1, W, w),
                      d_hat(k, 0, i, j));

        const std::int64_t end = cell_start(i + 1, H, h);
        for (std::int64_t v = cell_start(i, H, h), stop; v < end; v = stop) {
            stop = std::min(v + kRows, end);
            std::fill(columns.begin(), columns.end(), 0.0f);
            for (std::int64_t y = v; y < stop; ++y)
                robust_row(pred.data(), d.read_row(spare, k, 0, y), W, alpha,
                           static_cast<float>(1.0 / c), sum);
            for (std::int64_t j = 0, u = 0; j < w; ++j)
                for (const std::int64_t next = cell_start(j + 1, W, w); u < next; ++u) {
                    total[3 * j] += sum.rho[u];
                    total[3 * j + 1] += sum.slope[u];
                    total[3 * j + 2] += sum.count[u];
                }
        }
        for (std::int64_t j = 0; j < w; ++j) {
            rho.row(k, 0, i)[j] = static_cast<float>(total[3 * j]);
            slope.row(k, 0, i)[j] = static_cast<float>(total[3 * j + 1] / (c * c));
            count.row(k, 0, i)[j] = static_cast<float>(total[3 * j + 2]);
        }
    });
}

}  // namespace litedepth
