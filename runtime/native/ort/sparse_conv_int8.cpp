// The operator topkast.SparseConvInt8: SparseConv with a weight of int8, for kernels of one tap: stride 1, no padding, one
// group. The channels of each position are quantised by themselves.
//
//   inputs      x float [batch, channels, ...], values int8 [slots * r * c], row_ptr int64 [block rows + 1], cols uint16
//               or int32 [slots], scale float [rows], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]; kernel_shape, strides, dilations [dims], pads [2 * dims], group
//   output      y float [batch, rows, ...]
#include "int8_product.h"
#include "window.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

class SparseConvInt8 : public Int8Node {
public:
    SparseConvInt8(const Api& api, const KernelInfo* info, int32_t act) : Int8Node(api, info, act) {
        const Window window(api, info);
        dims_ = window.dims;
        bool plain = window.shape.groups == 1;
        for (size_t d = 0; d < DIMS; ++d)
            plain = plain && window.shape.kernel[d] == 1 && window.shape.stride[d] == 1 && window.shape.padding[d] == 0 &&
                    window.behind[d] == 0;
        require(plain, "SparseConvInt8 takes kernels of one tap only, with strides of 1, no pads and one group; SparseConvPerImageInt8 takes any");
    }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        const int64_t rows = geometry_.rows, columns = geometry_.columns;
        require(x.type == FLOAT && x.dims.size() == dims_ + 2 && x.dims[1] == columns,
                "x must be float [batch, " + text(columns) + ", ...] of " + text(static_cast<int64_t>(dims_) + 2) + " dims");
        Quantised fresh;
        const Int8Weight& w = weight(context, fresh);
        const float* added = bias(context);
        std::vector<int64_t> dims = x.dims;
        dims[1] = rows;
        float* const y = output(context, dims);
        int64_t positions = 1;
        for (size_t d = 0; d < dims_; ++d) positions *= x.dims[2 + d];
        for (int64_t image = 0; image < x.dims[0]; ++image) {
            const tk_view from{static_cast<float*>(x.data) + image * columns * positions, positions, columns, 1, positions, 0};
            multiply(context, w, from, added, {y + image * rows * positions, positions, rows, 1, positions, 0});
        }
    }

private:
    size_t dims_;
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_conv_int8() {
    static const std::vector<Operator> found = family<SparseConvInt8>("SparseConvInt8");
    return found;
}
