// The kernels of int8 compiled for avx512 with VNNI. Headers come before TARGET_BEGIN: what they define must run on any
// processor.
#ifdef __x86_64__
#include <immintrin.h>

#include "int8.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")
NO_FUSED_MULTIPLY_ADD

namespace topkast {
namespace vnni {

static constexpr int LANES = 16;    // words of a vector
static constexpr int GROUP = 4;     // columns in a word: numbers of 8 bits
static constexpr int SUMS = 16;      // vectors of sums in registers at once, where the rows are the vector axis
static constexpr int ROWS = 4;      // rows of a block whose sums are in registers at once
static constexpr int WIDE = 4;      // vectors of samples beside them
static constexpr int WIDE_FEW = 4;  // vectors of samples beside fewer than four

#include "vec.inl"
#include "turn.inl"
#include "pack.inl"
#include "epilogue.inl"

typedef int32_t I4 __attribute__((vector_size(16)));

// x is unsigned, w is signed; the sum does not saturate.
static inline I dot(I sum, I x, I w) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
static inline I4 dot(I4 sum, I4 x, I4 w) { return (I4)_mm_dpbusd_epi32((__m128i)sum, (__m128i)x, (__m128i)w); }
static inline I widened(const int8_t* p) { return (I)_mm512_loadu_si512(p); }
static inline I narrow(const I* v) {
    const __m512i low = _mm512_packus_epi32((__m512i)v[0], (__m512i)v[1]);
    return (I)_mm512_packus_epi16(low, _mm512_packus_epi32((__m512i)v[2], (__m512i)v[3]));
}
static inline void interleave(I* v) {
    const __m512i a = (__m512i)v[0], b = (__m512i)v[1], c = (__m512i)v[2], d = (__m512i)v[3];
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    v[0] = (I)_mm512_unpacklo_epi16(ab0, cd0);
    v[1] = (I)_mm512_unpackhi_epi16(ab0, cd0);
    v[2] = (I)_mm512_unpacklo_epi16(ab1, cd1);
    v[3] = (I)_mm512_unpackhi_epi16(ab1, cd1);
}

#include "int8.inl"

}  // namespace vnni
}  // namespace topkast
TARGET_END
#endif
