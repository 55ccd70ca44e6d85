// Ground truth at the network's resolution, for the losses of Eq. 8 and 9, holes left out.
#pragma once

#include <algorithm>
#include <vector>

#include "arrays.h"

namespace litedepth {

// Mean over the valid pixels (v, u) of each cell: floor(v * h / H) == i, floor(u * w / W) == j.
inline void gt_down_cell(const In<float, 2>& metres, const Out<float, 2>& low) {
    const std::int64_t H = metres.shape[0], W = metres.shape[1], h = low.shape[0], w = low.shape[1];
    std::vector<double> sum(w);
    std::vector<std::int64_t> count(w);
    for (std::int64_t i = 0; i < h; ++i) {
        std::fill(sum.begin(), sum.end(), 0.0);
        std::fill(count.begin(), count.end(), 0);
        // A cell starts at the first v with v * h >= i * H. Its sum runs in row-major order, as the
        // twin's does.
        for (std::int64_t v = (i * H + h - 1) / h; v * h < (i + 1) * H; ++v) {
            std::int64_t u = 0;
            for (std::int64_t j = 0; j < w; ++j) {
                for (; u * w < (j + 1) * W; ++u) {
                    const float d = metres(v, u);
                    const bool valid = is_depth(d);
                    sum[j] += valid ? d : 0.0f;
                    count[j] += valid;
                }
            }
        }
        float* out = low.row(i);
        for (std::int64_t j = 0; j < w; ++j)
            out[j] = count[j] ? static_cast<float>(sum[j] / static_cast<double>(count[j])) : 0.0f;
    }
}

// The pixel under each cell's centre, floor((i + 0.5) * H / h) in integers.
inline void gt_down_nearest(const In<float, 2>& metres, const Out<float, 2>& low) {
    const std::int64_t H = metres.shape[0], W = metres.shape[1], h = low.shape[0], w = low.shape[1];
    for (std::int64_t i = 0; i < h; ++i) {
        float* out = low.row(i);
        for (std::int64_t j = 0; j < w; ++j) {
            const float d = metres((2 * i + 1) * H / (2 * h), (2 * j + 1) * W / (2 * w));
            out[j] = is_depth(d) ? d : 0.0f;
        }
    }
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
        float* out = low.row(i);
        for (std::int64_t j = 0; j < w; ++j) {
            const double x = position(j, w, W);
            const std::int64_t x0 = static_cast<std::int64_t>(x), x1 = std::min(x0 + 1, W - 1);
            const double fx = x - static_cast<double>(x0);
            const double weight[4] = {(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx};
            const float tap[4] = {metres(y0, x0), metres(y0, x1), metres(y1, x0), metres(y1, x1)};
            double sum = 0.0, total = 0.0;
            for (int k = 0; k < 4; ++k) {
                if (!is_depth(tap[k])) continue;
                sum += weight[k] * tap[k];
                total += weight[k];
            }
            out[j] = total > 0.0 ? static_cast<float>(sum / total) : 0.0f;
        }
    }
}

}  // namespace litedepth
