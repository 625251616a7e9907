// Products whose layout is known before their tensors: compiled code calls them by addresses, many times with one layout.
#include "dispatch.h"

using namespace topkast;

namespace {

bool takes(const tk_view& view, int64_t width) { return view.width == 0 || view.width == width; }

}  // namespace

int64_t tk_prepared_workspace(const tk_prepared* product) {
    const tk_matrix& w = product->w;
    // How many of the slots are A's changes with each refresh, so all of them count.
    int64_t floats = packed_floats(w, product->first.m);
    if (product->kind == TK_GRADIENT || w.r > 1 || w.c > 1) return floats;
    floats += sorted_words(w.rows, w.columns, w.slots);
    if (product->kind == TK_TRANSPOSED) {
        floats += turned_floats(w.columns, w.slots) + sorted_words(w.columns, w.rows, w.slots);
    }
    return floats;
}

int32_t tk_run_prepared(const tk_parallel* p, const tk_prepared* product, float* values, const int64_t* row_ptr,
                        const int64_t* row_fwd, const void* cols, float* first, float* second, const float* bias,
                        float* work) {
    tk_matrix w = product->w;
    w.values = values;
    w.row_ptr = row_ptr;
    w.row_fwd = row_fwd;
    w.cols = cols;
    const int64_t end = row_ptr[(w.rows + w.r - 1) / w.r];
    if (end < 0 || end > w.slots) return TK_WRONG_INDEX;
    tk_view one = product->first, other = product->second;
    one.data = first;
    other.data = second;
    const int64_t width = isa().width(&w);
    if (!takes(one, width) || !takes(other, width)) return TK_WRONG_WIDTH;
    switch (product->kind) {
        case TK_FORWARD: isa().spmm(p, &w, &one, bias, product->act, &other, work); break;
        case TK_TRANSPOSED: isa().spmm_t(p, &w, &one, &other, work); break;
        case TK_GRADIENT:
            w.values = nullptr;
            isa().sddmm(p, &w, &one, &other, values, work);
            break;
        default: return TK_WRONG_KIND;
    }
    return TK_DONE;
}
