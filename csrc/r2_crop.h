// Sec. 3.2, R^2 crop: one affine map takes a decoded sample to the network's image (bilinear,
// coloured) and to the canvas of depths (nearest, holes stay holes).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "arrays.h"
#include "simd.h"

namespace litedepth {

// Positions are compared with the source as doubles, before any cast: casting NaN or 1e300 to an
// integer is undefined.

// One source coordinate along a canvas row: at position t it is (a * t + b) + c, added in the
// twin's order.
struct Line {
    double a, b, c;
    LITEDEPTH_INLINE double operator()(double t) const { return (a * t + b) + c; }
};

// x or y (axis 0 or 1) of canvas row v.
inline Line along_row(const In<double, 2>& affine, int axis, double v) {
    return {affine(axis, 0), affine(axis, 1) * v, affine(axis, 2)};
}

// How many bytes further the source goes on average for `rows` more canvas rows; 0 where that is
// too much to know what will be wanted.
template <class T, std::size_t N>
std::ptrdiff_t bytes_ahead(const In<T, N>& source, const In<double, 2>& affine, double rows) {
    const double x = std::round(affine(0, 1) * rows), y = std::round(affine(1, 1) * rows);
    if (!(std::abs(x) < 1024 && std::abs(y) < 1024)) return 0;
    return static_cast<std::ptrdiff_t>(y) * source.stride[0] +
           static_cast<std::ptrdiff_t>(x) * source.stride[1];
}

// ---------------------------------------------------------------------------------- depth

// The pixel nearest to a position, or -1 if that is not in 0..side-1.
LITEDEPTH_INLINE std::int32_t nearest(double position, double side) {
    const double at = position + 0.5;
    const double low = at >= 0.0 ? at : -1.0;
    return static_cast<std::int32_t>(low < side ? low : -1.0);  // from 0 up, the cast is floor
}

// Where the source pixels nearest to canvas columns t = begin..end-1 lie, all of them inside of the
// source, in bytes from its first. (32 bits are enough: bindings.cpp sees to it.)
LITEDEPTH_INLINE void nearest_offsets_body(Line x, Line y, int begin, int end, std::int32_t right,
                                           std::int32_t down, std::int32_t* offset) {
    for (int t = begin; t < end; ++t)
        offset[t] = static_cast<std::int32_t>(y(t) + 0.5) * down +
                    static_cast<std::int32_t>(x(t) + 0.5) * right;
}
LITEDEPTH_VERSIONS(nearest_offsets,
                   (Line x, Line y, int begin, int end, std::int32_t right, std::int32_t down,
                    std::int32_t* offset),
                   (x, y, begin, end, right, down, offset))

// The crop's depth in sensor units, row by row: the nearest source pixel, 0 outside of the source.
class DepthRows {
 public:
    DepthRows(const In<std::uint16_t, 2>& depth, const In<double, 2>& affine, int w)
        : depth_(depth), affine_(affine), w_(w), offset_(w) {
        ahead_ = bytes_ahead(depth, affine, 5);
        // Half of all samples: columns are whole pixels apart, which holds for what is computed if
        // all of it is multiples of a half and has few digits.
        const double c = affine(0, 2);
        straight_ = std::abs(affine(0, 0)) == 1.0 && affine(0, 1) == 0.0 && affine(1, 0) == 0.0 &&
                    std::abs(c) < 1e9 && 2 * c == std::floor(2 * c) && depth.stride[1] == 2;
    }

    // The w columns of canvas row v: in `out`, or where they lie in the source. Asks for what a later
    // row will want.
    const std::uint16_t* row(int v, std::uint16_t* out) {
        const Line x = along_row(affine_, 0, v), y = along_row(affine_, 1, v);
        const auto H = static_cast<double>(depth_.shape[0]), W = static_cast<double>(depth_.shape[1]);
        const auto outside = [&](int u) { return nearest(x(u), W) < 0 || nearest(y(u), H) < 0; };
        // Rounded sums grow or fall all along a row: what is inside of the source stands together.
        int begin = 0, end = w_;
        while (begin < end && outside(begin)) ++begin;
        while (begin < end && outside(end - 1)) --end;
        std::fill(out, out + begin, std::uint16_t{0});
        std::fill(out + end, out + w_, std::uint16_t{0});
        if (begin == end) return out;
        if (straight_) {  // a piece of one source row, perhaps mirrored
            const int n = end - begin, right = x.a > 0 ? 2 : -2;
            const char* from = depth_.address(nearest(y(begin), H), nearest(x(begin), W));
            for (int k = 0; k < n; k += 32) prefetch(from, ahead_ + right * k);  // 32 a cache line
            if (right < 0)
                for (int k = 0; k < n; ++k) std::memcpy(out + begin + k, from - 2 * k, 2);
            else if (n == w_ && reinterpret_cast<std::uintptr_t>(from) % 2 == 0)
                return reinterpret_cast<const std::uint16_t*>(from);
            else
                std::memcpy(out + begin, from, 2 * static_cast<std::size_t>(n));
            return out;
        }
        nearest_offsets(x, y, begin, end, static_cast<std::int32_t>(depth_.stride[1]),
                        static_cast<std::int32_t>(depth_.stride[0]), offset_.data());
        for (int u = begin; u < end; u += 16) {
            prefetch(depth_.data, offset_[u] + ahead_);
            for (int k = u; k < std::min(u + 16, end); ++k)
                std::memcpy(out + k, depth_.data + offset_[k], 2);
        }
        return out;
    }

 private:
    const In<std::uint16_t, 2>& depth_;
    const In<double, 2>& affine_;
    const int w_;
    std::vector<std::int32_t> offset_;
    std::ptrdiff_t ahead_;
    bool straight_;
};

// ---------------------------------------------------------------------------------- image

// floor and fraction of the position at each t. A position without any tap in the source becomes
// -2: its taps -2 and -1 both count as black.
LITEDEPTH_INLINE void bilinear_body(const Line& line, const double* t, int n, double side,
                                    std::int32_t* index, double* fraction) {
    const Line along = line;
    for (int k = 0; k < n; ++k) {
        const double at = along(t[k]);
        const double low = at >= -1.0 ? at : -2.0;
        const double inside = low < side ? low : -2.0;
        const std::int32_t cut = static_cast<std::int32_t>(inside);
        index[k] = cut - (inside < cut);  // the cast made -0.5 a 0, but its floor is -1
        fraction[k] = inside - index[k];
    }
}
LITEDEPTH_VERSIONS(bilinear,
                   (const Line& line, const double* t, int n, double side, std::int32_t* index,
                    double* fraction),
                   (line, t, n, side, index, fraction))

// One row of the network's image: a position's pixel (x0, y0), how far beyond it is, and the four
// pixels around it as four words: bytes r g b r and b r g b of the six that stand side by side in a
// source row, for the upper and the lower one. A word is less to store than four bytes, and
// channels come out of it by shifts, many positions at a time.
struct Taps {
    std::vector<std::int32_t> x0, y0;
    std::vector<double> fx, fy;
    std::vector<std::uint32_t> word[4];
    explicit Taps(std::size_t n) : x0(n), y0(n), fx(n), fy(n) {
        for (auto& w : word) w.resize(n);
    }
};

inline std::uint32_t four_bytes(const std::uint8_t* p) {  // one load, where bytes are so ordered
    return p[0] | std::uint32_t{p[1]} << 8 | std::uint32_t{p[2]} << 16 | std::uint32_t{p[3]} << 24;
}

// Words of positions begin..end-1, of any picture; pixels outside the source are black.
inline void fetch_outer(const In<std::uint8_t, 3>& rgb, int begin, int end, Taps& taps) {
    for (int j = begin; j < end; ++j) {
        std::uint8_t six[2][6] = {};
        for (int k = 0; k < 4; ++k) {
            const std::int32_t y = taps.y0[j] + (k >> 1), x = taps.x0[j] + (k & 1);
            const bool inside = y >= 0 && y < rgb.shape[0] && x >= 0 && x < rgb.shape[1];
            for (int c = 0; c < 3 && inside; ++c) six[k >> 1][3 * (k & 1) + c] = rgb(y, x, c);
        }
        for (int k = 0; k < 4; ++k) taps.word[k][j] = four_bytes(six[k >> 1] + 2 * (k & 1));
    }
}

// The same where all taps are in the source and its rows are in one piece.
inline void fetch_inner(const In<std::uint8_t, 3>& rgb, int begin, int end, Taps& taps) {
    const auto* pixels = reinterpret_cast<const std::uint8_t*>(rgb.data);
    const std::ptrdiff_t down = rgb.stride[0];
    for (int j = begin; j < end; ++j) {
        const std::uint8_t* p = pixels + taps.y0[j] * down + 3 * std::ptrdiff_t{taps.x0[j]};
        for (int k = 0; k < 4; ++k) taps.word[k][j] = four_bytes(p + (k >> 1) * down + 2 * (k & 1));
    }
}

inline void fetch(const In<std::uint8_t, 3>& rgb, int n, Taps& taps) {
    const auto outer = [&](int j) {
        return taps.y0[j] < 0 || taps.y0[j] + 1 >= rgb.shape[0] || taps.x0[j] < 0 ||
               taps.x0[j] + 1 >= rgb.shape[1];
    };
    // Positions go one way along a row, so that those inside of the source stand together.
    int begin = 0, end = n;
    if (rgb.stride[1] != 3 || rgb.stride[2] != 1) begin = n;
    while (begin < end && outer(begin)) ++begin;
    while (end > begin && outer(end - 1)) --end;
    fetch_outer(rgb, 0, begin, taps);
    fetch_inner(rgb, begin, end, taps);
    fetch_outer(rgb, end, n, taps);
}

// q[j] = grey level of channel c, bilinear, rounded.
LITEDEPTH_INLINE void blend_body(const Taps& taps, int c, int n, std::int32_t* __restrict q) {
    const std::uint32_t* __restrict upper = taps.word[0].data();
    const std::uint32_t* __restrict upper2 = taps.word[1].data();
    const std::uint32_t* __restrict lower = taps.word[2].data();
    const std::uint32_t* __restrict lower2 = taps.word[3].data();
    const double* __restrict fx = taps.fx.data();
    const double* __restrict fy = taps.fy.data();
    const int left = 8 * c, right = left + 8;
    const auto grey = [](std::uint32_t bytes, int shift) {
        return static_cast<double>(static_cast<std::int32_t>(bytes >> shift & 255));
    };
    for (int j = 0; j < n; ++j) {
        const double top = grey(upper[j], left) * (1 - fx[j]) + grey(upper2[j], right) * fx[j];
        const double bot = grey(lower[j], left) * (1 - fx[j]) + grey(lower2[j], right) * fx[j];
        q[j] = static_cast<std::int32_t>(top * (1 - fy[j]) + bot * fy[j] + 0.5);
    }
}
LITEDEPTH_VERSIONS(blend, (const Taps& taps, int c, int n, std::int32_t* q), (taps, c, n, q))

// image[:, i, j] of the crop's h x w share of the canvas (Hc, Wc); the rest is 0.
inline void crop_image(const In<std::uint8_t, 3>& rgb, const In<double, 2>& affine,
                       std::array<int, 2> crop, std::array<std::int64_t, 2> canvas,
                       const In<float, 2>& lut, const Out<float, 3>& image) {
    const std::int64_t hn = image.shape[1], wn = image.shape[2];
    const int rows = static_cast<int>(crop[0] * hn / canvas[0]);
    const int cols = static_cast<int>(crop[1] * wn / canvas[1]);
    const double step_v = static_cast<double>(canvas[0]) / static_cast<double>(hn);
    const double step_u = static_cast<double>(canvas[1]) / static_cast<double>(wn);
    std::vector<float> spare;
    std::array<float, 3 * 256> table;
    for (int c = 0; c < 3; ++c) std::copy_n(lut.read_row(spare, c), 256, &table[256 * c]);

    std::vector<double> u(cols);
    for (int j = 0; j < cols; ++j) u[j] = (j + 0.5) * step_u - 0.5;
    std::vector<std::int32_t> q(cols);
    Taps taps(cols);
    const std::ptrdiff_t ahead = bytes_ahead(rgb, affine, 2 * step_v);
    for (int i = 0; i < rows; ++i) {
        const double v = (i + 0.5) * step_v - 0.5;
        bilinear(along_row(affine, 0, v), u.data(), cols, static_cast<double>(rgb.shape[1]),
                 taps.x0.data(), taps.fx.data());
        bilinear(along_row(affine, 1, v), u.data(), cols, static_cast<double>(rgb.shape[0]),
                 taps.y0.data(), taps.fy.data());
        fetch(rgb, cols, taps);
        for (int c = 0; c < 3; ++c) {
            // What the row after next will want, a third at a time.
            for (int j = c * cols / 3; j < (c + 1) * cols / 3; j += 4) {
                const std::ptrdiff_t at = taps.y0[j] * rgb.stride[0] + 3 * taps.x0[j] + ahead;
                prefetch(rgb.data, at);
                prefetch(rgb.data, at + rgb.stride[0]);
            }
            blend(taps, c, cols, q.data());
            look_up(q.data(), &table[256 * c], image.row(c, i), cols);
            std::fill(image.row(c, i) + cols, image.row(c, i) + wn, 0.0f);
        }
    }
    for (int c = 0; c < 3; ++c) std::fill(image.row(c, rows), image.row(c, hn), 0.0f);
}

}  // namespace litedepth
