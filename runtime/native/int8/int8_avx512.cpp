// The kernels of int8 compiled for avx512. Headers come before TARGET_BEGIN: what they define must run on any processor.
#ifdef __x86_64__
#include <immintrin.h>

#include "int8.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
NO_FUSED_MULTIPLY_ADD

namespace topkast {
namespace avx512 {

static constexpr int LANES = 16;    // words of a vector
static constexpr int GROUP = 2;     // columns in a word: numbers of 16 bits, whose products never saturate
static constexpr int SUMS = 16;      // vectors of sums in registers at once, where the rows are the vector axis
static constexpr int ROWS = 8;      // rows of a block whose sums are in registers at once
static constexpr int WIDE = 2;      // vectors of samples beside them
static constexpr int WIDE_FEW = 4;  // vectors of samples beside fewer than four

#include "vec.inl"
#include "turn.inl"
#include "pack.inl"
#include "epilogue.inl"

typedef int32_t I4 __attribute__((vector_size(16)));

static inline I dot(I sum, I x, I w) { return sum + (I)_mm512_madd_epi16((__m512i)x, (__m512i)w); }
static inline I4 dot(I4 sum, I4 x, I4 w) { return sum + (I4)_mm_madd_epi16((__m128i)x, (__m128i)w); }
static inline I widened(const int8_t* p) { return (I)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
static inline I narrow(const I* v) { return (I)_mm512_packus_epi32((__m512i)v[0], (__m512i)v[1]); }
static inline void interleave(I* v) {
    const __m512i a = (__m512i)v[0], b = (__m512i)v[1];
    v[0] = (I)_mm512_unpacklo_epi16(a, b);
    v[1] = (I)_mm512_unpackhi_epi16(a, b);
}

#include "int8.inl"

}  // namespace avx512
}  // namespace topkast
TARGET_END
#endif
