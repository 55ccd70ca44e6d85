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

// d (H, W) in metres -> grad_x[v, u] = d[v, u + 1] - d[v, u], grad_y[v, u] = d[v + 1, u] - d[v, u]
// and where they are valid. Past the last column and row there are only holes.
inline void masked_gradient(const In<float, 2>& d, const Out<float, 2>& grad_x,
                            const Out<float, 2>& grad_y, const Out<bool, 2>& M_x,
                            const Out<bool, 2>& M_y) {
    const int H = static_cast<int>(d.shape[0]), W = static_cast<int>(d.shape[1]);
    const std::vector<float> holes(W, 0.0f);
    std::vector<float> spare[2];
    const float* here = d.read_row(spare[0], 0);
    for (int v = 0; v < H; ++v) {
        const float* below = v + 1 < H ? d.read_row(spare[(v + 1) % 2], v + 1) : holes.data();
        difference(here, here + 1, W - 1, grad_x.row(v), M_x.row(v));
        difference(here + W - 1, holes.data(), 1, grad_x.row(v) + W - 1, M_x.row(v) + W - 1);
        difference(here, below, W, grad_y.row(v), M_y.row(v));
        here = below;
    }
}

}  // namespace litedepth
