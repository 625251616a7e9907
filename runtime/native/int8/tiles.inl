// Many rows of activations: tiles of T vectors of samples. A column of a tile is a line: one vector of words if T is 1,
// else registers of narrow numbers, each for GROUP vectors of samples; the last register may be full in part.

static constexpr int64_t PART = 256;  // columns that one task packs
static constexpr int64_t RANGE = 64;  // rows of y in one task, at least those of a block

template <int T>
static constexpr int LINE = T == 1 ? LANES : (T + GROUP - 1) / GROUP * LANES;  // words of a line

struct Samples {  // of a tile
    const int32_t *lines, *z;
    const float* s;
};

// The words of GROUP columns, T vectors of samples.
template <int T>
static inline void operands(const Samples& in, const int32_t* cols, I* x) {
    const int32_t* from[GROUP];
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g) from[g] = in.lines + static_cast<int64_t>(cols[g]) * LINE<T>;
    if constexpr (T == 1) {
        x[0] = load_words(from[0]);
#pragma GCC unroll 4
        for (int g = 1; g < GROUP; ++g) x[0] |= load_words(from[g]) << (g * BITS);
    } else {
        constexpr int H = T < GROUP ? T : GROUP;
#pragma GCC unroll 8
        for (int t = 0; t < T; t += GROUP) {
            I v[GROUP];
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; ++g) v[g] = load_words(from[g] + t / GROUP * LANES);
            interleave(v);
#pragma GCC unroll 4
            for (int g = 0; g < H; ++g) x[t + g] = v[g];
        }
    }
}

// T vectors of sums in the order of the samples.
template <int T>
static inline void in_order(const Samples&, I*) {}

#include "rows_in_lanes.inl"
#include "samples_in_lanes.inl"

template <int T>
struct Tiles {
    static constexpr int64_t W = T * LANES;
    const Int8Matrix& w;
    const tk_view& x;
    const int64_t count, parts, columns;
    float *floats, *ranges, *s;  // [tile][columns][W], [tile][part][2][W], [tile][W]
    int32_t *z, *lines;          // [tile][W], [tile][columns][LINE]

    Tiles(const Int8Matrix& w, const tk_view& x, float* work)
        : w(w), x(x), count(ceil_div(x.m, W)), parts(ceil_div(w.columns, PART)), columns(w.columns) {
        floats = work;
        ranges = floats + count * columns * W;
        s = ranges + count * parts * 2 * W;
        z = reinterpret_cast<int32_t*>(s + count * W);
        lines = z + count * W;
    }
    static int64_t floats_needed(const Int8Matrix& w, int64_t m) {
        return ceil_div(m, W) * (w.columns * (W + LINE<T>) + (ceil_div(w.columns, PART) + 1) * 2 * W);
    }

    // A part's columns, samples side by side, and their range.
    void gather(int64_t tile, int64_t part) const {
        const int64_t n0 = part * PART, n1 = n0 + PART < columns ? n0 + PART : columns;
        float* const out = floats + (tile * columns + n0) * W;
        pack(x, tile * W, W, n0, n1, out);
        Range range[T];
        for (int64_t i = 0; i < n1 - n0; ++i)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) range[t].add(load(out + i * W + t * LANES));
        float* const to = ranges + (tile * parts + part) * 2 * W;
        for (int t = 0; t < T; ++t) {
            store(to + t * LANES, range[t].lo + range[t].bad);
            store(to + W + t * LANES, range[t].hi + range[t].bad);
        }
    }

    // The lines of a part; the first part writes the scales down.
    void quantise(int64_t tile, int64_t part) const {
        constexpr int G = T == 1 ? 1 : GROUP;  // vectors that make a register of a line
        constexpr int H = T < G ? T : G;       // those that there are
        const int64_t n0 = part * PART, n1 = n0 + PART < columns ? n0 + PART : columns;
        for (int t = 0; t < T; t += G) {
            Scale scale[G];
            for (int g = 0; g < H; ++g) {
                scale[g] = found(tile, t + g);
                if (part > 0) continue;
                store(s + tile * W + (t + g) * LANES, scale[g].s);
                store_words(z + tile * W + (t + g) * LANES, scale[g].z);
            }
            for (int64_t n = n0; n < n1; ++n) {
                const float* const from = floats + (tile * columns + n) * W + t * LANES;
                int32_t* const to = lines + (tile * columns + n) * LINE<T> + t / G * LANES;
                I q[G] = {};
#pragma GCC unroll 4
                for (int g = 0; g < H; ++g) q[g] = scale[g].quantised(load(from + g * LANES));
                if constexpr (T == 1) {
                    store_words(to, q[0]);
                } else {
                    store_words(to, narrow(q));
                }
            }
        }
    }

    // The scale of one vector of samples, from the ranges of all parts.
    Scale found(int64_t tile, int t) const {
        Range range;
        for (int64_t part = 0; part < parts; ++part) {
            const float* const from = ranges + (tile * parts + part) * 2 * W + t * LANES;
            range.add(load(from));
            range.add(load(from + W));
        }
        return Scale(range);
    }

    // Asks for the lines of y that compute will write, so that they arrive meanwhile. If y is in no cache, waiting for
    // them is a quarter of a product with blocks of 16 x 1, and this saves a third of the wait.
    static void claim(int64_t m0, int64_t n0, int64_t n1, const tk_view& y) {
        constexpr int64_t CACHE_LINE = 16;
        if (y.stride_n != 1) return;
        for (int64_t m = m0; m < m0 + W && m < y.m; ++m)
            for (int64_t n = n0; n < n1 && n < y.n; n += CACHE_LINE) __builtin_prefetch(y.data + m * y.stride_m + n, 1);
    }

    // Units first .. end of y.
    void compute(int64_t tile, int64_t first, int64_t end, const float* bias, int32_t act, const tk_view& y) const {
        alignas(64) float own[RANGE * W];
        const Samples in{lines + tile * columns * LINE<T>, z + tile * W, s + tile * W};
        const int64_t n0 = first * w.r, n1 = end * w.r;
        claim(tile * W, n0, n1, y);
        if (w.r % LANES == 0) {
            Gathered<T> gathered;
            for (int64_t unit = first; unit < end; ++unit)
                lanes_unit<T>(w, unit, in, bias, gathered, own + unit * w.r - n0, n1 - n0);
            activate(act, own, (n1 - n0) * W);
            copy_lanes(own, tile * W, W, n0, n1, y);
        } else {
            for (int64_t unit = first; unit < end; ++unit)
                unit_rows<T, T == 1 ? 2 * ROWS : ROWS>(w, unit, 0, in, bias, {own + (unit * w.r - n0) * W, W});
            activate(act, own, (n1 - n0) * W);
            unpack(own, tile * W, W, n0, n1, y);
        }
    }
};

template <int T>
static void run_tiles(const tk_parallel* p, const Int8Matrix& w, const tk_view& x, const float* bias, int32_t act,
                      const tk_view& y, float* work) {
    const Tiles<T> tiles(w, x, work);
    const int64_t units = RANGE / w.r, ranges = ceil_div(w.units, units);
    const auto compute = [&](int64_t tile, int64_t range) {
        const int64_t first = range * units;
        tiles.compute(tile, first, first + units < w.units ? first + units : w.units, bias, act, y);
    };
    if (tiles.count >= 4 * p->threads) {  // one task does all for its tile, while that is in the cache
        parallel(p, tiles.count, [&](int64_t tile) {
            for (int64_t part = 0; part < tiles.parts; ++part) tiles.gather(tile, part);
            for (int64_t part = 0; part < tiles.parts; ++part) tiles.quantise(tile, part);
            for (int64_t range = 0; range < ranges; ++range) compute(tile, range);
        });
    } else {
        const int64_t parts = tiles.parts;
        parallel(p, tiles.count * parts, [&](int64_t task) { tiles.gather(task / parts, task % parts); });
        parallel(p, tiles.count * parts, [&](int64_t task) { tiles.quantise(task / parts, task % parts); });
        // A range's weights serve all tiles one after the other, while they are in the cache.
        parallel(p, tiles.count * ranges, [&](int64_t task) { compute(task % tiles.count, task / tiles.count); });
    }
}

// Vectors of samples in a tile: 1, 2 or 4.
static inline int tile_width(const Int8Matrix& w, int64_t m) {
    return m <= LANES ? 1 : m <= 2 * LANES ? 2 : w.r < 4 && m > WIDE * LANES ? WIDE_FEW : WIDE;
}

static int64_t tiles_workspace(const Int8Matrix& w, int64_t m) {
    switch (tile_width(w, m)) {
        case 1: return Tiles<1>::floats_needed(w, m);
        case 2: return Tiles<2>::floats_needed(w, m);
        default: return Tiles<4>::floats_needed(w, m);
    }
}

static void tiles(const tk_parallel* p, const Int8Matrix& w, const tk_view& x, const float* bias, int32_t act,
                  const tk_view& y, float* work) {
    switch (tile_width(w, x.m)) {
        case 1: return run_tiles<1>(p, w, x, bias, act, y, work);
        case 2: return run_tiles<2>(p, w, x, bias, act, y, work);
        default: return run_tiles<4>(p, w, x, bias, act, y, work);
    }
}
