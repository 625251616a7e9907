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
        const int64_t groups = window_.shape.groups;
        require(geometry_.rows % groups == 0,
                "group is " + text(groups) + ", must divide the " + text(geometry_.rows) + " rows");
        require(groups == 1 || geometry_.rows / groups % geometry_.r == 0,
                "blocks of " + text(geometry_.r) + " rows cross the border of groups of " + text(geometry_.rows / groups));
        int64_t rest = geometry_.columns;
        for (const int64_t size : window_.shape.kernel) {
            require(rest % size == 0, "columns is " + text(geometry_.columns) + ", no multiple of the kernel's taps");
            rest /= size;
        }
        window_.shape.channels = rest * groups;
    }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        const size_t dims = window_.dims;
        tk_conv conv = window_.shape;
        require(x.type == FLOAT && x.dims.size() == dims + 2 && x.dims[1] == conv.channels,
                "x must be float [batch, " + text(conv.channels) + ", ...] of " + text(static_cast<int64_t>(dims) + 2) +
                    " dims");
        std::vector<int64_t> out{x.dims[0], geometry_.rows};
        conv.batch = x.dims[0];
        for (size_t d = 0; d < DIMS; ++d) {
            conv.in[d] = d < DIMS - dims ? 1 : x.dims[2 + d - (DIMS - dims)];
            require(conv.in[d] <= INT32_MAX, "x is too large");
            const int64_t reach = (conv.kernel[d] - 1) * conv.dilation[d];
            const int64_t room = conv.in[d] + conv.padding[d] + window_.behind[d] - reach - 1;
            require(room >= 0, "an image of " + text(conv.in[d]) + " is smaller than the kernel");
            conv.out[d] = room / conv.stride[d] + 1;
            if (d >= DIMS - dims) out.push_back(conv.out[d]);
        }
        require_room(conv);  // of an empty batch too: its other dimensions are as large
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
    // The images with their borders must hold less than 2^31 floats; numbers of a file may pass any integer.
    static void require_room(const tk_conv& conv) {
        double planes = 1, image = 1;
        for (size_t d = 0; d < DIMS; ++d) {
            const double reach = double(conv.kernel[d] - 1) * double(conv.dilation[d]);
            planes *= double(conv.kernel[d] < conv.stride[d] ? conv.kernel[d] : conv.stride[d]);
            image *= double(conv.out[d]) + reach / double(conv.stride[d]);
        }
        // Several images share a plane while they are small, see positions.cpp.
        const double floats = double(conv.channels) * (planes * (image + 512) + 32);
        require(floats < double(INT32_MAX), "the images with their borders hold 2^31 floats or more");
    }

    Window window_;  // its shape without what x decides
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_conv() {
    static const std::vector<Operator> found = family<SparseConv>("SparseConv");
    return found;
}
