// Statistics of a depth map by cell. A cell is the preimage of one pixel of the prediction under
// the nearest upsample, floor(v * h / H) == i and floor(u * w / W) == j: all of it shares one
// prediction, so that a loss needs only n, mean and M2 of the cell's log-depths (Eq. 7).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "look_up.h"
#include "simd.h"

namespace litedepth {

// The first v of row i of h cells over H pixels: the least v with v * h >= i * H.
inline std::int64_t cell_start(std::int64_t i, std::int64_t H, std::int64_t h) {
    return (i * H + h - 1) / h;
}

// Sums of one row of cells, by canvas column. In this order, columns first, many are added at once
// and yet every instruction set, however wide, adds the same numbers in the same order.
struct ColumnSums {
    std::vector<double> S1, S2, metres;
    std::vector<std::int32_t> n;

    explicit ColumnSums(std::size_t w) : S1(w), S2(w), metres(w), n(w) {}
    void clear() {
        std::fill(S1.begin(), S1.end(), 0.0);
        std::fill(S2.begin(), S2.end(), 0.0);
        std::fill(metres.begin(), metres.end(), 0.0);
        std::fill(n.begin(), n.end(), 0);
    }
};

constexpr int kColumns = 128;  // and rows, that are looked up, then summed, while they are near
constexpr int kRows = 5;

// Adds R rows of metres and logs to their columns' sums, a hole (metres 0) as nothing.
template <int R>
LITEDEPTH_INLINE void add_rows(const float* const* metres, const float* __restrict logs, int n,
                               double* __restrict S1, double* __restrict S2,
                               double* __restrict sum, std::int32_t* __restrict count) {
    const float* __restrict m[R];
    for (int r = 0; r < R; ++r) m[r] = metres[r];
    for (int u = 0; u < n; ++u) {
        double s1 = S1[u], s2 = S2[u], s = sum[u];
        std::int32_t c = count[u];
        for (int r = 0; r < R; ++r) {
            const float d = m[r][u];
            const bool there = d > 0.0f;
            const double x = only_if(there, logs[r * kColumns + u]);
            s1 += x;
            s2 += x * x;
            s += d;
            c += there;
        }
        S1[u] = s1;
        S2[u] = s2;
        sum[u] = s;
        count[u] = c;
    }
}
LITEDEPTH_INLINE void add_many_rows_body(const float* const* metres, const float* logs, int n,
                                         double* S1, double* S2, double* sum,
                                         std::int32_t* count) {
    add_rows<kRows>(metres, logs, n, S1, S2, sum, count);
}
LITEDEPTH_VERSIONS(add_many_rows,
                   (const float* const* metres, const float* logs, int n, double* S1, double* S2,
                    double* sum, std::int32_t* count),
                   (metres, logs, n, S1, S2, sum, count))
LITEDEPTH_INLINE void add_one_row_body(const float* const* metres, const float* logs, int n,
                                       double* S1, double* S2, double* sum, std::int32_t* count) {
    add_rows<1>(metres, logs, n, S1, S2, sum, count);
}
LITEDEPTH_VERSIONS(add_one_row,
                   (const float* const* metres, const float* logs, int n, double* S1, double* S2,
                    double* sum, std::int32_t* count),
                   (metres, logs, n, S1, S2, sum, count))

}  // namespace litedepth
