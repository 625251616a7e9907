// The C functions, and the choice of instruction set.
#include "dispatch.h"

#include <atomic>

#include "parallel.h"
#include "processor.h"

using namespace topkast;

namespace {

std::atomic<int32_t> in_use{-1};

}  // namespace

const Isa& topkast::isa() {
    switch (tk_isa()) {
#ifdef __x86_64__
        case 2: return avx512::isa;
        case 1: return avx2::isa;
#endif
        default: return portable::isa;
    }
}

int32_t tk_isa_best(void) {
    return processor().avx512 ? 2 : processor().avx2 ? 1 : 0;
}

int32_t tk_isa(void) {
    const int32_t set = in_use.load(std::memory_order_relaxed);
    return set < 0 ? tk_isa_best() : set;
}

int32_t tk_set_isa(int32_t wanted) {
    if (wanted < 0 || wanted > tk_isa_best()) return -1;
    in_use.store(wanted);
    return 0;
}

namespace {

int64_t sorted(const tk_matrix* w, int64_t outputs, int64_t inputs, int64_t m) {
    if (w->r > 1 || w->c > 1) return 0;
    const int64_t slots = forward_slots(*w);
    return sorts(outputs, inputs, slots, m) ? sorted_words(outputs, inputs, slots) : 0;
}

}  // namespace

int64_t topkast::packed_floats(const tk_matrix& w, int64_t m) {
    // Both operands packed in tiles of at most 64, and where each block row of A starts in each cell: no
    // product that keeps this cuts cells of fewer than 256 columns, but for the last.
    const int64_t rows = ceil_div(w.rows, w.r), cols = ceil_div(w.columns, w.c);
    return (m + 64) * (rows * w.r + cols * w.c) + rows * (cols * w.c / 256 + 3) + 64;
}

int64_t tk_workspace(const tk_matrix* w, int64_t m) {
    return packed_floats(*w, m) + sorted(w, w->rows, w->columns, m);  // or A sorted
}

int64_t tk_spmm_t_workspace(const tk_matrix* w, int64_t m) {
    return tk_workspace(w, m) + (turns(*w, m) ? turned_floats(*w) + sorted(w, w->columns, w->rows, m) : 0);
}

int64_t tk_width(const tk_matrix* w) { return isa().width(w); }
void tk_pack(const tk_parallel* p, const tk_view* from, tk_view* to) { isa().pack(p, from, to); }
void tk_spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, int32_t act, tk_view* y,
             float* work) {
    isa().spmm(p, w, x, bias, act, y, work);
}
void tk_spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, float* work) {
    isa().spmm_t(p, w, dy, dx, work);
}
void tk_sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad, float* work) {
    isa().sddmm(p, w, dy, x, grad, work);
}
