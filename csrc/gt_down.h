// Ground truth at the network's resolution, for the losses of Eq. 8 and 9, holes left out: the depth
// under each pixel's centre or between its four neighbours. (The mean of a cell: r2_batch.h.)
// metres (H, W) are depths or 0, a hole, and so is low (h, w).
#pragma once

#include <algorithm>

#include "arrays.h"

namespace litedepth {

// The pixel at floor((i + 0.5) * H / h), in integers.
inline void gt_down_nearest(const In<float, 2>& metres, const Out<float, 2>& low) {
    const std::int64_t H = metres.shape[0], W = metres.shape[1], h = low.shape[0], w = low.shape[1];
    for (std::int64_t i = 0; i < h; ++i)
        for (std::int64_t j = 0; j < w; ++j)
            low.row(i)[j] = metres((2 * i + 1) * H / (2 * h), (2 * j + 1) * W / (2 * w));
}

// align_corners=True; the weights of the taps that are depths are scaled to sum to one.
inline void gt_down_bilinear(const In<float, 2>& metres, const Out<float, 2>& low) {
    const std::int64_t H = metres.shape[0], W = metres.shape[1], h = low.shape[0], w = low.shape[1];
    const auto position = [](std::int64_t i, std::int64_t n, std::int64_t N) {
        return n == 1 ? 0.0 : static_cast<double>(i * (N - 1)) / static_cast<double>(n - 1);
    };
    for (std::int64_t i = 0; i < h; ++i) {
        const double y = position(i, h, H);
        const std::int64_t y0 = static_cast<std::int64_t>(y), y1 = std::min(y0 + 1, H - 1);
        const double fy = y - static_cast<double>(y0);
        for (std::int64_t j = 0; j < w; ++j) {
            const double x = position(j, w, W);
            const std::int64_t x0 = static_cast<std::int64_t>(x), x1 = std::min(x0 + 1, W - 1);
            const double fx = x - static_cast<double>(x0);
            const double weight[4] = {(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx};
            const float tap[4] = {metres(y0, x0), metres(y0, x1), metres(y1, x0), metres(y1, x1)};
            double sum = 0.0, total = 0.0;
            for (int k = 0; k < 4; ++k) {
                if (tap[k] == 0.0f) continue;
                sum += weight[k] * tap[k];
                total += weight[k];
            }
            low.row(i)[j] = total > 0.0 ? static_cast<float>(sum / total) : 0.0f;
        }
    }
}

}  // namespace litedepth
