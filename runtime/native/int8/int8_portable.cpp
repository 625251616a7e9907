// The kernels of int8 compiled for portable. Headers come before TARGET_BEGIN: what they define must run on any processor.
#include "int8.h"
#include "parallel.h"
#include "target.h"

NO_FUSED_MULTIPLY_ADD

namespace topkast {
namespace portable {

static constexpr int LANES = 4;     // words of a vector
static constexpr int GROUP = 1;     // columns in a word
static constexpr int SUMS = 8;      // vectors of sums in registers at once, where the rows are the vector axis
static constexpr int ROWS = 4;      // rows of a block whose sums are in registers at once
static constexpr int WIDE = 4;      // vectors of samples beside them
static constexpr int WIDE_FEW = 4;  // vectors of samples beside fewer than four

#include "vec.inl"
#include "turn.inl"
#include "pack.inl"
#include "epilogue.inl"

static inline I dot(I sum, I x, I w) { return sum + x * w; }
static inline I widened(const int8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
static inline I narrow(const I* v) { return v[0]; }
static inline void interleave(I*) {}

#include "int8.inl"

}  // namespace portable
}  // namespace topkast
