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

template <int... i>
static inline V low(V a, V b, Lanes<i...>) {
    return __builtin_shuffle(a, b, I{(i / 2 + (i % 2) * LANES)...});
}
template <int... i>
static inline V high(V a, V b, Lanes<i...>) {
    return __builtin_shuffle(a, b, I{(i / 2 + LANES / 2 + (i % 2) * LANES)...});
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

// Sums of n vectors (a power of two, at most LANES) in lanes 0..n-1; destroys v.
template <int n>
static inline V sums(V* v) {
#pragma GCC unroll 4
    for (int half = n / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < half; ++i) v[i] = low(v[i], v[i + half]) + high(v[i], v[i + half]);
    }
    V s = v[0];  // sum of vector i in every lane l with l % n == i
#pragma GCC unroll 4
    for (int width = LANES / 2; width >= n; width /= 2) {
        I swap;
        for (int i = 0; i < LANES; ++i) swap[i] = i ^ width;
        s += __builtin_shuffle(s, swap);
    }
    return s;
}
