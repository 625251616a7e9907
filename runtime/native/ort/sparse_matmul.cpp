// The operator topkast.SparseMatMul: Y = act(X W^T + bias), W stored as runtime/layout.py says, with the forward set
// alone.
//
//   inputs      x float [..., columns], values float or float16 [slots * r * c], row_ptr int64 [block rows + 1],
//               cols uint16 or int32 [slots], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]
//   output      y float [..., rows]
#include "node.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

constexpr int64_t CHUNK = 1024;  // rows of x in one product: it bounds the scratch, and larger ones are no faster

class SparseMatMul : public Node<Weight> {
public:
    using Node::Node;

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        require(x.type == FLOAT && !x.dims.empty() && x.dims.back() == geometry_.columns,
                "x must be float [..., " + text(geometry_.columns) + "]");
        Weight fresh;
        const tk_matrix& w = weight(context, fresh);
        const float* added = bias(context);
        std::vector<int64_t> dims = x.dims;
        dims.back() = geometry_.rows;
        float* y = output(context, dims);
        multiply(context, w, static_cast<float*>(x.data), x.count / geometry_.columns, added, y);
    }

private:
    void multiply(Context* context, const tk_matrix& w, float* x, int64_t m, const float* bias, float* y) const {
        if (m == 0) return;
        const int64_t chunk = m < CHUNK ? m : CHUNK;
        const Workspace work(api_, context, memory_, tk_workspace(&w, chunk));
        Pool pool(api_, context);
        const tk_parallel parallel = pool.parallel();
        for (int64_t i = 0; i < m; i += chunk) {
            const int64_t here = m - i < chunk ? m - i : chunk;
            const tk_view from{x + i * w.columns, here, w.columns, w.columns, 1, 0};
            tk_view to{y + i * w.rows, here, w.rows, w.rows, 1, 0};
            tk_spmm(&parallel, &w, &from, bias, act_, &to, work.data());
        }
        pool.done();
    }
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_matmul() {
    static const std::vector<Operator> found = family<SparseMatMul>("SparseMatMul");
    return found;
}
