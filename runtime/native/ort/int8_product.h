// The operators of int8 share their product; the arithmetic stands in int8.h.
#pragma once
#include "node.h"

namespace topkast {
namespace ort {

class Int8Node : public Node<Quantised> {
public:
    using Node::Node;

protected:
    // y = act(x W^T + bias): rows of x and y in chunks, which bound the scratch.
    void multiply(Context* context, const Int8Weight& w, const tk_view& x, const float* bias, const tk_view& y) const {
        constexpr int64_t CHUNK = 1024;
        if (x.m == 0) return;
        const Workspace work(api_, context, memory_, w.kernels().workspace(w.matrix(), x.m < CHUNK ? x.m : CHUNK));
        Pool pool(api_, context);
        const tk_parallel parallel = pool.parallel();
        for (int64_t i = 0; i < x.m; i += CHUNK) {
            const int64_t here = x.m - i < CHUNK ? x.m - i : CHUNK;
            const tk_view from{x.data + i * x.stride_m, here, x.n, x.stride_m, x.stride_n, 0};
            const tk_view to{y.data + i * y.stride_m, here, y.n, y.stride_m, y.stride_n, 0};
            w.kernels().product(&parallel, w.matrix(), from, bias, act_, to, work.data());
        }
        pool.done();
    }
};

}  // namespace ort
}  // namespace topkast
