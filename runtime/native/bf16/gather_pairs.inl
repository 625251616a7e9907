// Y = X W^T + bias for weights in pairs: each tile of samples in turn, a group's outputs gather the chosen inputs.

static constexpr int64_t OUTPUTS = 128;  // outputs in one task, about: they stay in the first-level cache
static constexpr int64_t CHUNK = 64;     // pairs whose inputs are side by side in the first-level cache

// In order of their pairs: both[pair][t][sample] for the halves t = low, high of 32 samples, twice.
static inline void bring(const int32_t* from, int64_t pairs, const Half* x, Half* both) {
    for (int64_t p = 0; p < pairs; ++p, from += 2, both += 2 * TILE) {
        const Half *one = x + from[0] * TILE, *other = x + from[1] * TILE;
        UNROLL for (int t = 0; t < 2; ++t) {
            const Halves a = load(one + t * HALVES), b = load(other + t * HALVES);
            store(both + t * TILE, low(a, b));
            store(both + t * TILE + HALVES, high(a, b));
        }
    }
}

// Outputs in lanes: VN vectors of a group's outputs times JN samples. `sums` [samples][outputs of this call] holds what
// earlier chunks found; the last chunk writes y [sample][stride].
template <int VN, int JN, bool ADJACENT>
static inline void outputs_in_lanes(const Half* weights, int64_t width, int64_t pairs, const int32_t* from, const Half* x,
                                    float* sums, bool begins, bool ends, const float* bias, Half* y, int64_t stride) {
    for (int64_t j0 = 0; j0 < TILE; j0 += JN) {
        Sums acc[JN][VN];
        float* const kept = sums + j0 * VN * LANES;
        UNROLL for (int j = 0; j < JN; ++j) UNROLL for (int v = 0; v < VN; ++v)
            acc[j][v] = _mm512_loadu_ps(begins ? bias + v * LANES : kept + (j * VN + v) * LANES);
        for (int64_t p = 0; p < pairs; ++p) {
            const Half* const both = x + (ADJACENT ? from[2 * p] : 2 * p) * TILE + 2 * j0;
            Halves w[VN];
            UNROLL for (int v = 0; v < VN; ++v) w[v] = load(weights + (p * width + v * LANES) * 2);
            UNROLL for (int j = 0; j < JN; ++j) {
                const Halves same = splat(both + 2 * j);
                UNROLL for (int v = 0; v < VN; ++v) acc[j][v] = multiplied(acc[j][v], w[v], same);
            }
        }
        UNROLL for (int j = 0; j < JN; ++j) {
            const int64_t t = (j0 + j) / LANES;
            Half* const to = y + (ADJACENT ? j0 + j : t / 2 * HALVES + sample(t % 2, (j0 + j) % LANES)) * stride;
            if (!ends) {
                UNROLL for (int v = 0; v < VN; ++v) _mm512_storeu_ps(kept + (j * VN + v) * LANES, acc[j][v]);
            } else if constexpr (VN == 2) {
                store(to, in_order(acc[j][0], acc[j][1]));
            } else {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(acc[j][0]));
            }
        }
    }
}

// A task's groups, where a group has whole vectors of outputs. Pairs that lie side by side are read where they are.
template <bool ADJACENT>
static void gather_lanes(const Pairs& w, int64_t g0, int64_t g1, const Half* x, int64_t m0, const float* bias,
                         const tk_view& y) {
    constexpr int64_t MOST = OUTPUTS + 64;
    alignas(64) Half both[ADJACENT ? 1 : CHUNK * TILE * 2], own[TILE * MOST];
    alignas(64) float sums[ADJACENT ? 1 : 64 * TILE], start[64] = {};
    const int64_t wide = (g1 - g0) * w.width, n0 = g0 * w.width;
    const bool inside = n0 + wide <= y.n && m0 + TILE <= y.m;  // then results go straight to their place
    Half* const out = inside ? row(y, m0) + n0 : own;
    const int64_t stride = inside ? y.stride_m : wide;
    for (int64_t g = g0; g < g1; ++g) {
        for (int64_t n = 0; bias && n < w.width; ++n) start[n] = g * w.width + n < y.n ? bias[g * w.width + n] : 0.0f;
        for (int64_t p = w.begin[g], end = w.begin[g + 1]; ; p += CHUNK) {
            const int64_t count = ADJACENT ? end - p : std::min(CHUNK, end - p);
            const bool begins = p == w.begin[g], ends = p + count == end;
            const int32_t* const from = w.from + 2 * p;
            if (!ADJACENT) bring(from, count, x, both);
            const Half *const weights = w.weights + p * w.width * 2, *const in = ADJACENT ? x : both;
            Half* const to = out + (g - g0) * w.width;
            const auto product = [&](auto lanes, int64_t n) {
                constexpr int VN = lanes;
                outputs_in_lanes<VN, 16 / VN, ADJACENT>(weights + n * 2, w.width, count, from, in, sums + n * TILE, begins, ends,
                                                        start + n, to + n, stride);
            };
            int64_t n = 0;
            for (; n + 2 * LANES <= w.width; n += 2 * LANES) product(std::integral_constant<int, 2>(), n);
            if (n < w.width) product(std::integral_constant<int, 1>(), n);
            if (ends) break;
        }
    }
    const int64_t count = std::min(y.n - n0, wide);
    for (int64_t m = 0; !inside && m < TILE && m0 + m < y.m; ++m) memcpy(row(y, m0 + m) + n0, own + m * wide, sizeof(Half) * count);
}

// Samples in lanes: R of a group's outputs times the tile.
template <int R, bool ADJACENT>
static inline void samples_in_lanes(const Pairs& w, int64_t g, int64_t n, const Half* x, const float* bias, Half* out) {
    Sums acc[R][4];
    UNROLL for (int q = 0; q < R; ++q) UNROLL for (int t = 0; t < 4; ++t) acc[q][t] = _mm512_set1_ps(bias[q]);
    const int32_t* from = w.from + 2 * w.begin[g];
    const Half* weights = w.weights + (w.begin[g] * w.width + n) * 2;
    for (int64_t p = w.begin[g]; p < w.begin[g + 1]; ++p, from += 2, weights += w.width * 2) {
        const Half *one = x + from[0] * TILE, *other = x + from[1] * TILE;
        Halves both[4];
        UNROLL for (int t = 0; t < 2; ++t) {
            const Halves a = load(one + t * HALVES), b = load(other + t * HALVES);
            if (ADJACENT) both[t] = a, both[t + 2] = b;
            else both[2 * t] = low(a, b), both[2 * t + 1] = high(a, b);
        }
        UNROLL for (int q = 0; q < R; ++q) {
            const Halves v = splat(weights + 2 * q);
            UNROLL for (int t = 0; t < 4; ++t) acc[q][t] = multiplied(acc[q][t], v, both[t]);
        }
    }
    UNROLL for (int q = 0; q < R; ++q) UNROLL for (int t = 0; t < 2; ++t)
        store(out + q * TILE + t * HALVES, (ADJACENT ? in_order : rounded)(acc[q][2 * t], acc[q][2 * t + 1]));
}

template <int R, bool ADJACENT>
static inline void group(const Pairs& w, int64_t g, int64_t n, const Half* x, const float* bias, Half* out) {
    for (; n + R <= w.width; n += R) samples_in_lanes<R, ADJACENT>(w, g, n, x, bias + n, out + n * TILE);
    if constexpr (R > 1) {
        if (n < w.width) group<R / 2, ADJACENT>(w, g, n, x, bias, out);
    }
}

template <bool ADJACENT>
static void gather_samples(const Pairs& w, int64_t g0, int64_t g1, const Half* x, int64_t m0, const float* bias,
                           const tk_view& y) {
    alignas(64) Half own[(OUTPUTS + 64) * TILE];
    float start[64] = {};
    for (int64_t g = g0; g < g1; ++g) {
        for (int64_t n = 0; bias && n < w.width; ++n) start[n] = g * w.width + n < y.n ? bias[g * w.width + n] : 0.0f;
        group<4, ADJACENT>(w, g, 0, x, start, own + (g - g0) * w.width * TILE);
    }
    unpack(own, m0, TILE, g0 * w.width, g1 * w.width, y);
}

// pack_part(tile, part) for every part of every tile, then compute(tile, range), then finish(tile): tile by tile where
// there are tiles enough for all threads, as a packed tile and its result then are still in the cache.
template <class Pack, class Compute, class Finish>
static void tile_by_tile(const tk_parallel* p, int64_t tiles, int64_t parts, int64_t ranges, const Pack& pack_part,
                         const Compute& compute, const Finish& finish) {
    if (tiles >= 4 * p->threads) {
        parallel(p, tiles, [&](int64_t tile) {
            for (int64_t part = 0; part < parts; ++part) pack_part(tile, part);
            for (int64_t range = 0; range < ranges; ++range) compute(tile, range);
            finish(tile);
        });
    } else {
        parallel(p, tiles * parts, [&](int64_t task) { pack_part(task / parts, task % parts); });
        parallel(p, tiles * ranges, [&](int64_t task) { compute(task / ranges, task % ranges); });
        parallel(p, tiles, finish);
    }
}

static void gather(const tk_parallel* p, const Pairs& w, const tk_view& x, const float* bias, const tk_view& y,
                   const tk_bf16_after* after, Room& room) {
    const int64_t tiles = ceil_div(x.m, TILE), one = (w.inputs + 1) * TILE;
    const int64_t columns = w.inputs + (w.adjacent ? 0 : 1);  // the last is zero: no pair that lies side by side needs it
    Half* const packed = room.take<Half>(tiles * one);
    const int64_t step = w.width < OUTPUTS ? OUTPUTS / w.width : 1;
    const auto lanes = w.adjacent ? gather_lanes<true> : gather_lanes<false>;
    const auto samples = w.adjacent ? gather_samples<true> : gather_samples<false>;
    tile_by_tile(
        p, tiles, ceil_div(columns, PART), ceil_div(w.groups, step),
        [&](int64_t tile, int64_t part) {
            const int64_t n0 = part * PART, n1 = std::min(n0 + PART, columns);
            (w.adjacent ? pack_columns : pack)(x, tile * TILE, TILE, n0, n1, packed + tile * one + n0 * TILE);
        },
        [&](int64_t tile, int64_t range) {
            const int64_t g0 = range * step, g1 = std::min(g0 + step, w.groups);
            (w.width % LANES == 0 ? lanes : samples)(w, g0, g1, packed + tile * one, tile * TILE, bias, y);
        },
        [&](int64_t tile) { activate_tile(after, y, tile * TILE); });
}
