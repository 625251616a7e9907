// Asks the processor itself: __builtin_cpu_supports needs a table that not every compiler's runtime fills.
#include "processor.h"

#include <cstdint>

#ifdef __x86_64__
#include <cpuid.h>
#endif

namespace {

#ifdef __x86_64__
// The registers that the operating system saves when it switches between threads.
uint32_t saved_registers() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

topkast::Processor detect() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
    const bool fma = c >> 12 & 1, asks = c >> 27 & 1;  // asks: xgetbv is there
    if (!asks || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
    const uint32_t saved = saved_registers(), ymm = 0x06, zmm = 0xe6;
    const bool avx2 = fma && (b >> 5 & 1) && (saved & ymm) == ymm;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const bool avx512 = avx2 && (b & f_dq_bw_vl) == f_dq_bw_vl && (saved & zmm) == zmm;
    const bool vnni = avx512 && (c >> 11 & 1);
    const bool more = a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d);
    return {avx2, avx512, vnni, avx512 && more && (a >> 5 & 1)};
}
#else
topkast::Processor detect() { return {}; }
#endif

}  // namespace

const topkast::Processor& topkast::processor() {
    static const Processor found = detect();
    return found;
}
