// The attributes of a convolution: what slides over an image, as ONNX's Conv has it with no auto_pad, of 1 to 3 dims.
#pragma once
#include "node.h"

namespace topkast {
namespace ort {

constexpr size_t DIMS = 3;  // at most

// A list of `count` integers from `least` on, behind as many `fill` as three dims lack.
inline void sizes(const Api& api, const KernelInfo* info, const char* name, size_t count, int64_t least, int64_t fill,
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

struct Window {
    Window(const Api& api, const KernelInfo* info) {
        int64_t unused[DIMS];
        Status* failed = api.attributes(info, "kernel_shape", unused, &dims);
        if (failed) api.release_status(failed);
        require(!failed && dims >= 1, "attribute kernel_shape must hold 1 to 3 integers");
        sizes(api, info, "kernel_shape", dims, 1, 1, shape.kernel);
        sizes(api, info, "strides", dims, 1, 1, shape.stride);
        sizes(api, info, "dilations", dims, 1, 1, shape.dilation);
        int64_t pads[2 * DIMS];
        attribute(api, info, "pads", pads, 2 * dims);
        for (size_t d = 0; d < 2 * dims; ++d)
            require(pads[d] >= 0 && pads[d] <= INT32_MAX, "pads holds " + text(pads[d]) + ", must be from 0 to 2147483647");
        for (size_t d = 0; d < dims; ++d) {
            shape.padding[DIMS - dims + d] = pads[d];
            behind[DIMS - dims + d] = pads[dims + d];
        }
        int64_t groups = 0;
        attribute(api, info, "group", &groups, 1);
        require(groups >= 1 && groups <= INT32_MAX, "group is " + text(groups) + ", must be from 1 to 2147483647");
        shape.groups = static_cast<int32_t>(groups);
    }

    // With the matrix [out channels, channels of a group * taps], which decides the number of channels.
    void fit(const Geometry& g) {
        require(g.rows % shape.groups == 0, "group is " + text(shape.groups) + ", must divide the " + text(g.rows) + " rows");
        require(shape.groups == 1 || g.rows / shape.groups % g.r == 0,
                "blocks of " + text(g.r) + " rows cross the border of groups of " + text(g.rows / shape.groups));
        int64_t rest = g.columns;
        for (const int64_t size : shape.kernel) {
            require(rest % size == 0, "columns is " + text(g.columns) + ", no multiple of the kernel's taps");
            rest /= size;
        }
        shape.channels = rest * shape.groups;
    }

    // Whether each result reads one position, the one in its own place.
    bool is_pixelwise() const {
        bool found = shape.groups == 1;
        for (size_t d = 0; d < DIMS; ++d)
            found = found && shape.kernel[d] == 1 && shape.stride[d] == 1 && shape.padding[d] == 0 && behind[d] == 0;
        return found;
    }

    // The convolution of the images x; `out` becomes the dimensions of its result of so many rows.
    tk_conv over(const Tensor& x, int64_t rows, std::vector<int64_t>& out) const {
        tk_conv conv = shape;
        require(x.type == FLOAT && x.dims.size() == dims + 2 && x.dims[1] == conv.channels,
                "x must be float [batch, " + text(conv.channels) + ", ...] of " + text(static_cast<int64_t>(dims) + 2) +
                    " dims");
        conv.batch = x.dims[0];
        out = {x.dims[0], rows};
        for (size_t d = 0; d < DIMS; ++d) {
            conv.in[d] = d < DIMS - dims ? 1 : x.dims[2 + d - (DIMS - dims)];
            require(conv.in[d] <= INT32_MAX, "x is too large");
            const int64_t reach = (conv.kernel[d] - 1) * conv.dilation[d];
            const int64_t room = conv.in[d] + conv.padding[d] + behind[d] - reach - 1;
            require(room >= 0, "an image of " + text(conv.in[d]) + " is smaller than the kernel");
            conv.out[d] = room / conv.stride[d] + 1;
            if (d >= DIMS - dims) out.push_back(conv.out[d]);
        }
        require_room(conv);  // of an empty batch too: its other dimensions are as large
        return conv;
    }

    size_t dims = DIMS;
    tk_conv shape{};  // without what x decides; padding: what lies before an image
    int64_t behind[DIMS] = {0, 0, 0};

private:
    static constexpr double SMALL = 1 << 24, MORE = 64;

    // The images with their borders must hold less than 2^31 floats. And what a few bytes of a file can ask for is bounded
    // by the images: borders may make them MORE times as large, or as large as SMALL floats. The result has no more
    // positions, and no more rows than the file has row_ptr. Numbers of a file may pass any integer.
    static void require_room(const tk_conv& conv) {
        double planes = 1, image = 1, inside = 1;
        for (size_t d = 0; d < DIMS; ++d) {
            const double reach = double(conv.kernel[d] - 1) * double(conv.dilation[d]);
            planes *= double(conv.kernel[d] < conv.stride[d] ? conv.kernel[d] : conv.stride[d]);
            image *= double(conv.out[d]) + reach / double(conv.stride[d]);
            inside *= double(conv.in[d]);
        }
        const double channels = double(conv.channels);
        // Several images share a plane while they are small, see positions.cpp.
        const double floats = channels * (planes * (image + 512) + 32);
        require(floats < double(INT32_MAX), "the images with their borders hold 2^31 floats or more");
        const double most = MORE * inside * channels, own = channels * planes * image;
        require(own <= SMALL || own <= most,
                "an image of " + text(int64_t(inside * channels)) + " floats has borders that make it " +
                    text(int64_t(own)) + ", more than 64 times as many");
    }
};

}  // namespace ort
}  // namespace topkast
