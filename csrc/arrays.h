// Strided views of the caller's arrays. Plain C++: nothing in here knows of Python.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace litedepth {

// Read-only, any strides (in bytes: negative, zero and unaligned ones are legal in numpy, hence the
// memcpy, which compilers turn into one plain load).
template <class T, std::size_t N>
struct In {
    const char* data;
    std::array<std::ptrdiff_t, N> shape, stride;

    template <class... Index>
    T operator()(Index... index) const {
        static_assert(sizeof...(Index) == N, "one index per axis");
        const std::ptrdiff_t at[N] = {static_cast<std::ptrdiff_t>(index)...};
        const char* p = data;
        for (std::size_t k = 0; k < N; ++k) p += at[k] * stride[k];
        T value;
        std::memcpy(&value, p, sizeof(T));
        return value;
    }
};

// Writable; the last axis is contiguous and aligned, the others have any stride.
template <class T, std::size_t N>
struct Out {
    char* data;
    std::array<std::ptrdiff_t, N> shape, stride;

    template <class... Index>
    T* row(Index... index) const {
        static_assert(sizeof...(Index) == N - 1, "one index per axis but the last");
        const std::ptrdiff_t at[N - 1] = {static_cast<std::ptrdiff_t>(index)...};
        char* p = data;
        for (std::size_t k = 0; k + 1 < N; ++k) p += at[k] * stride[k];
        return reinterpret_cast<T*>(p);
    }
};

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

}  // namespace litedepth
