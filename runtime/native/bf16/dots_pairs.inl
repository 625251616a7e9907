// dW of other blocks: the batch is the vector axis, and 16 sums at once are added across lanes. Single weights share no
// load of x, so x must come from the first-level cache: a cell is so few columns that a chunk of each stays there.

static constexpr int64_t DOTS_CHUNK = 128;  // samples
static constexpr int64_t DOTS_COLS = 192;   // columns of a cell: more than fits, as long rows of slots pay
static constexpr int64_t DOTS_LIST = 1024;  // groups in a list, at most

// R rows times J columns make 16 sums; two halves, with rows of their own, where R is 1.
template <int R>
struct Dots {
    static constexpr int J = R == 1 ? 8 : 16 / R, PARTS = R == 1 ? 2 : 1;
};

// Groups of sums: the first row of each part, its columns, and where the sums go.
template <int R>
struct DotList {
    int64_t count = 0;  // parts
    int32_t rows[DOTS_LIST], columns[DOTS_LIST * Dots<R>::J];
    int64_t to[DOTS_LIST * Dots<R>::J];  // the place of the first row's sum in grad, -1 for none
    alignas(64) float found[DOTS_LIST * Dots<R>::J * R];
};

// 16 sums over `T` vectors of samples, where T is known to the compiler: a row's own are in registers.
template <int T>
static inline void single_dots(const DotList<1>& list, int64_t g, const Half* dy, const Half* x, Sums* acc) {
    UNROLL for (int h = 0; h < 2; ++h) {
        Halves d[T];
        UNROLL for (int t = 0; t < T; ++t) d[t] = load(dy + list.rows[g + h] * (T * HALVES) + t * HALVES);
        const Half* at[8];
        UNROLL for (int j = 0; j < 8; ++j) at[j] = x + list.columns[(g + h) * 8 + j] * (T * HALVES);
        UNROLL for (int j = 0; j < 8; ++j) acc[h * 8 + j] = multiplied(_mm512_setzero_ps(), d[0], load(at[j]));
        UNROLL for (int t = 1; t < T; ++t) UNROLL for (int j = 0; j < 8; ++j) {
            acc[h * 8 + j] = multiplied(acc[h * 8 + j], d[t], load(at[j] + t * HALVES));
            __asm__("" : "+v"(acc[h * 8 + j]));  // the chains stay side by side
        }
    }
}

template <int R>
static inline void block_dots(const DotList<R>& list, int64_t g, const Half* dy, const Half* x, int64_t width,
                              Sums* acc) {
    constexpr int J = Dots<R>::J;
    UNROLL for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
    const Half *left = dy + list.rows[g] * width, *right[J];
    UNROLL for (int j = 0; j < J; ++j) right[j] = x + list.columns[g * J + j] * width;
    for (int64_t m = 0; m < width; m += HALVES) {
        Halves d[R], b[J];
        UNROLL for (int q = 0; q < R; ++q) d[q] = load(left + q * width + m);
        UNROLL for (int j = 0; j < J; ++j) b[j] = load(right[j] + m);
        UNROLL for (int j = 0; j < J; ++j) UNROLL for (int q = 0; q < R; ++q)
            acc[j * R + q] = multiplied(acc[j * R + q], d[q], b[j]);
    }
}

// Both operands in chunks of the batch: column n of the chunk from m0 on lies at base + m0 * columns + n * width.
struct Chunks {
    const Half *dy, *x;
    int64_t m, chunk, out, in;  // m in whole vectors
};

template <int R>
static void find(DotList<R>& list, const Chunks& all, const tk_matrix& w, float* grad) {
    constexpr int J = Dots<R>::J, PARTS = Dots<R>::PARTS;
    if (list.count % PARTS) {  // the second half of the last group repeats the first
        const int64_t g = list.count++;
        list.rows[g] = list.rows[g - 1];
        for (int j = 0; j < J; ++j) list.columns[g * J + j] = list.columns[(g - 1) * J + j], list.to[g * J + j] = -1;
    }
    memset(list.found, 0, sizeof(float) * list.count * J * R);
    for (int64_t m0 = 0; m0 < all.m; m0 += all.chunk) {
        const int64_t width = std::min(all.chunk, all.m - m0);
        const Half *dy = all.dy + m0 * all.out, *x = all.x + m0 * all.in;
        for (int64_t g = 0; g < list.count; g += PARTS) {
            Sums acc[16];
            if constexpr (R == 1) {
                switch (width / HALVES) {
                    case 4: single_dots<4>(list, g, dy, x, acc); break;
                    case 3: single_dots<3>(list, g, dy, x, acc); break;
                    case 2: single_dots<2>(list, g, dy, x, acc); break;
                    default: single_dots<1>(list, g, dy, x, acc);
                }
            } else {
                block_dots<R>(list, g, dy, x, width, acc);
            }
            float* const found = list.found + g * J * R;
            _mm512_store_ps(found, _mm512_add_ps(_mm512_load_ps(found), across(acc)));
        }
    }
    for (int64_t f = 0; f < list.count * J; ++f)
        for (int q = 0; q < R && list.to[f] >= 0; ++q) grad[list.to[f] + q * w.c] = list.found[f * R + q];
    list.count = 0;
}

// R rows of every block from row q0 on, in one cell of columns.
template <int R, class Col>
static void cell_dots(const tk_matrix& w, int64_t begin, int64_t end, const Slots* slots, int q0, const Chunks& all,
                      float* grad) {
    constexpr int J = Dots<R>::J;
    const Col* cols = static_cast<const Col*>(w.cols);
    DotList<R> list;
    for (int64_t i = begin; i < end; ++i) {
        const Slots& mine = slots[i - begin];
        const int64_t flat = mine.count() * w.c;
        for (int64_t f = 0; f < flat; f += J) {
            if (list.count == DOTS_LIST) find<R>(list, all, w, grad);
            const int64_t g = list.count++;
            list.rows[g] = static_cast<int32_t>(i * w.r + q0);
            for (int64_t j = 0; j < J; ++j) {
                const int64_t here = std::min(f + j, flat - 1), s = mine[here / w.c];
                list.columns[g * J + j] = static_cast<int32_t>(cols[s] * w.c + here % w.c);
                list.to[g * J + j] = f + j < flat ? (s * w.r + q0) * w.c + here % w.c : -1;
            }
        }
    }
    find<R>(list, all, w, grad);
}

template <int R, class Col>
static inline void blocks_dots(const tk_matrix& w, int64_t begin, int64_t end, const Slots* slots, int q0,
                               const Chunks& all, float* grad) {
    for (; q0 + R <= w.r; q0 += R) cell_dots<R, Col>(w, begin, end, slots, q0, all, grad);
    if constexpr (R > 1) {
        if (q0 < w.r) blocks_dots<R / 2, Col>(w, begin, end, slots, q0, all, grad);
    }
}

template <class Col>
static void sddmm_dots(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad,
                       Room& room) {
    const int64_t in = blocks_across(w) * w.c, out = blocks_down(w) * w.r, m = ceil_div(x.m, HALVES) * HALVES;
    Half *const px = room.take<Half>(in * m), *const pdy = room.take<Half>(out * m);
    const Chunks all{pdy, px, m, chunk_of(x.m, DOTS_CHUNK), out, in};
    const int64_t in_parts = ceil_div(in, PART), parts = in_parts + ceil_div(out, PART);
    parallel(p, ceil_div(m, all.chunk) * parts, [&](int64_t task) {
        const int64_t m0 = task / parts * all.chunk, width = std::min(all.chunk, m - m0), part = task % parts;
        const bool of_x = part < in_parts;
        const int64_t n0 = (of_x ? part : part - in_parts) * PART, n1 = std::min(n0 + PART, of_x ? in : out);
        pack(of_x ? x : dy, m0, width, n0, n1, (of_x ? px + m0 * in : pdy + m0 * out) + n0 * width);
    });
    each_cell<Col>(p, w, std::max<int64_t>(1, DOTS_COLS / w.c), [&](int64_t begin, int64_t end, const Slots* slots) {
        w.r >= 2 ? blocks_dots<8, Col>(w, begin, end, slots, 0, all, grad)
                 : blocks_dots<1, Col>(w, begin, end, slots, 0, all, grad);
    });
}
