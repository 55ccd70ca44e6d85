// Eq. 8 / Fig. 4: forward differences of a depth map and where both of their pixels are depths.
#pragma once

#include <algorithm>
#include <vector>

#include "arrays.h"
#include "simd.h"

namespace litedepth {

// grad[t] = b[t] - a[t] and mask[t] = true where both are depths, else 0 and false.
LITEDEPTH_INLINE void difference_body(const float* a, const float* b, int n, float* grad,
                                      bool* mask) {
    for (int t = 0; t < n; ++t) {
        const bool both = int{is_depth(a[t])} & int{is_depth(b[t])};  // no branch
        grad[t] = only_if(both, b[t] - a[t]);
        mask[t] = both;
    }
}
LITEDEPTH_VERSIONS(difference, (const float* a, const float* b, int n, float* grad, bool* mask),
                   (a, b, n, grad, mask))

inline void masked_gradient(const In<float, 2>& d, const Out<float, 2>& grad_x,
                            const Out<float, 2>& grad_y, const Out<bool, 2>& M_x,
                            const Out<bool, 2>& M_y) {
    const int H = static_cast<int>(d.shape[0]), W = static_cast<int>(d.shape[1]);
    // Rows that lie in one piece are read where they are, others are gathered once.
    std::vector<float> spare[2];
    const auto row = [&](int v) {
        const char* from = d.data + v * d.stride[0];
        if (d.stride[1] == sizeof(float) && reinterpret_cast<std::uintptr_t>(from) % 4 == 0)
            return reinterpret_cast<const float*>(from);
        std::vector<float>& into = spare[v % 2];
        into.resize(W);
        for (int u = 0; u < W; ++u) into[u] = d(v, u);
        return static_cast<const float*>(into.data());
    };
    const float* here = row(0);
    for (int v = 0; v < H; ++v) {  // past the last row and column: a hole
        difference(here, here + 1, W - 1, grad_x.row(v), M_x.row(v));
        grad_x.row(v)[W - 1] = 0.0f;
        M_x.row(v)[W - 1] = false;
        if (v + 1 < H) {
            const float* below = row(v + 1);
            difference(here, below, W, grad_y.row(v), M_y.row(v));
            here = below;
        } else {
            std::fill_n(grad_y.row(v), W, 0.0f);
            std::fill_n(M_y.row(v), W, false);
        }
    }
}

}  // namespace litedepth
