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

// Slots side by side whose sums are side by side.
struct Run {
    int64_t slot, place, count;
};

// Groups of sums: the first row of each part, its columns, and where the sums go: single weights in runs, others one by
// one. Rows and columns are counted in numbers of a chunk.
template <int R>
struct DotList {
    int64_t count = 0, runs = 0;  // count: of parts
    Run run[R == 1 ? 2 * DOTS_LIST : 1];
    uint32_t rows[DOTS_LIST], columns[DOTS_LIST * Dots<R>::J];
    int64_t to[DOTS_LIST * Dots<R>::J];  // the place of the first row's sum in grad, -1 for none
    alignas(64) float found[DOTS_LIST * Dots<R>::J * R];
};

// sum + a * the vector at b: the compiler would load that apart.
static inline Sums multiplied_at(Sums sum, Halves a, const Half* b) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "m"(*reinterpret_cast<const Halves*>(b)));
    return sum;
}

// 16 sums over `T` vectors of samples, where T is known to the compiler: a row's own are in registers.
template <int T>
static inline void single_dots(const DotList<1>& list, int64_t g, const Half* dy, const Half* x, Sums* acc) {
    UNROLL for (int h = 0; h < 2; ++h) {
        const Half* const left = dy + list.rows[g + h];
        const uint32_t* const columns = list.columns + (g + h) * 8;
        Halves d[T];
        UNROLL for (int t = 0; t < T; ++t) d[t] = load(left + t * HALVES);
        UNROLL for (int j = 0; j < 8; ++j) acc[h * 8 + j] = _mm512_setzero_ps();
        UNROLL for (int t = 0; t < T; ++t) UNROLL for (int j = 0; j < 8; ++j)
            acc[h * 8 + j] = multiplied_at(acc[h * 8 + j], d[t], x + columns[j] + t * HALVES);
    }
}

template <int R>
static inline void block_dots(const DotList<R>& list, int64_t g, const Half* dy, const Half* x, int64_t width,
                              int64_t chunk, Sums* acc) {
    constexpr int J = Dots<R>::J;
    UNROLL for (int i = 0; i < 16; ++i) acc[i] = _mm512_setzero_ps();
    const Half *left = dy + list.rows[g], *right[J];
    UNROLL for (int j = 0; j < J; ++j) right[j] = x + list.columns[g * J + j];
    for (int64_t m = 0; m < width; m += HALVES) {
        Halves d[R], b[J];
        UNROLL for (int q = 0; q < R; ++q) d[q] = load(left + q * chunk + m);
        UNROLL for (int j = 0; j < J; ++j) b[j] = load(right[j] + m);
        UNROLL for (int j = 0; j < J; ++j) UNROLL for (int q = 0; q < R; ++q)
            acc[j * R + q] = multiplied(acc[j * R + q], d[q], b[j]);
    }
}

// Both operands in chunks of the batch: column n of the chunk from m0 on lies at base + m0 * columns + n * chunk.
struct Chunks {
    const Half *dy, *x;
    int64_t m, chunk, out, in;  // m in whole vectors; the last chunk is filled up, and only its m are multiplied
};

template <int R>
static void find(DotList<R>& list, const Chunks& all, const tk_matrix& w, float* grad) {
    constexpr int J = Dots<R>::J, PARTS = Dots<R>::PARTS;
    if (list.count == 0) return;
    if (list.count % PARTS) {  // the second half of the last group repeats the first
        const int64_t g = list.count++;
        list.rows[g] = list.rows[g - 1];
        for (int j = 0; j < J; ++j) list.columns[g * J + j] = list.columns[(g - 1) * J + j], list.to[g * J + j] = -1;
    }
    uint32_t lo = ~0u, hi = 0;
    for (int64_t f = 0; f < list.count * J; ++f) lo = std::min(lo, list.columns[f]), hi = std::max(hi, list.columns[f]);
    const int64_t each = ceil_div((hi - lo + all.chunk) / HALVES, list.count / PARTS);  // lines of x to fetch ahead
    memset(list.found, 0, sizeof(float) * list.count * J * R);
    for (int64_t m0 = 0; m0 < all.m; m0 += all.chunk) {
        const int64_t width = std::min(all.chunk, all.m - m0);
        const Half *dy = all.dy + m0 * all.out, *x = all.x + m0 * all.in;
        const Half* ahead = x + all.chunk * all.in + lo;
        for (int64_t g = 0; g < list.count; g += PARTS) {
            Sums acc[16];
            if constexpr (R == 1) {
                // Rows of dY, and the next chunk of x, come from the third-level cache (.94 of the time).
                const Half* const later = dy + list.rows[std::min(g + 12, list.count - 1)];
                UNROLL for (int t = 0; t < 4; ++t) __builtin_prefetch(later + t * HALVES);
                for (int64_t line = 0; line < each; ++line, ahead += HALVES) __builtin_prefetch(ahead, 0, 2);
                switch (width / HALVES) {
                    case 4: single_dots<4>(list, g, dy, x, acc); break;
                    case 3: single_dots<3>(list, g, dy, x, acc); break;
                    case 2: single_dots<2>(list, g, dy, x, acc); break;
                    default: single_dots<1>(list, g, dy, x, acc);
                }
            } else {
                block_dots<R>(list, g, dy, x, width, all.chunk, acc);
            }
            float* const found = list.found + g * J * R;
            _mm512_store_ps(found, _mm512_add_ps(_mm512_load_ps(found), across(acc)));
        }
    }
    for (int64_t i = 0; i < list.runs; ++i)
        memcpy(grad + list.run[i].slot, list.found + list.run[i].place, sizeof(float) * list.run[i].count);
    for (int64_t f = 0; list.runs == 0 && f < list.count * J; ++f)
        for (int q = 0; q < R && list.to[f] >= 0; ++q) grad[list.to[f] + q * w.c] = list.found[f * R + q];
    list.count = list.runs = 0;
}

// Single weights of block rows begin..end in one cell of columns, whose number leaves room for any row in the list.
template <class Col>
static void single_cell(const tk_matrix& w, int64_t begin, int64_t end, const Slots* slots, const Chunks& all,
                        float* grad) {
    constexpr int64_t J = Dots<1>::J;
    const Col* cols = static_cast<const Col*>(w.cols);
    DotList<1> list;
    for (int64_t i = begin; i < end; ++i) {
        const Slots& mine = slots[i - begin];
        const int64_t parts = ceil_div(mine.count(), J);
        if (list.count + parts >= DOTS_LIST) find<1>(list, all, w, grad);
        int64_t place = list.count * J;
        const auto take = [&](int64_t s, int64_t s_end) {
            if (s == s_end) return;
            list.run[list.runs++] = {s, place, s_end - s};
            for (; s < s_end; ++s) list.columns[place++] = static_cast<uint32_t>(cols[s] * all.chunk);
        };
        take(mine.a, mine.a_end);
        take(mine.b, mine.b_end);
        for (; place % J; ++place) list.columns[place] = list.columns[place - 1];
        for (int64_t part = 0; part < parts; ++part) list.rows[list.count++] = static_cast<uint32_t>(i * all.chunk);
    }
    find<1>(list, all, w, grad);
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
        const uint32_t left = static_cast<uint32_t>((i * w.r + q0) * all.chunk);
        int64_t f = 0;  // columns of the row so far
        const auto take = [&](int64_t s, int64_t j) {
            if (f % J == 0) {
                if (list.count == DOTS_LIST) find<R>(list, all, w, grad);
                list.rows[list.count++] = left;
            }
            const int64_t place = (list.count - 1) * J + f++ % J;
            list.columns[place] = static_cast<uint32_t>((cols[s] * w.c + j) * all.chunk);
            list.to[place] = (s * w.r + q0) * w.c + j;
        };
        for (int64_t s = mine.a; s < mine.a_end; ++s)
            for (int64_t j = 0; j < w.c; ++j) take(s, j);
        for (int64_t s = mine.b; s < mine.b_end; ++s)
            for (int64_t j = 0; j < w.c; ++j) take(s, j);
        for (int64_t place = (list.count - 1) * J + f % J; f % J; ++f, ++place)  // the last group is filled with its last column
            list.columns[place] = list.columns[place - 1], list.to[place] = -1;
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
    const int64_t in = blocks_across(w) * w.c, out = blocks_down(w) * w.r, chunk = chunk_of(x.m, DOTS_CHUNK);
    const int64_t count = ceil_div(x.m, chunk);
    Half *const px = room.take<Half>(in * count * chunk), *const pdy = room.take<Half>(out * count * chunk);
    const Chunks all{pdy, px, ceil_div(x.m, HALVES) * HALVES, chunk, out, in};
    const int64_t in_parts = ceil_div(in, PART), parts = in_parts + ceil_div(out, PART);
    parallel(p, count * parts, [&](int64_t task) {
        const int64_t m0 = task / parts * chunk, part = task % parts;
        const bool of_x = part < in_parts;
        const int64_t n0 = (of_x ? part : part - in_parts) * PART, n1 = std::min(n0 + PART, of_x ? in : out);
        pack(of_x ? x : dy, m0, chunk, n0, n1, (of_x ? px + m0 * in : pdy + m0 * out) + n0 * chunk);
    });
    each_cell<Col>(p, w, std::max<int64_t>(1, DOTS_COLS / w.c), [&](int64_t begin, int64_t end, const Slots* slots) {
        if (w.r >= 2) blocks_dots<8, Col>(w, begin, end, slots, 0, all, grad);
        else if (w.c > 1) blocks_dots<1, Col>(w, begin, end, slots, 0, all, grad);
        else single_cell<Col>(w, begin, end, slots, all, grad);
    });
}
