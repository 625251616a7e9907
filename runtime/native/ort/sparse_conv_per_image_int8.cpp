// The operator topkast.SparseConvPerImageInt8: SparseConv with a weight of int8. The numbers of each image share a scale.
//
//   inputs      x float [batch, channels, ...], values int8 [slots * r * c], row_ptr int64 [block rows + 1], cols uint16
//               or int32 [slots], scale float [rows], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]; kernel_shape, strides, dilations [dims], pads [2 * dims], group
//   output      y float [batch, rows, ...]
#include "node.h"
#include "window.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

class SparseConvPerImageInt8 : public Node<Quantised> {
public:
    SparseConvPerImageInt8(const Api& api, const KernelInfo* info, int32_t act) : Node(api, info, act), window_(api, info) {
        window_.fit(geometry_);
    }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        std::vector<int64_t> out;
        const tk_conv conv = window_.over(x, geometry_.rows, out);
        Quantised fresh;
        const Int8Weight& w = weight(context, fresh);
        const float* added = bias(context);
        float* y = output(context, out);
        if (conv.batch == 0) return;
        const Workspace work(api_, context, memory_, w.convolution_workspace(conv));
        Pool pool(api_, context);
        const tk_parallel parallel = pool.parallel();
        w.convolve(&parallel, conv, static_cast<float*>(x.data), added, act_, y, work.data());
        pool.done();
    }

private:
    Window window_;
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_conv_per_image_int8() {
    static const std::vector<Operator> found = family<SparseConvPerImageInt8>("SparseConvPerImageInt8");
    return found;
}
