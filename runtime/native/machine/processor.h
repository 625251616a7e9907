// The instruction sets that the processor and the operating system offer.
#pragma once

namespace topkast {

struct Processor {
    bool avx2;    // with fused multiply-add
    bool avx512;  // F, DQ, BW and VL, and avx2
    bool vnni;    // products of bytes, on top of avx512
    bool bf16;    // products of bfloat16, on top of avx512
};

const Processor& processor();

}  // namespace topkast
