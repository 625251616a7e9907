// What ONNX Runtime calls when it loads the library.
#include "operators.h"

using namespace topkast::ort;

extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base) {
    void* const* table = base->api(VERSION);
    if (!table)  // older than 1.17, but its first function is in every version
        return Api{base->api(1)}.create_status(INVALID_ARGUMENT, "topkast: needs ONNX Runtime 1.17 or later");
    const Api api{table};
    return guarded(api, [&] {
        // Sessions keep the pointer and never say when the last of them is gone: a domain is not freed.
        Domain* domain = nullptr;
        must(api.create_domain("topkast", &domain));
        for (const auto* family : {&sparse_matmul(), &sparse_conv(), &sparse_matmul_int8(), &sparse_conv_int8(),
                                   &sparse_conv_per_image_int8()})
            for (const Operator& op : *family) must(api.add_op(domain, &op));
        must(api.add_domain(options, domain));
    });
}
