// The kernels compiled for avx2. Headers come before the pragma: what they define must run on any processor.
#include "dispatch.h"
#include "parallel.h"

#ifdef __x86_64__
#pragma GCC target("avx2,fma")

namespace topkast {
namespace avx2 {

static constexpr int LANES = 8;       // floats of a vector
static constexpr int BLOCK_ROWS = 4;  // rows of a block whose sums are in registers at once
static constexpr int TB = 2;          // vectors of batch beside them
static constexpr int SDDMM_COLS = 2;  // columns of dW beside four rows
static constexpr int SDDMM_OUTER = 8;  // sums of dW where rows are the vector axis

#include "isa.inl"

}  // namespace avx2
}  // namespace topkast
#endif
