// Products whose layout is known before their tensors: compiled code calls them by addresses, many times with one layout.
#include <vector>

#include "dispatch.h"
#include "parallel.h"

using namespace topkast;

namespace {

bool takes(const tk_view& view, int64_t width) { return view.width == 0 || view.width == width; }

// The weight at these addresses. False: the index ends after the slots.
bool place(tk_matrix& w, const float* values, const int64_t* row_ptr, const int64_t* row_fwd, const void* cols) {
    w.values = values;
    w.row_ptr = row_ptr;
    w.row_fwd = row_fwd;
    w.cols = cols;
    const int64_t end = row_ptr[ceil_div(w.rows, w.r)];
    return end >= 0 && end <= w.slots;
}

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
    if (!place(w, product->kind == TK_GRADIENT ? nullptr : values, row_ptr, row_fwd, cols)) return TK_WRONG_INDEX;
    tk_view one = product->first, other = product->second;
    one.data = first;
    other.data = second;
    const int64_t width = isa().width(&w);
    if (!takes(one, width) || !takes(other, width)) return TK_WRONG_WIDTH;
    switch (product->kind) {
        case TK_FORWARD: isa().spmm(p, &w, &one, bias, product->act, &other, work); break;
        case TK_TRANSPOSED: isa().spmm_t(p, &w, &one, &other, work); break;
        case TK_GRADIENT: isa().sddmm(p, &w, &one, &other, values, work); break;
        default: return TK_WRONG_KIND;
    }
    return TK_DONE;
}

int64_t tk_prepared_conv_workspace(const tk_prepared_conv* product) {
    // An index of all slots, none of which is A's.
    tk_matrix w = product->w;
    const int64_t rows = ceil_div(w.rows, w.r);
    std::vector<int64_t> row_ptr(rows + 1, 0);
    row_ptr[rows] = w.slots;
    w.row_ptr = w.row_fwd = row_ptr.data();
    return tk_conv_workspace(&w, &product->conv);
}

int32_t tk_run_prepared_conv(const tk_parallel* p, const tk_prepared_conv* product, float* values,
                             const int64_t* row_ptr, const int64_t* row_fwd, const void* cols, float* first,
                             float* second, const float* bias, float* work) {
    tk_matrix w = product->w;
    if (!place(w, product->kind == TK_GRADIENT ? nullptr : values, row_ptr, row_fwd, cols)) return TK_WRONG_INDEX;
    tk_image one = product->first, other = product->second;
    one.data = first;
    other.data = second;
    switch (product->kind) {
        case TK_FORWARD: tk_conv_forward(p, &w, &product->conv, &one, bias, &other, work); break;
        case TK_TRANSPOSED: tk_conv_input_grad(p, &w, &product->conv, &one, &other, work); break;
        case TK_GRADIENT: tk_conv_weight_grad(p, &w, &product->conv, &one, &other, values, work); break;
        default: return TK_WRONG_KIND;
    }
    return TK_DONE;
}
