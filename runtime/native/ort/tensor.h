// Statuses as exceptions inside this library, and tensors as they lie.
#pragma once
#include <exception>
#include <new>
#include <stdexcept>
#include <vector>

#include "topkast.h"
#include "api.h"

namespace topkast {
namespace ort {

struct Failure {
    Status* status;
};

inline void must(Status* status) {
    if (status) throw Failure{status};
}

// Runs f; what it throws becomes a status, for no exception may cross the C ABI.
template <class F>
Status* guarded(const Api& api, const F& f) {
    try {
        f();
        return nullptr;
    } catch (const Failure& failure) {
        return failure.status;
    } catch (const std::invalid_argument& error) {
        return api.create_status(INVALID_ARGUMENT, error.what());
    } catch (const std::bad_alloc&) {
        return api.create_status(RUNTIME_EXCEPTION, "topkast: out of memory");
    } catch (const std::exception& error) {
        return api.create_status(RUNTIME_EXCEPTION, error.what());
    }
}

struct Tensor {
    Type type = ANY;
    std::vector<int64_t> dims;
    int64_t count = 0;
    void* data = nullptr;
};

inline Tensor tensor(const Api& api, const Value* value) {
    Tensor found;
    Shape* shape = nullptr;
    must(api.shape(value, &shape));
    Status* failed = guarded(api, [&] {
        size_t rank = 0;
        must(api.element_type(shape, &found.type));
        must(api.rank(shape, &rank));
        found.dims.resize(rank);
        must(api.dims(shape, found.dims.data(), rank));
    });
    api.release_shape(shape);
    must(failed);
    found.count = 1;
    for (const int64_t size : found.dims) found.count *= size;
    must(api.data(const_cast<Value*>(value), &found.data));
    return found;
}

}  // namespace ort
}  // namespace topkast
