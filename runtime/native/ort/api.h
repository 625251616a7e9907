// The part of ONNX Runtime's C ABI that a custom operator needs, declared by slot of the function table: no header of
// ONNX Runtime is shipped with it, and the table only ever grows at its end. Version 17, as since ONNX Runtime 1.17.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace topkast {
namespace ort {

constexpr uint32_t VERSION = 17;

// Owned and laid out by ONNX Runtime.
struct Status;
struct SessionOptions;
struct Domain;
struct Value;
struct Shape;
struct KernelInfo;
struct Context;
struct MemoryInfo;

// Element types of tensors.
enum Type : int { ANY = 0, FLOAT = 1, INT8 = 3, UINT16 = 4, INT32 = 6, INT64 = 7, FLOAT16 = 10 };
enum Code : int { INVALID_ARGUMENT = 2, RUNTIME_EXCEPTION = 6 };

struct Allocator {
    uint32_t version;
    void* (*alloc)(Allocator*, size_t bytes);
    void (*free)(Allocator*, void*);
};

struct Api {
    void* const* table;

#define SLOT(slot, result, name, parameters, arguments) \
    result name parameters const { return reinterpret_cast<result(*) parameters>(table[slot]) arguments; }
    SLOT(0, Status*, create_status, (Code code, const char* message), (code, message))
    SLOT(26, Status*, create_domain, (const char* name, Domain** out), (name, out))
    SLOT(27, Status*, add_op, (Domain* domain, const struct CustomOp* op), (domain, op))
    SLOT(28, Status*, add_domain, (SessionOptions* options, Domain* domain), (options, domain))
    SLOT(51, Status*, data, (Value* value, void** out), (value, out))
    SLOT(60, Status*, element_type, (const Shape* shape, Type* out), (shape, out))
    SLOT(61, Status*, rank, (const Shape* shape, size_t* out), (shape, out))
    SLOT(62, Status*, dims, (const Shape* shape, int64_t* out, size_t count), (shape, out, count))
    SLOT(65, Status*, shape, (const Value* value, Shape** out), (value, out))
    SLOT(69, Status*, cpu_memory, (int allocator, int kind, MemoryInfo** out), (allocator, kind, out))
    SLOT(86, Status*, attribute, (const KernelInfo* info, const char* name, int64_t* out), (info, name, out))
    SLOT(88, Status*, input_count, (const Context* context, size_t* out), (context, out))
    SLOT(90, Status*, input, (const Context* context, size_t index, const Value** out), (context, index, out))
    SLOT(91, Status*, output, (Context* context, size_t index, const int64_t* dims, size_t rank, Value** out),
         (context, index, dims, rank, out))
    SLOT(93, void, release_status, (Status* status), (status))
    SLOT(94, void, release_memory, (MemoryInfo* info), (info))
    SLOT(99, void, release_shape, (Shape* shape), (shape))
    SLOT(132, void, release_allocator, (Allocator* allocator), (allocator))
    SLOT(163, Status*, attributes, (const KernelInfo* info, const char* name, int64_t* out, size_t* count),
         (info, name, out, count))
    SLOT(249, Status*, constant_input, (const KernelInfo* info, size_t index, int* is_constant, const Value** out),
         (info, index, is_constant, out))
    SLOT(253, Status*, allocator, (const Context* context, const MemoryInfo* info, Allocator** out),
         (context, info, out))
    SLOT(274, Status*, parallel_for, (const Context* context, void (*body)(void*, size_t), size_t count,
         size_t batches, void* data), (context, body, count, batches, data))
#undef SLOT
};

struct ApiBase {
    void* const* (*api)(uint32_t version);  // null where that version is not known
    const char* (*version)();
};

// What ONNX Runtime asks of an operator; it reads as far as `version` says.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, void* const* api, const KernelInfo*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    Type (*input_type)(const CustomOp*, size_t index);
    size_t (*inputs)(const CustomOp*);
    Type (*output_type)(const CustomOp*, size_t index);
    size_t (*outputs)(const CustomOp*);
    void (*compute)(void* kernel, Context*);
    void (*destroy)(void* kernel);
    int (*input_kind)(const CustomOp*, size_t index);  // 0: required, 1: optional
    int (*output_kind)(const CustomOp*, size_t index);
    int (*input_memory)(const CustomOp*, size_t index);
    int (*variadic_inputs_minimum)(const CustomOp*);
    int (*variadic_inputs_alike)(const CustomOp*);
    int (*variadic_outputs_minimum)(const CustomOp*);
    int (*variadic_outputs_alike)(const CustomOp*);
    Status* (*create_kernel_or_fail)(const CustomOp*, void* const* api, const KernelInfo*, void** kernel);
    Status* (*compute_or_fail)(void* kernel, Context*);
    Status* (*infer_shapes)(const CustomOp*, void* context);
    int (*first_version)(const CustomOp*);
    int (*last_version)(const CustomOp*);
};

}  // namespace ort
}  // namespace topkast
