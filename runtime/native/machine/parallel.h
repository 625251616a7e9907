// A lambda as the body of a parallel_for.
#pragma once
#include "topkast.h"

namespace topkast {

template <class F>
inline void parallel(const tk_parallel* p, int64_t count, const F& f) {
    p->run(p->pool, [](void* context, int64_t i) { (*static_cast<const F*>(context))(i); }, const_cast<F*>(&f), count);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace topkast
