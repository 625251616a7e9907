// TARGET_BEGIN("avx2,fma"): compile the functions below for an instruction set, until TARGET_END. What headers define
// must run on any processor, so headers are included before.
#pragma once

#define TARGET_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define TARGET_BEGIN(features) TARGET_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END TARGET_PRAGMA(clang attribute pop)
#define NO_FUSED_MULTIPLY_ADD TARGET_PRAGMA(clang fp contract(off))
#else
#define TARGET_BEGIN(features) TARGET_PRAGMA(GCC target(features))
#define TARGET_END
#define NO_FUSED_MULTIPLY_ADD TARGET_PRAGMA(GCC optimize("fp-contract=off"))
#endif
