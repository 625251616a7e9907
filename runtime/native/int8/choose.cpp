// The kernels of int8 for the instruction set in use. VNNI is an extension of AVX-512 which some of its processors lack.
#include "int8.h"
#include "processor.h"

using namespace topkast;

const Int8Kernels& topkast::int8_kernels() {
#ifdef __x86_64__
    switch (tk_isa()) {
        case 2: return processor().vnni ? vnni::int8 : avx512::int8;
        case 1: return avx2::int8;
    }
#endif
    return portable::int8;
}
