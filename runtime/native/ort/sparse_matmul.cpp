// The operator topkast.SparseMatMul: Y = X W^T + bias, W stored as runtime/layout.py says, with the forward set alone.
//
//   inputs      x float [..., columns], values float or float16 [slots * r * c], row_ptr int64 [block rows + 1],
//               cols uint16 or int32 [slots], bias float [rows] (optional)
//   attributes  rows, columns, block = [r, c]
//   output      y float [..., rows]
#include <memory>
#include <thread>

#include "checked.h"
#include "operators.h"
#include "tensor.h"

using namespace topkast;
using namespace topkast::ort;

namespace {

enum Input : size_t { X, VALUES, ROW_PTR, COLS, BIAS, INPUTS };

constexpr int64_t CHUNK = 1024;  // rows of x in one product: it bounds the scratch, and larger ones are no faster

// At most so many threads work at once; ONNX Runtime does not say how many it has. Asking takes microseconds.
const int32_t processors = static_cast<int32_t>(std::thread::hardware_concurrency());

// Integer attributes; their number must be `count`.
void attribute(const Api& api, const KernelInfo* info, const char* name, int64_t* out, size_t count) {
    size_t found = count;
    Status* failed = count == 1 ? api.attribute(info, name, out) : api.attributes(info, name, out, &found);
    if (failed) api.release_status(failed);
    require(!failed && found == count, std::string("attribute ") + name + " must hold " +
                                           (count == 1 ? "one integer" : text(static_cast<int64_t>(count)) + " integers"));
}

Geometry geometry(const Api& api, const KernelInfo* info) {
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
struct Pool {
    const Api& api;
    const Context* context;
    Status* failed = nullptr;

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
        Status* status = self.api.parallel_for(self.context, one, static_cast<size_t>(count), 0, &job);
        if (status && self.failed) self.api.release_status(status);
        else if (status) self.failed = status;
    }
};

// Scratch from the session's own allocator, so that it is shared with the other nodes' activations.
class Scratch {
public:
    Scratch(const Api& api, const Context* context, const MemoryInfo* memory, int64_t floats) : api_(api) {
        must(api.allocator(context, memory, &allocator_));
        data_ = allocator_->alloc(allocator_, sizeof(float) * static_cast<size_t>(floats));
        if (!data_) {
            api_.release_allocator(allocator_);
            throw std::bad_alloc();
        }
    }
    Scratch(const Scratch&) = delete;
    ~Scratch() {
        allocator_->free(allocator_, data_);
        api_.release_allocator(allocator_);
    }
    float* data() const { return static_cast<float*>(data_); }

private:
    const Api& api_;
    Allocator* allocator_ = nullptr;
    void* data_ = nullptr;
};

class Kernel {
public:
    Kernel(const Api& api, const KernelInfo* info) : api_(api), geometry_(geometry(api, info)) {
        Tensor parts[3];
        bool constant = true;
        for (size_t i = 0; i < 3; ++i) {
            int is_constant = 0;
            const Value* value = nullptr;
            must(api_.constant_input(info, VALUES + i, &is_constant, &value));
            constant = constant && is_constant && value;
            if (constant) parts[i] = tensor(api_, value);
        }
        if (constant) constant_.take(geometry_, parts[0], parts[1], parts[2]);
        must(api_.cpu_memory(1, 0, &memory_));  // the arena, memory of the default kind
    }
    Kernel(const Kernel&) = delete;
    ~Kernel() { api_.release_memory(memory_); }

    void compute(Context* context) const {
        const Tensor x = input(context, X);
        require(x.type == FLOAT && !x.dims.empty() && x.dims.back() == geometry_.columns,
                "x must be float [..., " + text(geometry_.columns) + "]");
        Weight fresh;  // where the weight is no constant, each call may bring another
        if (!constant_.taken()) fresh.take(geometry_, input(context, VALUES), input(context, ROW_PTR), input(context, COLS));
        const tk_matrix& w = (constant_.taken() ? constant_ : fresh).matrix();
        const float* bias = nullptr;
        size_t given = 0;
        must(api_.input_count(context, &given));
        const Value* last = nullptr;
        if (given > BIAS) must(api_.input(context, BIAS, &last));
        if (last) {
            const Tensor found = tensor(api_, last);
            require(found.type == FLOAT && found.dims.size() == 1 && found.count == geometry_.rows,
                    "bias must be float [" + text(geometry_.rows) + "]");
            bias = static_cast<const float*>(found.data);
        }

        std::vector<int64_t> dims = x.dims;
        dims.back() = geometry_.rows;
        Value* out = nullptr;
        must(api_.output(context, 0, dims.data(), dims.size(), &out));
        void* y = nullptr;
        must(api_.data(out, &y));
        multiply(context, w, static_cast<float*>(x.data), x.count / geometry_.columns, bias, static_cast<float*>(y));
    }

private:
    Tensor input(const Context* context, size_t index) const {
        const Value* value = nullptr;
        must(api_.input(context, index, &value));
        require(value, "input " + text(static_cast<int64_t>(index)) + " is missing");
        return tensor(api_, value);
    }

    void multiply(Context* context, const tk_matrix& w, float* x, int64_t m, const float* bias, float* y) const {
        if (m == 0) return;
        const int64_t chunk = m < CHUNK ? m : CHUNK;
        const Scratch scratch(api_, context, memory_, tk_workspace(&w, chunk));
        Pool pool{api_, context};
        const tk_parallel parallel{Pool::run, &pool, processors};
        for (int64_t i = 0; i < m; i += chunk) {
            const int64_t here = m - i < chunk ? m - i : chunk;
            const tk_view from{x + i * w.columns, here, w.columns, w.columns, 1, 0};
            tk_view to{y + i * w.rows, here, w.rows, w.rows, 1, 0};
            tk_spmm(&parallel, &w, &from, bias, TK_NONE, &to, scratch.data());
        }
        must(pool.failed);
    }

    const Api api_;
    const Geometry geometry_;
    Weight constant_;  // checked once, when the session is created, which keeps what it points to
    MemoryInfo* memory_ = nullptr;
};

Status* create(const CustomOp*, void* const* table, const KernelInfo* info, void** kernel) {
    const Api api{table};
    return guarded(api, [&] { *kernel = new Holder<Kernel>{api, std::make_unique<Kernel>(api, info)}; });
}

}  // namespace

const CustomOp topkast::ort::sparse_matmul = [] {
    CustomOp op = plain_operator();
    op.name = [](const CustomOp*) { return "SparseMatMul"; };
    op.input_type = [](const CustomOp*, size_t i) { return i == ROW_PTR ? INT64 : i == VALUES || i == COLS ? ANY : FLOAT; };
    op.inputs = [](const CustomOp*) { return static_cast<size_t>(INPUTS); };
    op.output_type = [](const CustomOp*, size_t) { return FLOAT; };
    op.input_kind = [](const CustomOp*, size_t i) { return i == BIAS ? 1 : 0; };
    op.create_kernel_or_fail = create;
    op.compute_or_fail = compute<Kernel>;
    op.destroy = destroy<Kernel>;
    return op;
}();
