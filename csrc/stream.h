// Stores that pass the caches by, for results that are larger than these: a plain store would first
// read the line that it overwrites, and push out what is about to be used.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define LITEDEPTH_STREAMS
#endif

namespace litedepth {

constexpr std::int64_t kStreamFrom = 8 << 20;  // bytes of a batch's metres

#if defined(LITEDEPTH_STREAMS)
inline void stream_blocks_baseline(const float* from, float* to, int n) {
    for (int k = 0; k + 4 <= n; k += 4) _mm_stream_ps(to + k, _mm_loadu_ps(from + k));
}
LITEDEPTH_AVX2 inline void stream_blocks_avx2(const float* from, float* to, int n) {
    for (int k = 0; k + 8 <= n; k += 8) _mm256_stream_ps(to + k, _mm256_loadu_ps(from + k));
}
LITEDEPTH_AVX512 inline void stream_blocks_avx512(const float* from, float* to, int n) {
    for (int k = 0; k + 16 <= n; k += 16) _mm512_stream_ps(to + k, _mm512_loadu_ps(from + k));
}

// to[0..n-1] = from[0..n-1]. Visible to other threads after stream_end.
inline void stream(const float* from, float* to, int n) {
    const auto before = reinterpret_cast<std::uintptr_t>(to) % 64 / sizeof(float);
    const int head = std::min(n, static_cast<int>((16 - before) % 16));
    std::memcpy(to, from, head * sizeof(float));  // up to a whole line
    const int lines = (n - head) / 16 * 16;
    const Isa now = isa().load(std::memory_order_relaxed);
    (now == Isa::avx512 ? stream_blocks_avx512
     : now == Isa::avx2 ? stream_blocks_avx2
                        : stream_blocks_baseline)(from + head, to + head, lines);
    std::memcpy(to + head + lines, from + head + lines, (n - head - lines) * sizeof(float));
}

inline void stream_end() { _mm_sfence(); }
#else
inline void stream(const float* from, float* to, int n) {
    std::memcpy(to, from, n * sizeof(float));
}
inline void stream_end() {}
#endif

}  // namespace litedepth
