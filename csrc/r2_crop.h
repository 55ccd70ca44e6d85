// Sec. 3.2, R^2 crop: one affine map takes a decoded sample to the network's image (bilinear,
// coloured) and to the canvas of depths in metres (nearest, holes stay holes).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "arrays.h"
#include "look_up.h"
#include "simd.h"

namespace litedepth {

// Asks for what lies `bytes` from an address, wherever that is. Inlined by force, as its callers
// must be: GCC takes a function that only prefetches for one without effect, and drops the call.
LITEDEPTH_INLINE void prefetch(const void* address, std::ptrdiff_t bytes) {
#if defined(__GNUC__)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(address) +
                                                     static_cast<std::uintptr_t>(bytes)));
#else
    static_cast<void>(address);
    static_cast<void>(bytes);
#endif
}

// Positions are compared with the source as doubles, before any cast: casting NaN or 1e300 to an
// integer is undefined.

// The source pixel nearest to (a * t + b) + c for canvas positions t = 0..n-1, or -1 if that is not
// in 0..side-1.
LITEDEPTH_INLINE void nearest_index_body(std::int32_t* index, int n, double a, double b, double c,
                                         int side) {
    for (int t = 0; t < n; ++t) {
        const double at = ((a * t + b) + c) + 0.5;
        const double low = at >= 0.0 ? at : -1.0;
        const double inside = low < side ? low : -1.0;
        index[t] = static_cast<std::int32_t>(inside);  // from 0 up, the cast is floor
    }
}
LITEDEPTH_VERSIONS(nearest_index,
                   (std::int32_t* index, int n, double a, double b, double c, int side),
                   (index, n, a, b, c, side))

// floor and fraction of (a * t + b) + c for n canvas positions t. A position without any tap in the
// source becomes -2: its taps -2 and -1 both count as black.
LITEDEPTH_INLINE void bilinear_index_body(std::int32_t* index, double* fraction, const double* t,
                                          int n, double a, double b, double c, int side) {
    for (int k = 0; k < n; ++k) {
        const double at = (a * t[k] + b) + c;
        const double low = at >= -1.0 ? at : -2.0;
        const double inside = low < side ? low : -2.0;
        const std::int32_t cut = static_cast<std::int32_t>(inside);
        index[k] = cut - (inside < cut);  // the cast made -0.5 a 0, but its floor is -1
        fraction[k] = inside - index[k];
    }
}
LITEDEPTH_VERSIONS(bilinear_index,
                   (std::int32_t* index, double* fraction, const double* t, int n, double a,
                    double b, double c, int side),
                   (index, fraction, t, n, a, b, c, side))

LITEDEPTH_INLINE void reverse_body(const std::uint16_t* in, std::uint16_t* out, int n) {
    for (int u = 0; u < n; ++u) out[u] = in[n - 1 - u];
}
LITEDEPTH_VERSIONS(reverse, (const std::uint16_t* in, std::uint16_t* out, int n), (in, out, n))

// ---------------------------------------------------------------------- runs of a rotated row
//
// Under a small rotation a canvas row is made of runs: neighbours in the source too, one source row
// each. Their ends are where floor(position) steps, found by one division for all of a row's, and
// the same as if every position had been computed: one that is within kClose of a whole number is.

constexpr double kClose = 1e-9;     // above the rounding errors of positions below kFar
constexpr double kFar = 1 << 16;
constexpr double kSteepest = 0.125;  // runs of 8 pixels and more
constexpr int kRun = 32;             // pixels copied at a time: rows need that many to spare

// One coordinate of the source along a row: position(t) grows by step + slope a pixel, step 0 or 1.
struct Line {
    double a, b, c;
    int n, step;
    bool mirrored;  // t counts from the row's right end

    double position(int t) const {
        return ((a * (mirrored ? n - 1 - t : t) + b) + c) + 0.5;
    }
    double slope() const { return (mirrored ? -a : a) - step; }
};

// The first t of each new value of floor(position(t)) - step * t, and n after the last of them;
// returns that value at t = 0.
inline std::int64_t find_steps(const Line& line, std::vector<std::int32_t>& first) {
    first.clear();
    const double slope = line.slope(), start = line.position(0), base = std::floor(start);
    const double up = slope > 0 ? 1.0 : -1.0, edge = slope > 0 ? base + 1.0 : base;
    const double inverse = 1.0 / slope;
    for (int k = 0;; ++k) {
        const double border = edge + up * k;
        const double at = (border - start) * inverse;
        if (!(at < line.n)) break;
        const int near = static_cast<int>(at + 0.5);
        int t = static_cast<int>(at) + 1;
        if (std::abs(at - near) * std::abs(slope) <= kClose) {
            const double value = std::floor(line.position(near)) - line.step * near;
            t = (slope > 0 ? value >= border : value < border) ? near : near + 1;
        }
        if (t >= line.n) break;
        first.push_back(t);
    }
    first.push_back(line.n);
    return static_cast<std::int64_t>(base);
}

// out[0..n-1] = the source's pixels (y, x .. x + n - 1), 0 outside. May write kRun beyond.
LITEDEPTH_INLINE void copy_run(const In<std::uint16_t, 2>& depth, std::int64_t y, std::int64_t x,
                               std::int64_t n, std::uint16_t* out) {
    const std::int64_t H = depth.shape[0], W = depth.shape[1];
    if (y < 0 || y >= H || x >= W || x + n <= 0) {
        std::fill_n(out, n, std::uint16_t{0});
        return;
    }
    const char* row = depth.data + y * depth.stride[0];
    if (x >= 0 && x + n + kRun <= W) {  // whole blocks, without leaving the source's row
        const char* from = row + 2 * x;
        for (std::int64_t k = 0; k < n; k += kRun) std::memcpy(out + k, from + 2 * k, 2 * kRun);
        return;
    }
    const std::int64_t low = std::max<std::int64_t>(-x, 0), high = std::min(W - x, n);
    std::fill_n(out, low, std::uint16_t{0});
    std::memcpy(out + low, row + 2 * (x + low), static_cast<std::size_t>(2 * (high - low)));
    std::fill_n(out + high, n - high, std::uint16_t{0});
}

LITEDEPTH_INLINE void copy_runs_body(const In<std::uint16_t, 2>& depth, std::int64_t x,
                                     std::int64_t y, const std::int32_t* x_steps, int x_sign,
                                     const std::int32_t* y_steps, int y_sign, int n,
                                     std::uint16_t* out) {
    for (int t = 0; t < n;) {
        const int end = std::min(*x_steps, *y_steps);
        copy_run(depth, y, x, end - t, out + t);
        x += end - t;
        if (end == *x_steps) x += x_sign, ++x_steps;
        if (end == *y_steps) y += y_sign, ++y_steps;
        t = end;
    }
}
LITEDEPTH_VERSIONS(copy_runs,
                   (const In<std::uint16_t, 2>& depth, std::int64_t x, std::int64_t y,
                    const std::int32_t* x_steps, int x_sign, const std::int32_t* y_steps,
                    int y_sign, int n, std::uint16_t* out),
                   (depth, x, y, x_steps, x_sign, y_steps, y_sign, n, out))

// ---------------------------------------------------------------------------------- depth

// A crop's rows of depth in sensor units: the nearest source pixel, 0 outside of the source.
class DepthRows {
 public:
    DepthRows(const In<std::uint16_t, 2>& depth, const In<double, 2>& affine, int h, int w)
        : depth_(depth), affine_(affine), w_(w), x_(w), y_(w), spare_(w + kRun) {
        const double a00 = affine(0, 0), a01 = affine(0, 1), a02 = affine(0, 2);
        const double a10 = affine(1, 0), a11 = affine(1, 1), a12 = affine(1, 2);
        const int W = static_cast<int>(depth.shape[1]);
        straight_ = a01 == 0.0 && a10 == 0.0;
        if (straight_) {  // the columns are the same in every row, and a row has one y
            nearest_index(x_.data(), w, a00, 0.0, a02, W);
            const auto outside = [](std::int32_t x) { return x < 0; };
            first_ = static_cast<int>(std::find_if_not(x_.begin(), x_.end(), outside) - x_.begin());
            last_ = w;
            while (last_ > first_ && x_[last_ - 1] < 0) --last_;
            for (const int step : {1, -1}) {
                bool even = depth.stride[1] == 2 && first_ < last_;
                for (int u = first_ + 1; u < last_ && even; ++u) even = x_[u] == x_[u - 1] + step;
                if (even) step_ = step;
            }
        }
        const double reach_x = std::abs(a00) * w + std::abs(a01) * h + std::abs(a02);
        const double reach_y = std::abs(a10) * w + std::abs(a11) * h + std::abs(a12);
        const double slope_x = std::abs(std::abs(a00) - 1.0), slope_y = std::abs(a10);
        near_ = depth.stride[1] == 2 && reach_x < kFar && reach_y < kFar;
        runs_ = near_ && slope_x > 4 * kClose && slope_y > 4 * kClose && slope_x < kSteepest &&
                slope_y < kSteepest;
    }

    // How many elements a buffer for `row` has.
    std::size_t buffer_size() const { return spare_.size(); }

    // The w values of canvas row v: in `buffer`, or where they lie in the source.
    const std::uint16_t* row(int v, std::uint16_t* buffer) {
        if (straight_)
            return straight_row(v, buffer);
        else if (runs_)
            turned_row(v, buffer);
        else
            any_row(v, buffer);
        return buffer;
    }

    // Asks for the source's pixels of canvas row v, columns u..u+n-1, for when `row` wants them.
    LITEDEPTH_INLINE void prefetch_row(int v, int u, int n) const {
        if (!near_) return;
        const double x0 = affine_(0, 1) * v + affine_(0, 2), a00 = affine_(0, 0);
        const double y0 = affine_(1, 1) * v + affine_(1, 2), a10 = affine_(1, 0);
        const auto bytes = [&](int k) {
            return static_cast<std::ptrdiff_t>(a10 * k + y0) * depth_.stride[0] +
                   static_cast<std::ptrdiff_t>(a00 * k + x0) * 2;
        };
        if (straight_) {  // a line of cache has 32
            const std::ptrdiff_t at = bytes(u);
            for (int k = 0; k < n; k += 32)
                prefetch(depth_.data, a00 < 0 ? at - 2 * k : at + 2 * k);
        } else {  // and a turned row crosses twice as many
            for (int k = u; k < u + n; k += 16) prefetch(depth_.data, bytes(k));
        }
    }

 private:
    const std::uint16_t* straight_row(int v, std::uint16_t* buffer) {
        std::int32_t y;
        nearest_index(&y, 1, 0.0, affine_(1, 1) * v, affine_(1, 2),
                      static_cast<int>(depth_.shape[0]));
        if (y < 0 || first_ == last_) {
            std::fill_n(buffer, w_, std::uint16_t{0});
            return buffer;
        }
        if (step_ == 0) {
            for (int u = 0; u < w_; ++u) buffer[u] = x_[u] >= 0 ? depth_(y, x_[u]) : 0;
            return buffer;
        }
        const int n = last_ - first_;
        const char* from = depth_.data + y * depth_.stride[0] +
                           2 * std::ptrdiff_t{step_ > 0 ? x_[first_] : x_[last_ - 1]};
        const auto* in = reinterpret_cast<const std::uint16_t*>(from);
        const bool aligned = reinterpret_cast<std::uintptr_t>(from) % 2 == 0;
        if (step_ > 0 && n == w_ && aligned) return in;
        std::fill_n(buffer, first_, std::uint16_t{0});
        std::fill_n(buffer + last_, w_ - last_, std::uint16_t{0});
        if (step_ < 0 && !aligned) {
            std::memcpy(spare_.data(), from, std::size_t{2} * n);
            in = spare_.data();
        }
        if (step_ > 0)
            std::memcpy(buffer + first_, from, std::size_t{2} * n);
        else
            reverse(in, buffer + first_, n);
        return buffer;
    }

    void turned_row(int v, std::uint16_t* buffer) {
        const bool mirrored = affine_(0, 0) < 0;
        const Line x{affine_(0, 0), affine_(0, 1) * v, affine_(0, 2), w_, 1, mirrored};
        const Line y{affine_(1, 0), affine_(1, 1) * v, affine_(1, 2), w_, 0, mirrored};
        const std::int64_t x0 = find_steps(x, x_), y0 = find_steps(y, y_);
        copy_runs(depth_, x0, y0, x_.data(), x.slope() > 0 ? 1 : -1, y_.data(),
                  y.slope() > 0 ? 1 : -1, w_, mirrored ? spare_.data() : buffer);
        if (mirrored) reverse(spare_.data(), buffer, w_);
    }

    void any_row(int v, std::uint16_t* buffer) {
        nearest_index(x_.data(), w_, affine_(0, 0), affine_(0, 1) * v, affine_(0, 2),
                      static_cast<int>(depth_.shape[1]));
        nearest_index(y_.data(), w_, affine_(1, 0), affine_(1, 1) * v, affine_(1, 2),
                      static_cast<int>(depth_.shape[0]));
        for (int u = 0; u < w_; ++u)
            buffer[u] = (x_[u] | y_[u]) >= 0 ? depth_(y_[u], x_[u]) : std::uint16_t{0};
    }

    const In<std::uint16_t, 2>& depth_;
    const In<double, 2>& affine_;
    const int w_;
    std::vector<std::int32_t> x_, y_;
    std::vector<std::uint16_t> spare_;
    bool straight_, near_, runs_;
    int first_ = 0, last_ = 0;  // straight: the columns inside of the source
    int step_ = 0;              // and how x goes from one to the next; 0: unevenly
};

LITEDEPTH_INLINE void to_metres_body(const std::uint16_t* raw, float depth_scale, float* metres,
                                     int n) {
    for (int u = 0; u < n; ++u) metres[u] = static_cast<float>(raw[u]) / depth_scale;
}
LITEDEPTH_VERSIONS(to_metres,
                   (const std::uint16_t* raw, float depth_scale, float* metres, int n),
                   (raw, depth_scale, metres, n))

// metres[v, u] of the crop's h x w pixels; the canvas beyond the crop is hole.
inline void crop_depth(const In<std::uint16_t, 2>& depth, const In<double, 2>& affine, int h, int w,
                       float depth_scale, const Out<float, 2>& metres) {
    const int Hc = static_cast<int>(metres.shape[0]), Wc = static_cast<int>(metres.shape[1]);
    DepthRows rows(depth, affine, h, w);
    std::vector<std::uint16_t> buffer(rows.buffer_size());
    for (int v = 0; v < h; ++v) {
        float* out = metres.row(v);
        to_metres(rows.row(v, buffer.data()), depth_scale, out, w);
        std::fill(out + w, out + Wc, 0.0f);
    }
    for (int v = h; v < Hc; ++v) std::fill_n(metres.row(v), Wc, 0.0f);
}

// ---------------------------------------------------------------------------------- image

// The four pixels around each position of a row as four words: bytes r g b r and b r g b of the six
// that stand side by side in a source row, for the upper and the lower one. A word is less to store
// than four bytes, and channels come out of it by shifts, many positions at a time.
struct Taps {
    std::vector<std::uint32_t> word[4];
    explicit Taps(std::size_t n) {
        for (auto& w : word) w.resize(n);
    }
};

inline std::uint32_t four_bytes(const std::uint8_t* p) {  // one load, where bytes are so ordered
    return p[0] | std::uint32_t{p[1]} << 8 | std::uint32_t{p[2]} << 16 | std::uint32_t{p[3]} << 24;
}

// Taps of positions j = begin..end-1; pixels outside the source are black.
inline void fetch_outer_taps(const In<std::uint8_t, 3>& rgb, const std::int32_t* y0,
                             const std::int32_t* x0, int begin, int end, Taps& taps) {
    for (int j = begin; j < end; ++j) {
        std::uint8_t six[2][6] = {};
        for (int k = 0; k < 4; ++k) {
            const std::int32_t y = y0[j] + (k >> 1), x = x0[j] + (k & 1);
            const bool inside = y >= 0 && y < rgb.shape[0] && x >= 0 && x < rgb.shape[1];
            for (int c = 0; c < 3 && inside; ++c) six[k >> 1][3 * (k & 1) + c] = rgb(y, x, c);
        }
        for (int k = 0; k < 4; ++k) taps.word[k][j] = four_bytes(six[k >> 1] + 2 * (k & 1));
    }
}

// The same of positions that have all of their taps in the source, whose rows are in one piece.
inline void fetch_inner_taps(const In<std::uint8_t, 3>& rgb, const std::int32_t* y0,
                             const std::int32_t* x0, int begin, int end, Taps& taps) {
    const auto* pixels = reinterpret_cast<const std::uint8_t*>(rgb.data);
    const std::ptrdiff_t stride = rgb.stride[0];
    std::uint32_t* __restrict upper = taps.word[0].data();
    std::uint32_t* __restrict upper2 = taps.word[1].data();
    std::uint32_t* __restrict lower = taps.word[2].data();
    std::uint32_t* __restrict lower2 = taps.word[3].data();
    for (int j = begin; j < end; ++j) {
        const std::uint8_t* p = pixels + y0[j] * stride + 3 * std::ptrdiff_t{x0[j]};
        upper[j] = four_bytes(p);
        upper2[j] = four_bytes(p + 2);
        lower[j] = four_bytes(p + stride);
        lower2[j] = four_bytes(p + stride + 2);
    }
}

inline void fetch_taps(const In<std::uint8_t, 3>& rgb, const std::int32_t* y0,
                       const std::int32_t* x0, int n, Taps& taps) {
    const std::ptrdiff_t H = rgb.shape[0], W = rgb.shape[1];
    const auto outer = [&](int j) {
        return y0[j] < 0 || y0[j] + 1 >= H || x0[j] < 0 || x0[j] + 1 >= W;
    };
    // Positions go one way along a row, so that those inside of the source stand together.
    int begin = 0, end = n;
    if (rgb.stride[1] != 3 || rgb.stride[2] != 1) begin = n;
    while (begin < end && outer(begin)) ++begin;
    while (end > begin && outer(end - 1)) --end;
    fetch_outer_taps(rgb, y0, x0, 0, begin, taps);
    fetch_inner_taps(rgb, y0, x0, begin, end, taps);
    fetch_outer_taps(rgb, y0, x0, end, n, taps);
}

// q[j] = grey level of channel c, bilinear, rounded; returns how many are so near to a tie that
// they may be rounded wrongly. With Real = double: as the twin has it. With float, twice as fast, a
// value is off by less than kNearTie, and exact where the fractions are multiples of 1 / 256.
constexpr float kNearTie = 2e-4f;  // 7 roundings of numbers up to 256, 2^-17 each, and fractions'

template <class Real>
LITEDEPTH_INLINE int blend_any(const Taps& taps, int c, const Real* __restrict fx,
                               const Real* __restrict fy, int n, std::int32_t* __restrict q) {
    const std::uint32_t* __restrict upper = taps.word[0].data();
    const std::uint32_t* __restrict upper2 = taps.word[1].data();
    const std::uint32_t* __restrict lower = taps.word[2].data();
    const std::uint32_t* __restrict lower2 = taps.word[3].data();
    const int left = 8 * c, right = left + 8;
    const auto grey = [](std::uint32_t bytes, int shift) {
        return static_cast<Real>(static_cast<std::int32_t>(bytes >> shift & 255));
    };
    std::int32_t near = 0;
    for (int j = 0; j < n; ++j) {
        const Real p00 = grey(upper[j], left), p01 = grey(upper2[j], right);
        const Real p10 = grey(lower[j], left), p11 = grey(lower2[j], right);
        const Real top = p00 * (1 - fx[j]) + p01 * fx[j];
        const Real bot = p10 * (1 - fx[j]) + p11 * fx[j];
        const Real val = top * (1 - fy[j]) + bot * fy[j] + Real(0.5);
        q[j] = static_cast<std::int32_t>(val);  // from 0 up, the cast is floor
        const Real above = val - static_cast<Real>(q[j]);
        near += (above < Real(kNearTie)) | (above > Real(1 - kNearTie));
    }
    return near;
}
LITEDEPTH_INLINE void blend_body(const Taps& taps, int c, const float* fx, const float* fy, int n,
                                 std::int32_t* q, int* near) {
    *near = blend_any<float>(taps, c, fx, fy, n, q);
}
LITEDEPTH_VERSIONS(blend,
                   (const Taps& taps, int c, const float* fx, const float* fy, int n,
                    std::int32_t* q, int* near),
                   (taps, c, fx, fy, n, q, near))
LITEDEPTH_INLINE void blend_exactly_body(const Taps& taps, int c, const double* fx,
                                         const double* fy, int n, std::int32_t* q) {
    blend_any<double>(taps, c, fx, fy, n, q);
}
LITEDEPTH_VERSIONS(blend_exactly,
                   (const Taps& taps, int c, const double* fx, const double* fy, int n,
                    std::int32_t* q),
                   (taps, c, fx, fy, n, q))

LITEDEPTH_INLINE void to_float_body(const double* __restrict from, float* __restrict to, int n,
                                    bool* exact) {
    int odd = 0;
    for (int j = 0; j < n; ++j) {
        to[j] = static_cast<float>(from[j]);
        const double parts = from[j] * 256;  // 0..256
        odd += static_cast<double>(static_cast<std::int32_t>(parts)) != parts;
    }
    *exact = odd == 0;
}
LITEDEPTH_VERSIONS(to_float, (const double* from, float* to, int n, bool* exact),
                   (from, to, n, exact))

// image[:, i, j] of the crop's share of the network's hn x wn pixels; the rest is pad.
inline void crop_image(const In<std::uint8_t, 3>& rgb, const In<double, 2>& affine, int h, int w,
                       int Hc, int Wc, const In<float, 2>& lut, const In<float, 1>& pad,
                       const Out<float, 3>& image) {
    const int H = static_cast<int>(rgb.shape[0]), W = static_cast<int>(rgb.shape[1]);
    const int hn = static_cast<int>(image.shape[1]), wn = static_cast<int>(image.shape[2]);
    const int cols = static_cast<int>(std::int64_t{w} * wn / Wc);
    const int rows = cols ? static_cast<int>(std::int64_t{h} * hn / Hc) : 0;
    const double step_v = static_cast<double>(Hc) / hn, step_u = static_cast<double>(Wc) / wn;
    std::array<float, 3 * 256> table;
    for (int c = 0; c < 3; ++c)
        for (int k = 0; k < 256; ++k) table[256 * c + k] = lut(c, k);

    // One network row at a time: fetch its taps, then interpolate over contiguous memory.
    std::vector<double> canvas_u(cols), fx(cols), fy(cols);
    std::vector<std::int32_t> x0(cols), y0(cols), q(cols);
    Taps taps(cols);
    const double two_rows = 2 * step_v * affine(1, 1);
    const double ahead = std::abs(two_rows) < H ? two_rows : 0.0;
    for (int j = 0; j < cols; ++j) canvas_u[j] = (j + 0.5) * step_u - 0.5;

    std::vector<float> fx32(cols), fy32(cols);
    bool x_exact = false, y_exact = false;
    for (int i = 0; i < rows; ++i) {
        const double v = (i + 0.5) * step_v - 0.5;
        const double xv = affine(0, 1) * v, yv = affine(1, 1) * v;
        if (i == 0 || affine(0, 1) != 0.0) {  // else the columns are the same in every row
            bilinear_index(x0.data(), fx.data(), canvas_u.data(), cols, affine(0, 0), xv,
                           affine(0, 2), W);
            to_float(fx.data(), fx32.data(), cols, &x_exact);
        }
        const int ys = affine(1, 0) != 0.0 ? cols : 1;  // and a row has one y
        bilinear_index(y0.data(), fy.data(), canvas_u.data(), ys, affine(1, 0), yv, affine(1, 2),
                       H);
        to_float(fy.data(), fy32.data(), ys, &y_exact);
        std::fill(y0.begin() + ys, y0.end(), y0[0]);
        std::fill(fy.begin() + ys, fy.end(), fy[0]);
        std::fill(fy32.begin() + ys, fy32.end(), fy32[0]);
        fetch_taps(rgb, y0.data(), x0.data(), cols, taps);
        for (int c = 0; c < 3; ++c) {
            // What the row after next will want, a third at a time.
            for (int j = c * cols / 3; j < (c + 1) * cols / 3; j += 4) {
                const int y = static_cast<int>(y0[j] + fy[j] + ahead);
                const std::ptrdiff_t row = y * rgb.stride[0];
                prefetch(rgb.data, row + 3 * x0[j]);
                prefetch(rgb.data, row + 3 * x0[j] + rgb.stride[0]);
            }
            int near;
            blend(taps, c, fx32.data(), fy32.data(), cols, q.data(), &near);
            if (near && !(x_exact && y_exact))
                blend_exactly(taps, c, fx.data(), fy.data(), cols, q.data());
            float* out = image.row(c, i);
            look_up(q.data(), &table[256 * c], out, cols);
            std::fill(out + cols, out + wn, pad(c));
        }
    }
    for (int c = 0; c < 3; ++c)
        for (int i = rows; i < hn; ++i) std::fill_n(image.row(c, i), wn, pad(c));
}

}  // namespace litedepth
