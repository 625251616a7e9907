// The kernels compiled for avx512. Headers come before TARGET_BEGIN: what they define must run on any processor.
#include <type_traits>

#include "dispatch.h"
#include "parallel.h"
#include "target.h"

#ifdef __x86_64__
TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")

namespace topkast {
namespace avx512 {

static constexpr int LANES = 16;      // floats of a vector
static constexpr int BLOCK_ROWS = 8;  // rows of a block whose sums are in registers at once
static constexpr int TB = 2;          // vectors of batch beside them
static constexpr int DOTS = 24;       // sums of dW at once where the batch is the vector axis
static constexpr int OUTER = 8;       // columns of dW at once beside one vector of rows
static constexpr int OUTER_TILE = 8;  // columns, or rows, beside two vectors of the other
static constexpr int SINGLE = 4;      // vectors of batch at once for single weights

#include "vec.inl"
#include "turn.inl"
#include "isa.inl"

}  // namespace avx512
}  // namespace topkast
TARGET_END
#endif
