// Eq. 8 / Fig. 4: forward differences of a depth map and where both of their pixels are depths.
#pragma once

#include <utility>
#include <vector>

#include "arrays.h"

namespace litedepth {

// grad[t] = b[t] - a[t] and mask[t] = true where both are depths, else 0 and false.
inline void difference(const float* a, const float* b, int n, float* grad, bool* mask) {
    for (int t = 0; t < n; ++t) {
        const bool both = is_depth(a[t]) & is_depth(b[t]);
        const float diff = b[t] - a[t];
        std::int32_t bits;
        std::memcpy(&bits, &diff, sizeof bits);
        bits &= -std::int32_t{both};  // a select without a branch, which compilers vectorise
        std::memcpy(&grad[t], &bits, sizeof bits);
        mask[t] = both;
    }
}

inline void masked_gradient(const In<float, 2>& d, const Out<float, 2>& grad_x,
                            const Out<float, 2>& grad_y, const Out<bool, 2>& M_x,
                            const Out<bool, 2>& M_y) {
    const int H = static_cast<int>(d.shape[0]), W = static_cast<int>(d.shape[1]);
    // Each input row is gathered once, whatever its strides. Past the last row and column: a hole.
    std::vector<float> row(W + 1, 0.0f), below(W + 1, 0.0f);
    const auto gather = [&](int v, std::vector<float>& into) {
        for (int u = 0; u < W; ++u) into[u] = v < H ? d(v, u) : 0.0f;
    };
    gather(0, row);
    for (int v = 0; v < H; ++v) {
        gather(v + 1, below);
        difference(row.data(), row.data() + 1, W, grad_x.row(v), M_x.row(v));
        difference(row.data(), below.data(), W, grad_y.row(v), M_y.row(v));
        std::swap(row, below);
    }
}

}  // namespace litedepth
