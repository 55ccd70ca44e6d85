// One portable source, compiled for several instruction sets, the best one chosen at run time.
//
//     LITEDEPTH_INLINE void row_body(const float* x, float* y, int n) {...}   // the only source
//     LITEDEPTH_VERSIONS(row, (const float* x, float* y, int n), (x, y, n))   // -> row(x, y, n)
//
// The body is inlined into one function per instruction set. A function attribute and not a compiler
// flag per file: inline functions of the standard library would otherwise exist in several versions,
// of which the linker keeps any one. Results are the same bits in all: see CMakeLists.txt on
// contraction, and no body may depend on how wide a vector is.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace litedepth {

enum class Isa { baseline, avx2, avx512 };

#if defined(__x86_64__) && defined(__GNUC__)
#define LITEDEPTH_INLINE inline __attribute__((always_inline))
#define LITEDEPTH_AVX2 __attribute__((target("avx2")))
#if defined(__clang__)  // knows no preference here, and would ignore the whole attribute
#define LITEDEPTH_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define LITEDEPTH_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#define LITEDEPTH_VERSIONS(name, params, args)                              \
    inline void name##_baseline params { name##_body args; }                \
    LITEDEPTH_AVX2 inline void name##_avx2 params { name##_body args; }     \
    LITEDEPTH_AVX512 inline void name##_avx512 params { name##_body args; } \
    inline void name params {                                               \
        const Isa now = isa().load(std::memory_order_relaxed);              \
        if (now == Isa::avx512)                                             \
            name##_avx512 args;                                             \
        else if (now == Isa::avx2)                                          \
            name##_avx2 args;                                               \
        else                                                                \
            name##_baseline args;                                           \
    }

inline Isa best_isa() {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return Isa::avx512;
    return __builtin_cpu_supports("avx2") ? Isa::avx2 : Isa::baseline;
}
#else
#define LITEDEPTH_INLINE inline
#define LITEDEPTH_VERSIONS(name, params, args) \
    inline void name params { name##_body args; }
inline Isa best_isa() { return Isa::baseline; }
#endif

// What runs now. Tests lower it; nothing but speed changes.
inline std::atomic<Isa>& isa() {
    static std::atomic<Isa> now{best_isa()};
    return now;
}

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

// out[u] = table[k[u]] by plain loads: a vector's gather is slower, and so is taking the indices
// out of a vector, which the empty asm keeps the compiler from.
template <class Index>
inline void look_up(const Index* k, const float* table, float* out, int n) {
    int u = 0;
    for (; u + 4 <= n; u += 4) {
        auto a = static_cast<unsigned>(k[u]), b = static_cast<unsigned>(k[u + 1]);
        auto c = static_cast<unsigned>(k[u + 2]), d = static_cast<unsigned>(k[u + 3]);
#if defined(__GNUC__)
        __asm__("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
#endif
        const float found[4] = {table[a], table[b], table[c], table[d]};
        std::memcpy(out + u, found, sizeof found);
    }
    for (; u < n; ++u) out[u] = table[k[u]];
}

}  // namespace litedepth
