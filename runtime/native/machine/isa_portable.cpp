// The kernels compiled for portable. Headers come before the pragma: what they define must run on any processor.
#include <type_traits>

#include "dispatch.h"
#include "parallel.h"

namespace topkast {
namespace portable {

static constexpr int LANES = 4;       // floats of a vector
static constexpr int BLOCK_ROWS = 4;  // rows of a block whose sums are in registers at once
static constexpr int TB = 2;          // vectors of batch beside them
static constexpr int DOTS = 8;        // sums of dW at once where the batch is the vector axis
static constexpr int OUTER = 8;       // columns of dW at once beside one vector of rows
static constexpr int OUTER_TILE = 4;  // columns, or rows, beside two vectors of the other
static constexpr int SINGLE = 4;      // vectors of batch at once for single weights

#include "vec.inl"
#include "turn.inl"
#include "isa.inl"

}  // namespace portable
}  // namespace topkast
