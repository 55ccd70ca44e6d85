/* The most single-precision arithmetic one core can do, for tests/bench/bench_device.py: independent
 * chains of acc = acc * m + a, as many as the registers hold, in every vector width the CPU has.
 *
 * double fma_peak(int width, double seconds): Gop/s (a multiply and an add are two) in vectors of
 * `width` floats, over at least `seconds`; 0 where this CPU, or this build, has no such vectors. */
#include <time.h>

/* 14 chains: more than latency times units of any core known (2 x 4 on x86, 2 x 7 on a Cortex-A72
 * at worst), and with m and a no more than the 16 registers of SSE and AVX2. */
#define CHAINS 14
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13)
#define UNROLL 100000 /* steps between two looks at the clock: below a millisecond */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static volatile float start = 2.0f, half = 0.5f; /* not known to the compiler */
static volatile float sink;

#define DECLARE(i) V acc##i = SET(start + (float)i);
#define STEP(i) acc##i = FMA(acc##i, m, a);
#define FIRST(i) + LANE(acc##i)

/* acc = acc / 2 + 1/2 runs towards 1: neither infinities nor denormal numbers. */
#define BODY(FLOATS)                                                                   \
    V m = SET(half), a = SET(half);                                                    \
    EACH(DECLARE)                                                                      \
    double begin = now(), taken = 0, steps = 0;                                        \
    while (taken < seconds) {                                                          \
        for (int k = 0; k < UNROLL; ++k) { EACH(STEP) }                                \
        steps += UNROLL;                                                               \
        taken = now() - begin;                                                         \
    }                                                                                  \
    sink = 0 EACH(FIRST);                                                              \
    return 2e-9 * CHAINS * (FLOATS) * steps / taken;

#if defined(__x86_64__)
#include <immintrin.h>

#define V __m128
#define SET _mm_set1_ps
#define FMA(x, m, a) _mm_add_ps(_mm_mul_ps(x, m), a)
#define LANE _mm_cvtss_f32
static double peak4(double seconds) { BODY(4) }
#undef V
#undef SET
#undef FMA
#undef LANE

#define V __m256
#define SET _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define LANE _mm256_cvtss_f32
__attribute__((target("avx2,fma"))) static double peak8(double seconds) { BODY(8) }
#undef V
#undef SET
#undef FMA
#undef LANE

#define V __m512
#define SET _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define LANE _mm512_cvtss_f32
__attribute__((target("avx512f"))) static double peak16(double seconds) { BODY(16) }

double fma_peak(int width, double seconds) {
    __builtin_cpu_init();
    if (width == 4) return peak4(seconds);
    if (width == 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return peak8(seconds);
    if (width == 16 && __builtin_cpu_supports("avx512f")) return peak16(seconds);
    return 0;
}

#elif defined(__aarch64__)
#include <arm_neon.h>

#define V float32x4_t
#define SET vdupq_n_f32
#define FMA(x, m, a) vfmaq_f32(a, x, m)
#define LANE(x) vgetq_lane_f32(x, 0)
static double peak4(double seconds) { BODY(4) }

double fma_peak(int width, double seconds) { return width == 4 ? peak4(seconds) : 0; }

#else
#error "x86-64 and 64-bit ARM only"
#endif
