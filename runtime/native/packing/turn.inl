// A square of LANES x LANES floats, turned, for any instruction set: to[j * to_step + i] = from[i * step + j].
static inline void turn(const float* from, int64_t step, float* to, int64_t to_step) {
    V v[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) v[i] = load(from + i * step);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) store(to + i * to_step, v[i]);
}
