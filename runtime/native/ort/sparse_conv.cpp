// The operator topkast.SparseConv: Y = act(conv(X, W) + bias), as ONNX's Conv with no auto_pad, of 1 to 3 dims. W is the
// matrix [out channels, channels of a group * taps], stored as runtime/layout.py says, with the forward set alone.
//
//   inputs      x float [batch, channels, ...], values float or float16 [slots * r * c], row_ptr int64 [block rows + 1],
//               cols uint16 or int32 [slots], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]; kernel_shape, strides, dilations [dims], pads [2 * dims], group
//   output      y float [batch, rows, ...]
#include "node.h"
#include "window.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

class SparseConv : public Node<Weight> {
public:
    SparseConv(const Api& api, const KernelInfo* info, int32_t act) : Node(api, info, act), window_(api, info) {
        window_.fit(geometry_);
    }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        std::vector<int64_t> out;
        const tk_conv conv = window_.over(x, geometry_.rows, out);
        Weight fresh;
        const tk_matrix& w = weight(context, fresh);
        const float* added = bias(context);
        float* y = output(context, out);
        if (conv.batch == 0) return;
        const Workspace work(api_, context, memory_, tk_conv_positions_workspace(&w, &conv));
        Pool pool(api_, context);
        const tk_parallel parallel = pool.parallel();
        tk_conv_positions(&parallel, &w, &conv, static_cast<float*>(x.data), added, act_, y, work.data());
        pool.done();
    }

private:
    Window window_;
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_conv() {
    static const std::vector<Operator> found = family<SparseConv>("SparseConv");
    return found;
}
