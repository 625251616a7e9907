// The kernels of one instruction set.
#pragma once
#include "conv.h"
#include "positions.h"
#include "topkast.h"
#include "transposed.h"

namespace topkast {

struct Isa {
    int64_t (*width)(const tk_matrix*);
    void (*pack)(const tk_parallel*, const tk_view*, tk_view*);
    void (*spmm)(const tk_parallel*, const tk_matrix*, const tk_view*, const float*, int32_t, tk_view*, float*);
    void (*spmm_t)(const tk_parallel*, const tk_matrix*, const tk_view*, tk_view*, float*);
    void (*sddmm)(const tk_parallel*, const tk_matrix*, const tk_view*, const tk_view*, float*, float*);
    void (*conv_forward)(const tk_parallel*, ConvPlan&, const tk_image&, const float*, const tk_image&, float*);
    void (*conv_input_grad)(const tk_parallel*, ConvPlan&, const tk_image&, const tk_image&, float*);
    void (*conv_weight_grad)(const tk_parallel*, ConvPlan&, const tk_image&, const tk_image&, float*, float*);
    void (*conv_positions)(const tk_parallel*, Positions&, const float*, const float*, int32_t, float*, float*);
};

const Isa& isa();  // the one in use

// Floats of scratch that a product of matrices needs for m rows of activations, whatever the index says.
int64_t packed_floats(const tk_matrix& w, int64_t m);

namespace portable { extern const Isa isa; }
#ifdef __x86_64__
namespace avx2 { extern const Isa isa; }
namespace avx512 { extern const Isa isa; }
#endif

}  // namespace topkast
