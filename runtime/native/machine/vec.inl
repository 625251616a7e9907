// Vectors of LANES floats through GCC's and Clang's vector extension: one source for every instruction set.
// Included inside the namespace of an instruction set, see isa_*.cpp.

typedef float V __attribute__((vector_size(4 * LANES), may_alias));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t I __attribute__((vector_size(4 * LANES)));

static inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
static inline V splat(float x) { return x - V{}; }

template <int... i>
struct Lanes {};
template <int n, int... i>
struct Count : Count<n - 1, n - 1, i...> {};
template <int... i>
struct Count<0, i...> {
    typedef Lanes<i...> type;
};

// The lanes i of a and b side by side. GCC has the first function since its version 12, Clang has only this one.
template <int... i>
static inline V shuffled(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, i...);
#else
    return __builtin_shuffle(a, b, I{i...});
#endif
}

template <int... i>
static inline V low(V a, V b, Lanes<i...>) {
    return shuffled<(i / 2 + (i % 2) * LANES)...>(a, b);
}
template <int... i>
static inline V high(V a, V b, Lanes<i...>) {
    return shuffled<(i / 2 + LANES / 2 + (i % 2) * LANES)...>(a, b);
}
// Lanes of a and b by turns: the lower halves, the upper halves.
static inline V low(V a, V b) { return low(a, b, Count<LANES>::type()); }
static inline V high(V a, V b) { return high(a, b, Count<LANES>::type()); }

// Transpose LANES vectors in place: interleaving halves log2(LANES) times sends lane j of vector i to lane i of j.
static inline void transpose(V* v) {
    V t[LANES];
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; ++i) {
            t[2 * i] = low(v[i], v[i + LANES / 2]);
            t[2 * i + 1] = high(v[i], v[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) v[i] = t[i];
    }
}

// Where lane i of merge comes from: of two vectors side by side, the lanes that are added first (high = 0) or last.
static constexpr int merged(int level, int high, int i) {
    const int group = i / 4 * 4, half = LANES / 8 ? LANES / 8 : 1;
    if (level == 0) return group + i % 4 / 2 + high * 2 + i % 2 * LANES;
    if (level == 1) return group + i % 2 + high * 2 + i % 4 / 2 * LANES;
    return (i / 4 % half * 2 + high) * 4 + i % 4 + i / 4 / half * LANES;
}
template <int level, int... i>
static inline V merge(V a, V b, Lanes<i...>) {
    return shuffled<merged(level, 0, i)...>(a, b) + shuffled<merged(level, 1, i)...>(a, b);
}

// Sums of n vectors (a power of two, at most LANES) in lanes 0..n-1, and again in the lanes above; destroys v. Each
// level adds pairs of lanes, the first two within groups of four lanes, which is what processors shuffle fast.
template <int n, int level = 0>
static inline V sums(V* v) {
    if constexpr ((1 << level) == LANES) {
        return v[0];
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < (n + 1) / 2; ++i)
            v[i] = merge<level>(v[2 * i], v[n > 1 ? 2 * i + 1 : 0], Count<LANES>::type());
        return sums<(n + 1) / 2, level + 1>(v);
    }
}

// to[0..n) += the first n lanes of v.
template <int n>
static inline void add(float* to, V v) {
    typedef float Part __attribute__((vector_size(4 * n), aligned(4), may_alias));
    Part part;
    __builtin_memcpy(&part, &v, sizeof part);
    *reinterpret_cast<Part*>(to) += part;
}
