// The products of bf16.h, compiled for AVX-512 with AVX512_BF16. Headers come before TARGET_BEGIN: what they define must
// run on any processor.
#include "bf16.h"

#ifdef TOPKAST_BF16
#include <immintrin.h>
#include <string.h>

#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "target.h"

TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")

namespace topkast {
namespace bf16 {

#include "halves.inl"
#include "columns16.inl"
#include "activations.inl"
#include "pairs.inl"
#include "gather_pairs.inl"
#include "scatter_pairs.inl"
#include "outer_pairs.inl"
#include "dots_pairs.inl"
#include "bf16.inl"

}  // namespace bf16
}  // namespace topkast
TARGET_END
#endif
