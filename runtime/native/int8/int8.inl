// The kernels of int8 on one instruction set. The file that includes this one gives LANES, GROUP, the tiles, and
//
//   dot(sum, x, w)     sum plus the products of x's and w's parts, word by word; of LANES words, or of 4
//   widened(p)         LANES words of weights from GROUP bytes each
//   interleave(v)      GROUP registers, each the line of one column, to GROUP vectors of words, a sample in each word
//   narrow(v)          GROUP vectors of whole numbers to the register of a line, so that interleave gives them in order

static constexpr int BITS = 32 / GROUP;

template <class T>
static inline T taken(const void* from) {
    T found;
    __builtin_memcpy(&found, from, sizeof found);
    return found;
}
static inline I load_words(const int32_t* p) { return (I)load(reinterpret_cast<const float*>(p)); }
static inline void store_words(int32_t* p, I v) { store(reinterpret_cast<float*>(p), (V)v); }

// y of one vector of sums; compiled without fused multiply-add.
template <class Words, class Floats>
static inline Floats finished(Words acc, Words z, Words sum, Floats s, Floats scale, Floats bias) {
    return __builtin_convertvector(acc - z * sum, Floats) * (s * scale) + bias;
}

#include "planes.inl"
#include "quantise.inl"
#include "tiles.inl"
#include "few_rows.inl"
#include "windows.inl"

static int64_t workspace(const Int8Matrix& w, int64_t m) {
    const int64_t few = few_workspace(w), tiles = tiles_workspace(w, m);
    return few > tiles ? few : tiles;
}

static void product(const tk_parallel* p, const Int8Matrix& w, const tk_view& x, const float* bias, int32_t act,
                    const tk_view& y, float* work) {
    if (x.m <= FEW && w.r % LANES == 0) few<Whole>(p, w, x, bias, act, y, work);
    else if (x.m <= FEW / 2 && w.r % 4 == 0) few<Four>(p, w, x, bias, act, y, work);
    else tiles(p, w, x, bias, act, y, work);
}

const Int8Kernels int8 = {LANES, GROUP, workspace, product, windows_workspace, windows};
