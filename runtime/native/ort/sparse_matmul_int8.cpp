// The operator topkast.SparseMatMulInt8: SparseMatMul with a weight of int8, and x quantised inside, each row by itself.
//
//   inputs      x float [..., columns], values int8 [slots * r * c], row_ptr int64 [block rows + 1], cols uint16 or
//               int32 [slots], scale float [rows], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]
//   output      y float [..., rows]
#include "int8_product.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

class SparseMatMulInt8 : public Int8Node {
public:
    using Int8Node::Int8Node;

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        const int64_t rows = geometry_.rows, columns = geometry_.columns;
        require(x.type == FLOAT && !x.dims.empty() && x.dims.back() == columns, "x must be float [..., " + text(columns) + "]");
        Quantised fresh;
        const Int8Weight& w = weight(context, fresh);
        const float* added = bias(context);
        std::vector<int64_t> dims = x.dims;
        dims.back() = rows;
        const int64_t m = x.count / columns;
        const tk_view from{static_cast<float*>(x.data), m, columns, columns, 1, 0};
        multiply(context, w, from, added, {output(context, dims), m, rows, rows, 1, 0});
    }
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_matmul_int8() {
    static const std::vector<Operator> found = family<SparseMatMulInt8>("SparseMatMulInt8");
    return found;
}
