// The operator topkast.SparseMatMulInt8: SparseMatMul with a weight of int8, and x quantised inside, each row by itself.
//
//   inputs      x float [..., columns], values int8 [slots * r * c], row_ptr int64 [block rows + 1], cols uint16 or
//               int32 [slots], scale float [rows], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]
//   output      y float [..., rows]
#include "node.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

constexpr int64_t CHUNK = 1024;  // rows of x in one product: it bounds the scratch

class SparseMatMulInt8 : public Node<Quantised<false>> {
public:
    using Node::Node;

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        const int64_t rows = geometry_.rows, columns = geometry_.columns;
        require(x.type == FLOAT && !x.dims.empty() && x.dims.back() == columns, "x must be float [..., " + text(columns) + "]");
        Quantised<false> fresh;
        const Int8Weight& w = weight(context, fresh);
        const float* added = bias(context);
        std::vector<int64_t> dims = x.dims;
        dims.back() = rows;
        const int64_t m = x.count / columns;
        float *from = static_cast<float*>(x.data), *y = output(context, dims);
        if (m == 0) return;
        const Workspace work(api_, context, memory_, w.kernels().workspace(w.matrix(), m < CHUNK ? m : CHUNK));
        Pool pool(api_, context);
        const tk_parallel parallel = pool.parallel();
        for (int64_t i = 0; i < m; i += CHUNK) {
            const int64_t here = m - i < CHUNK ? m - i : CHUNK;
            w.kernels().product(&parallel, w.matrix(), {from + i * columns, here, columns, columns, 1, 0}, added, act_,
                                {y + i * rows, here, rows, rows, 1, 0}, work.data());
        }
        pool.done();
    }
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_matmul_int8() {
    static const std::vector<Operator> found = family<SparseMatMulInt8>("SparseMatMulInt8");
    return found;
}
