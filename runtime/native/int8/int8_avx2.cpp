// The kernels of int8 compiled for avx2. Headers come before TARGET_BEGIN: what they define must run on any processor.
#ifdef __x86_64__
#include <immintrin.h>

#include "int8.h"
#include "parallel.h"
#include "target.h"

TARGET_BEGIN("avx2,fma")
NO_FUSED_MULTIPLY_ADD

namespace topkast {
namespace avx2 {

static constexpr int LANES = 8;     // words of a vector
static constexpr int GROUP = 2;     // columns in a word: numbers of 16 bits, whose products never saturate
static constexpr int SUMS = 8;      // vectors of sums in registers at once, where the rows are the vector axis
static constexpr int ROWS = 4;      // rows of a block whose sums are in registers at once
static constexpr int WIDE = 2;      // vectors of samples beside them
static constexpr int WIDE_FEW = 4;  // vectors of samples beside fewer than four

#include "vec.inl"
#include "turn.inl"
#include "pack.inl"
#include "epilogue.inl"

typedef int32_t I4 __attribute__((vector_size(16)));

static inline I dot(I sum, I x, I w) { return sum + (I)_mm256_madd_epi16((__m256i)x, (__m256i)w); }
static inline I4 dot(I4 sum, I4 x, I4 w) { return sum + (I4)_mm_madd_epi16((__m128i)x, (__m128i)w); }
static inline I widened(const int8_t* p) { return (I)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
static inline I narrow(const I* v) { return (I)_mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]); }
static inline void interleave(I* v) {
    const __m256i a = (__m256i)v[0], b = (__m256i)v[1];
    v[0] = (I)_mm256_unpacklo_epi16(a, b);
    v[1] = (I)_mm256_unpackhi_epi16(a, b);
}

#include "int8.inl"

}  // namespace avx2
}  // namespace topkast
TARGET_END
#endif
