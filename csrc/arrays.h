// Strided views of the caller's arrays. Plain C++: nothing in here knows of Python.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace litedepth {

// T is const for inputs, which have any strides (in bytes: negative, zero and unaligned ones are
// legal in numpy, hence the memcpy, which compilers turn into one plain load). What is written is
// in C order.
template <class T, std::size_t N>
struct View {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    using Value = std::remove_const_t<T>;
    Byte* data;
    std::array<std::ptrdiff_t, N> shape, stride;

    // As in numpy: what index i of the first axis selects.
    View<T, N - 1> operator[](std::ptrdiff_t i) const {
        View<T, N - 1> one{data + i * stride[0], {}, {}};
        std::copy(shape.begin() + 1, shape.end(), one.shape.begin());
        std::copy(stride.begin() + 1, stride.end(), one.stride.begin());
        return one;
    }

    operator View<const T, N>() const { return {data, shape, stride}; }

    template <class... Index>
    Byte* address(Index... index) const {
        static_assert(sizeof...(Index) <= N, "one index per axis");
        const std::ptrdiff_t at[] = {static_cast<std::ptrdiff_t>(index)...};
        Byte* p = data;
        for (std::size_t k = 0; k < sizeof...(Index); ++k) p += at[k] * stride[k];
        return p;
    }

    template <class... Index>
    Value operator()(Index... index) const {
        static_assert(sizeof...(Index) == N, "one index per axis");
        Value value;
        std::memcpy(&value, address(index...), sizeof value);
        return value;
    }

    // The row at these indices of all axes but the last, to write.
    template <class... Index>
    T* row(Index... index) const {
        static_assert(sizeof...(Index) == N - 1, "one index per axis but the last");
        return reinterpret_cast<T*>(address(index...));
    }

    // The same to read, in one piece: where it lies, or copied into `spare`.
    template <class... Index>
    const Value* read_row(std::vector<Value>& spare, Index... index) const {
        const auto n = static_cast<std::size_t>(shape[N - 1]);
        const char* from = address(index...);
        if (stride[N - 1] == sizeof(T) && reinterpret_cast<std::uintptr_t>(from) % alignof(T) == 0)
            return reinterpret_cast<const Value*>(from);
        spare.resize(n);
        for (std::size_t u = 0; u < n; ++u) spare[u] = (*this)(index..., u);
        return spare.data();
    }
};

template <class T, std::size_t N>
using In = View<const T, N>;
template <class T, std::size_t N>
using Out = View<T, N>;

// A depth is a finite number above 0, anything else is a hole. Asked of the bits, so that no
// compiler flag can optimise the question away: as integers, the positive finite floats lie between
// 0 and inf.
inline bool is_depth(float d) {
    std::int32_t bits;
    std::memcpy(&bits, &d, sizeof bits);
    return (bits > 0) & (bits < 0x7f800000);
}

// x, or 0 where not kept: a choice without a branch, which compilers vectorise.
inline float only_if(bool kept, float x) {
    std::int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= -std::int32_t{kept};
    std::memcpy(&x, &bits, sizeof bits);
    return x;
}

// The first v of row i of h cells over H pixels: the least v with v * h >= i * H. A *cell* is the
// preimage of one pixel of the prediction under the nearest upsample, floor(v * h / H) == i and
// floor(u * w / W) == j.
inline std::int64_t cell_start(std::int64_t i, std::int64_t H, std::int64_t h) {
    return (i * H + h - 1) / h;
}

}  // namespace litedepth
