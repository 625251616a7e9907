// The operators topkast.SparseConvInt8 and SparseConvPerImageInt8: SparseConv with a weight of int8. The first one is for
// kernels of one tap (stride 1, no padding, one group): the channels of each position are quantised by themselves. The
// second one takes any kernel, and the numbers of each image share a scale.
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

template <bool by_position>
class SparseConvInt8 : public Node<Quantised<true>> {
public:
    SparseConvInt8(const Api& api, const KernelInfo* info, int32_t act) : Node(api, info, act), window_(api, info) {
        window_.fit(geometry_);
        require(!by_position || window_.is_pixelwise(),
                "SparseConvInt8 takes kernels of one tap only, with strides of 1, no pads and one group; "
                "SparseConvPerImageInt8 takes any");
    }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        std::vector<int64_t> out;
        const tk_conv conv = window_.over(x, geometry_.rows, out);
        Quantised<true> fresh;
        const Int8Weight& w = weight(context, fresh);
        const float* added = bias(context);
        float* y = output(context, out);
        if (conv.batch == 0) return;
        const Workspace work(api_, context, memory_, w.convolution_workspace(conv, by_position));
        Pool pool(api_, context);
        const tk_parallel parallel = pool.parallel();
        w.convolve(&parallel, conv, by_position, static_cast<float*>(x.data), added, act_, y, work.data());
        pool.done();
    }

private:
    Window window_;
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_conv_int8() {
    static const std::vector<Operator> found = family<SparseConvInt8<true>>("SparseConvInt8");
    return found;
}

const std::vector<Operator>& topkast::ort::sparse_conv_per_image_int8() {
    static const std::vector<Operator> found = family<SparseConvInt8<false>>("SparseConvPerImageInt8");
    return found;
}
