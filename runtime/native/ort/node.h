// What the nodes of all operators share: a weight among their inputs, scratch and threads.
#pragma once
#include <memory>
#include <string>
#include <thread>

#include "checked.h"
#include "operators.h"
#include "tensor.h"

namespace topkast {
namespace ort {

enum Input : size_t { X, VALUES, ROW_PTR, COLS };  // then a scale, if the weight has one, and a bias

// Integer attributes; their number must be `count`.
inline void attribute(const Api& api, const KernelInfo* info, const char* name, int64_t* out, size_t count) {
    size_t found = count;
    Status* failed = count == 1 ? api.attribute(info, name, out) : api.attributes(info, name, out, &found);
    if (failed) api.release_status(failed);
    require(!failed && found == count, std::string("attribute ") + name + " must hold " +
                                           (count == 1 ? "one integer" : text(static_cast<int64_t>(count)) + " integers"));
}

inline Geometry geometry(const Api& api, const KernelInfo* info) {
    Geometry g{};
    int64_t block[2];
    attribute(api, info, "rows", &g.rows, 1);
    attribute(api, info, "columns", &g.columns, 1);
    attribute(api, info, "block", block, 2);
    g.r = block[0], g.c = block[1];
    check(g);
    return g;
}

// A product's parallel_for on the threads of the session that runs it.
class Pool {
public:
    Pool(const Api& api, const Context* context) : api_(api), context_(context) {}
    // At most so many threads work at once; ONNX Runtime does not say how many it has. Asking takes microseconds.
    tk_parallel parallel() {
        static const int32_t known = static_cast<int32_t>(std::thread::hardware_concurrency());  // 0: not known
        return {run, this, known < 1 ? 1 : known};
    }
    void done() const { must(failed_); }

private:
    struct Job {
        tk_body body;
        void* context;
    };

    static void run(void* pool, tk_body body, void* context, int64_t count) {
        if (count <= 1) return tk_run_serial(nullptr, body, context, count);
        Pool& self = *static_cast<Pool*>(pool);
        Job job{body, context};
        const auto one = [](void* data, size_t i) {
            const Job& job = *static_cast<Job*>(data);
            job.body(job.context, static_cast<int64_t>(i));
        };
        Status* status = self.api_.parallel_for(self.context_, one, static_cast<size_t>(count), 0, &job);
        if (status && self.failed_) self.api_.release_status(status);
        else if (status) self.failed_ = status;
    }

    const Api& api_;
    const Context* context_;
    Status* failed_ = nullptr;
};

// Scratch from the session's own allocator, so that it is shared with the other nodes' activations.
class Workspace {
public:
    Workspace(const Api& api, const Context* context, const MemoryInfo* memory, int64_t floats) : api_(api) {
        must(api.allocator(context, memory, &allocator_));
        try {
            data_ = allocator_->alloc(allocator_, sizeof(float) * static_cast<size_t>(floats));
            if (!data_) throw std::bad_alloc();
        } catch (...) {  // ONNX Runtime's arena throws where there is no memory
            api_.release_allocator(allocator_);
            throw;
        }
    }
    Workspace(const Workspace&) = delete;
    ~Workspace() {
        allocator_->free(allocator_, data_);
        api_.release_allocator(allocator_);
    }
    float* data() const { return static_cast<float*>(data_); }

private:
    const Api& api_;
    Allocator* allocator_ = nullptr;
    void* data_ = nullptr;
};

// W: Weight or Quantised<...>.
template <class W>
class Node {
public:
    static constexpr size_t BIAS = VALUES + W::PARTS;

    Node(const Api& api, const KernelInfo* info, int32_t act) : api_(api), geometry_(geometry(api, info)), act_(act) {
        Tensor parts[W::PARTS];
        bool constant = true;
        for (size_t i = 0; i < W::PARTS; ++i) {
            int is_constant = 0;
            const Value* value = nullptr;
            must(api_.constant_input(info, VALUES + i, &is_constant, &value));
            constant = constant && is_constant && value;
            if (constant) parts[i] = tensor(api_, value);
        }
        if (constant) constant_.take(geometry_, parts);
        must(api_.cpu_memory(1, 0, &memory_));  // the arena, memory of the default kind
    }
    Node(const Node&) = delete;
    ~Node() { api_.release_memory(memory_); }

protected:
    Tensor input(const Context* context, size_t index) const {
        const Value* value = nullptr;
        must(api_.input(context, index, &value));
        require(value, "input " + text(static_cast<int64_t>(index)) + " is missing");
        return tensor(api_, value);
    }

    // The node's matrix, in `fresh` where it is no constant and each call may bring another.
    const auto& weight(const Context* context, W& fresh) const {
        if (constant_.taken()) return constant_.matrix();
        Tensor parts[W::PARTS];
        for (size_t i = 0; i < W::PARTS; ++i) parts[i] = input(context, VALUES + i);
        fresh.take(geometry_, parts);
        return fresh.matrix();
    }

    const float* bias(const Context* context) const {
        size_t given = 0;
        must(api_.input_count(context, &given));
        const Value* last = nullptr;
        if (given > BIAS) must(api_.input(context, BIAS, &last));
        if (!last) return nullptr;
        const Tensor found = tensor(api_, last);
        require(found.type == FLOAT && found.dims.size() == 1 && found.count == geometry_.rows,
                "bias must be float [" + text(geometry_.rows) + "]");
        return static_cast<const float*>(found.data);
    }

    float* output(Context* context, const std::vector<int64_t>& dims) const {
        Value* out = nullptr;
        must(api_.output(context, 0, dims.data(), dims.size(), &out));
        void* y = nullptr;
        must(api_.data(out, &y));
        return static_cast<float*>(y);
    }

    const Api api_;
    const Geometry geometry_;
    const int32_t act_;
    MemoryInfo* memory_ = nullptr;

private:
    W constant_;  // checked once, when the session is created, which keeps what it points to
};

template <class Kernel>
Status* create(const CustomOp* op, void* const* table, const KernelInfo* info, void** kernel) {
    const Api api{table};
    const int32_t act = static_cast<const Operator*>(op)->act;
    return guarded(api, [&] { *kernel = new Holder<Kernel>{api, std::make_unique<Kernel>(api, info, act)}; });
}

// The operator of this name and those that end in an activation, which the kernel computes with it.
template <class Kernel>
std::vector<Operator> family(const std::string& name) {
    static const struct {
        const char* suffix;
        int32_t act;
    } endings[] = {{"", TK_NONE}, {"Relu", TK_RELU}, {"Relu6", TK_RELU6}, {"Gelu", TK_GELU},
                   {"GeluTanh", TK_GELU_TANH}, {"Silu", TK_SILU}};
    std::vector<Operator> found;
    for (const auto& ending : endings) {
        Operator op{plain_operator(), name + ending.suffix, ending.act};
        op.input_type = [](const CustomOp*, size_t i) {
            return i == ROW_PTR ? INT64 : i == VALUES || i == COLS ? ANY : FLOAT;
        };
        op.inputs = [](const CustomOp*) { return Kernel::BIAS + 1; };
        op.output_type = [](const CustomOp*, size_t) { return FLOAT; };
        op.input_kind = [](const CustomOp*, size_t i) { return i == Kernel::BIAS ? 1 : 0; };
        op.create_kernel_or_fail = create<Kernel>;
        op.compute_or_fail = compute<Kernel>;
        op.destroy = destroy<Kernel>;
        found.push_back(op);
    }
    return found;
}

}  // namespace ort
}  // namespace topkast
