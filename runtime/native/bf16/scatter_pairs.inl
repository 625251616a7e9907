// dX = dY W_A where a block has more rows than columns: a block row's dY is in registers, in pairs of rows, and each
// chosen column of dX is added to in float32.

static constexpr int64_t SUMS_BYTES = 64 * 1024;  // of the columns of dX that are added to at once

// A's values with their rows in pairs: [slot][column][pairs][2]. A single column's lie so already if the rows are even.
static const Half* row_pairs(const tk_parallel* p, const tk_matrix& w, Room& room, const int64_t*& first_slot) {
    const int64_t rows = blocks_down(w), pairs = (w.r + 1) / 2;
    if (w.c == 1 && w.r % 2 == 0) {
        first_slot = w.row_ptr;
        return values(w, 0);
    }
    int64_t* begin = room.take<int64_t>(rows + 1);
    Half* made = room.take<Half>(taken(w) * w.c * pairs * 2);
    begin[0] = 0;
    for (int64_t i = 0; i < rows; ++i) begin[i + 1] = begin[i] + w.row_fwd[i] - w.row_ptr[i];
    const int64_t step = ceil_div(rows, 8 * p->threads);
    parallel(p, ceil_div(rows, step), [&](int64_t task) {
        for (int64_t i = task * step; i < std::min(rows, (task + 1) * step); ++i) {
            Half* to = made + begin[i] * w.c * pairs * 2;
            for (int64_t s = w.row_ptr[i]; s < w.row_fwd[i]; ++s)
                for (int64_t j = 0; j < w.c; ++j)
                    for (int64_t q = 0; q < 2 * pairs; ++q) *to++ = q < w.r ? values(w, s)[q * w.c + j] : 0;
        }
    });
    first_slot = begin;
    return made;
}

static int64_t row_pairs_bytes(const tk_matrix& w) {
    return taken(w) * w.c * (w.r + 1) * 2 + (blocks_down(w) + 1) * 8 + 2 * 64;
}

// P pairs of rows times T x 32 samples, for the columns of slots s..end; out is [column][T x 32] from column k0 on.
template <int P, int T, class Col>
static inline void scatter(const tk_matrix& w, int64_t s, int64_t end, const Half* weights, int64_t pairs,
                           const Half* dy, int64_t last, float* out) {
    const Col* cols = static_cast<const Col*>(w.cols);
    Halves d[P][2 * T];
    UNROLL for (int q = 0; q < P; ++q) UNROLL for (int t = 0; t < T; ++t) {
        const Halves a = load(dy + 2 * q * TILE + t * HALVES);
        const Halves b = 2 * q + 1 < last ? load(dy + (2 * q + 1) * TILE + t * HALVES) : none();
        d[q][2 * t] = low(a, b), d[q][2 * t + 1] = high(a, b);
    }
    for (; s < end; ++s) {
        float* to = out + static_cast<int64_t>(cols[s]) * w.c * (T * HALVES);
        for (int j = 0; j < w.c; ++j, to += T * HALVES, weights += pairs * 2) {
            Sums sum[2 * T];
            UNROLL for (int t = 0; t < 2 * T; ++t) sum[t] = _mm512_loadu_ps(to + t * LANES);
            UNROLL for (int q = 0; q < P; ++q) {
                const Halves v = splat(weights + 2 * q);
                UNROLL for (int t = 0; t < 2 * T; ++t) sum[t] = multiplied(sum[t], v, d[q][t]);
            }
            UNROLL for (int t = 0; t < 2 * T; ++t) _mm512_storeu_ps(to + t * LANES, sum[t]);
        }
    }
}

// The block's pairs of rows in groups of P, then of half as many, down to one.
template <int P, int T, class Col>
static inline void scatter_block(const tk_matrix& w, int64_t s, int64_t end, const Half* weights, int64_t pair,
                                 const Half* dy, float* out) {
    const int64_t pairs = (w.r + 1) / 2;
    for (; pair + P <= pairs; pair += P)
        scatter<P, T, Col>(w, s, end, weights + 2 * pair, pairs, dy + 2 * pair * TILE, w.r - 2 * pair, out);
    if constexpr (P > 1) {
        if (pair < pairs) scatter_block<P / 2, T, Col>(w, s, end, weights, pair, dy, out);
    }
}

template <int P, int T, class Col>
static void scatter_tiles(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx,
                          const tk_bf16_after* after, Room& room) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t* first_slot;
    const Half* const weights = row_pairs(p, w, room, first_slot);
    const int64_t rows = blocks_down(w), inputs = rows * w.r, pairs = (w.r + 1) / 2, wide = T * HALVES;
    const int64_t tiles = ceil_div(dy.m, TILE), one = inputs * TILE;
    const int64_t cell = std::max<int64_t>(1, SUMS_BYTES / (4 * wide * w.c)), cells = ceil_div(blocks_across(w), cell);
    Half* const packed = room.take<Half>(tiles * one);
    tile_by_tile(
        p, tiles, ceil_div(inputs, PART), cells,
        [&](int64_t tile, int64_t part) {
            const int64_t n0 = part * PART;
            pack(dy, tile * TILE, TILE, n0, std::min(n0 + PART, inputs), packed + tile * one + n0 * TILE);
        },
        [&](int64_t tile, int64_t k) {
            alignas(64) float sums[SUMS_BYTES / 4 + 64 * HALVES * T];
            alignas(64) Half own[SUMS_BYTES / 4 + 64 * HALVES * T];
            const int64_t k0 = k * cell, k1 = std::min(k0 + cell, blocks_across(w)), count = (k1 - k0) * w.c;
            for (int64_t half = 0; half < TILE && tile * TILE + half < dy.m; half += wide) {
                memset(sums, 0, sizeof(float) * count * wide);
                for (int64_t i = 0; i < rows; ++i) {
                    const Col *begin = cols + w.row_ptr[i], *end = cols + w.row_fwd[i];
                    const int64_t s = cells == 1 ? 0 : std::lower_bound(begin, end, k0) - begin;
                    const int64_t e = cells == 1 ? end - begin : std::lower_bound(begin + s, end, k1) - begin;
                    if (s == e) continue;
                    scatter_block<P, T, Col>(w, w.row_ptr[i] + s, w.row_ptr[i] + e,
                                             weights + (first_slot[i] + s) * w.c * pairs * 2, 0,
                                             packed + tile * one + i * w.r * TILE + half, sums - k0 * w.c * wide);
                }
                for (int64_t n = 0; n < count * wide; n += HALVES)
                    store(own + n, rounded(_mm512_loadu_ps(sums + n), _mm512_loadu_ps(sums + n + LANES)));
                unpack(own, tile * TILE + half, wide, k0 * w.c, k1 * w.c, dx);
            }
        },
        [&](int64_t tile) { activate_tile(after, dx, tile * TILE); });
}
