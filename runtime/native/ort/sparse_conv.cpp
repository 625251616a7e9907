// The operator topkast.SparseConv: Y = act(conv(X, W) + bias), as ONNX's Conv with no auto_pad, of 1 to 3 dims. W is the
// matrix [out channels, channels of a group * taps], stored as runtime/layout.py says, with the forward set alone.
//
//   inputs      x float [batch, channels, ...], values float or float16 [slots * r * c], row_ptr int64 [block rows + 1],
//               cols uint16 or int32 [slots], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]; kernel_shape, strides, dilations [dims], pads [2 * dims], group
//   output      y float [batch, rows, ...]
#include "node.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

constexpr size_t DIMS = 3;  // at most

// A list of `count` integers from `least` on, behind as many `fill` as three dims lack.
void sizes(const Api& api, const KernelInfo* info, const char* name, size_t count, int64_t least, int64_t fill,
           int64_t* out) {
    for (size_t d = 0; d < DIMS - count; ++d) out[d] = fill;
    out += DIMS - count;
    size_t found = count;
    Status* failed = api.attributes(info, name, out, &found);
    if (failed) api.release_status(failed);
    require(!failed && found == count, std::string("attribute ") + name + " must hold " +
                                           text(static_cast<int64_t>(count)) + " integers, as kernel_shape does");
    for (size_t d = 0; d < count; ++d)
        require(out[d] >= least && out[d] <= INT32_MAX, std::string(name) + " holds " + text(out[d]) +
                                                            ", must be from " + text(least) + " to 2147483647");
}

class SparseConv : public Node {
public:
    SparseConv(const Api& api, const KernelInfo* info, int32_t act) : Node(api, info, act) {
        int64_t unused[DIMS];
        dims_ = DIMS;
        Status* failed = api.attributes(info, "kernel_shape", unused, &dims_);
        if (failed) api.release_status(failed);
        require(!failed && dims_ >= 1, "attribute kernel_shape must hold 1 to 3 integers");
        sizes(api, info, "kernel_shape", dims_, 1, 1, shape_.kernel);
        sizes(api, info, "strides", dims_, 1, 1, shape_.stride);
        sizes(api, info, "dilations", dims_, 1, 1, shape_.dilation);
        int64_t pads[2 * DIMS];
        attribute(api, info, "pads", pads, 2 * dims_);
        for (size_t d = 0; d < 2 * dims_; ++d)
            require(pads[d] >= 0 && pads[d] <= INT32_MAX, "pads holds " + text(pads[d]) + ", must be from 0 to 2147483647");
        for (size_t d = 0; d < dims_; ++d) {
            shape_.padding[DIMS - dims_ + d] = pads[d];
            behind_[DIMS - dims_ + d] = pads[dims_ + d];
        }
        int64_t groups = 0;
        attribute(api, info, "group", &groups, 1);
        require(groups >= 1 && geometry_.rows % groups == 0,
                "group is " + text(groups) + ", must divide the " + text(geometry_.rows) + " rows");
        require(groups == 1 || geometry_.rows / groups % geometry_.r == 0,
                "blocks of " + text(geometry_.r) + " rows cross the border of groups of " + text(geometry_.rows / groups));
        shape_.groups = static_cast<int32_t>(groups);
        int64_t rest = geometry_.columns;
        for (const int64_t size : shape_.kernel) {
            require(rest % size == 0, "columns is " + text(geometry_.columns) + ", no multiple of the kernel's taps");
            rest /= size;
        }
        shape_.channels = rest * groups;
    }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        tk_conv conv = shape_;
        require(x.type == FLOAT && x.dims.size() == dims_ + 2 && x.dims[1] == conv.channels,
                "x must be float [batch, " + text(conv.channels) + ", ...] of " + text(static_cast<int64_t>(dims_) + 2) +
                    " dims");
        std::vector<int64_t> out{x.dims[0], geometry_.rows};
        conv.batch = x.dims[0];
        for (size_t d = 0; d < DIMS; ++d) {
            conv.in[d] = d < DIMS - dims_ ? 1 : x.dims[2 + d - (DIMS - dims_)];
            require(conv.in[d] <= INT32_MAX, "x is too large");
            const int64_t reach = (conv.kernel[d] - 1) * conv.dilation[d];
            const int64_t room = conv.in[d] + conv.padding[d] + behind_[d] - reach - 1;
            require(room >= 0, "an image of " + text(conv.in[d]) + " is smaller than the kernel");
            conv.out[d] = room / conv.stride[d] + 1;
            if (d >= DIMS - dims_) out.push_back(conv.out[d]);
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

    tk_conv shape_{};  // without what x decides
    int64_t behind_[DIMS] = {0, 0, 0};
    size_t dims_ = 0;
};

}  // namespace

const std::vector<Operator>& topkast::ort::sparse_conv() {
    static const std::vector<Operator> found = family<SparseConv>("SparseConv");
    return found;
}
