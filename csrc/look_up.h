// Tables instead of functions: a float for every level of grey or depth.
#pragma once

#include <cstring>

namespace litedepth {

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
