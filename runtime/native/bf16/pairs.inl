// A's values as the gathering products read them: for every group of `width` outputs the chosen inputs in pairs, and for
// each pair and output the two weights side by side. Of a weight's own blocks the outputs are its rows; transposed, its
// columns. It is made at every call, as the values change at every step: few microseconds beside the product.

struct Pairs {
    int64_t groups, width;
    int64_t inputs;        // columns of packed activations; the column after them is zero
    const int64_t* begin;  // [groups + 1]
    const int32_t* from;   // [pairs][2] inputs; an odd number of them ends with `inputs`, whose weight is zero
    const Half* weights;   // [pairs][width][2]
    bool adjacent;         // whether each pair is two columns side by side, the first of even number
};

static inline int64_t blocks_down(const tk_matrix& w) { return ceil_div(w.rows, w.r); }
static inline int64_t blocks_across(const tk_matrix& w) { return ceil_div(w.columns, w.c); }
static inline const Half* values(const tk_matrix& w, int64_t slot) {
    return reinterpret_cast<const Half*>(w.values) + slot * w.r * w.c;
}

// Blocks in A.
static int64_t taken(const tk_matrix& w) {
    int64_t count = 0;
    for (int64_t i = 0; i < blocks_down(w); ++i) count += w.row_fwd[i] - w.row_ptr[i];
    return count;
}

// Whether dX is a gathering product with W_A transposed: not where many rows of a block would be read for few columns.
static inline bool gathers_transposed(const tk_matrix& w) { return w.c >= w.r || w.c % LANES == 0; }

static inline int64_t most_pairs(const tk_matrix& w, bool transposed) {
    return (taken(w) * (transposed ? w.r : w.c) + (transposed ? blocks_across(w) : blocks_down(w))) / 2 + 1;
}

// Parts of the rows that count and write their columns side by side; the result is the same for any number.
static inline int64_t parts_of(const tk_parallel* p, const tk_matrix& w) {
    return std::min<int64_t>(p->threads, blocks_down(w));
}

// Scratch, handed out piece by piece.
struct Room {
    char* next;

    template <class T>
    T* take(int64_t count) {
        T* const here = reinterpret_cast<T*>(next);
        next += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        return here;
    }
};

static int64_t pairs_bytes(const tk_parallel* p, const tk_matrix& w, bool transposed) {
    const int64_t pairs = most_pairs(w, transposed), groups = transposed ? blocks_across(w) : blocks_down(w);
    const int64_t counts = transposed ? parts_of(p, w) * groups * 4 : 0;
    return pairs * (8 + 4 * (transposed ? w.c : w.r)) + (groups + 1) * 8 + counts + 4 * 64;
}

// to[q] = a[q * step], b[q * step]; without b, a zero.
template <int STEP>
static inline void put_pair(const Half* a, const Half* b, int64_t step, int64_t count, Half* to) {
    if (STEP) step = STEP;
    if (!b) {
        for (int64_t q = 0; q < count; ++q) to[2 * q] = a[q * step], to[2 * q + 1] = 0;
        return;
    }
    int64_t q = 0;
    if (STEP == 1)
        for (; q + HALVES <= count; q += HALVES) {
            const Halves one = load(a + q), other = load(b + q);
            store(to + 2 * q, first_pairs(one, other)), store(to + 2 * q + HALVES, last_pairs(one, other));
        }
    for (; q < count; ++q) to[2 * q] = a[q * step], to[2 * q + 1] = b[q * step];
}

template <class Col>
static Pairs pairs_of(const tk_parallel* p, const tk_matrix& w, Room& room) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t groups = blocks_down(w), most = most_pairs(w, false);
    int64_t* begin = room.take<int64_t>(groups + 1);
    int32_t* from = room.take<int32_t>(2 * most);
    Half* weights = room.take<Half>(most * w.r * 2);
    begin[0] = 0;
    for (int64_t i = 0; i < groups; ++i) begin[i + 1] = begin[i] + ((w.row_fwd[i] - w.row_ptr[i]) * w.c + 1) / 2;
    const int32_t inputs = static_cast<int32_t>(blocks_across(w) * w.c);
    const int64_t step = ceil_div(groups, 8 * p->threads);
    parallel(p, ceil_div(groups, step), [&](int64_t task) {
        for (int64_t i = task * step; i < std::min(groups, (task + 1) * step); ++i) {
            const int64_t s0 = w.row_ptr[i], count = (w.row_fwd[i] - s0) * w.c;
            int64_t pair = begin[i];
            if (w.c == 1 && w.r == 1) {  // columns and values lie in pairs already
                int32_t* const to = from + 2 * pair;
                for (int64_t f = 0; f < count; ++f) to[f] = static_cast<int32_t>(cols[s0 + f]);
                memcpy(weights + 2 * pair, values(w, s0), sizeof(Half) * count);
                if (count % 2) to[count] = inputs, weights[2 * pair + count] = 0;
                continue;
            }
            for (int64_t f = 0; f < count; f += 2, ++pair) {
                const Half* ends[2] = {nullptr, nullptr};
                for (int64_t h = 0; h < 2; ++h) {
                    from[2 * pair + h] = inputs;
                    if (f + h == count) break;
                    const int64_t s = s0 + (f + h) / w.c, j = (f + h) % w.c;
                    from[2 * pair + h] = static_cast<int32_t>(cols[s] * w.c + j);
                    ends[h] = values(w, s) + j;
                }
                Half* const to = weights + pair * w.r * 2;
                if (w.c == 1) put_pair<1>(ends[0], ends[1], 1, w.r, to);
                else put_pair<0>(ends[0], ends[1], w.c, w.r, to);
            }
        }
    });
    return {groups, w.r, inputs, begin, from, weights, w.c % 2 == 0};
}

// The same of W_A transposed: a counting sort of A's slots by their columns.
template <class Col>
static Pairs pairs_transposed(const tk_parallel* p, const tk_matrix& w, Room& room) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t groups = blocks_across(w), most = most_pairs(w, true), parts = parts_of(p, w), rows = blocks_down(w);
    int64_t* begin = room.take<int64_t>(groups + 1);
    int32_t* from = room.take<int32_t>(2 * most);
    Half* weights = room.take<Half>(most * w.c * 2);
    int32_t* next = room.take<int32_t>(parts * groups);  // where a part's next slot of a column goes
    const int64_t step = ceil_div(rows, parts);
    const auto each_slot = [&](int64_t part, const auto& f) {
        for (int64_t i = part * step; i < std::min(rows, (part + 1) * step); ++i)
            for (int64_t s = w.row_ptr[i]; s < w.row_fwd[i]; ++s) f(i, s);
    };
    parallel(p, parts, [&](int64_t part) {
        int32_t* const count = next + part * groups;
        memset(count, 0, sizeof(int32_t) * groups);
        each_slot(part, [&](int64_t, int64_t s) { ++count[cols[s]]; });
    });
    const int32_t inputs = static_cast<int32_t>(rows * w.r);
    begin[0] = 0;
    for (int64_t k = 0; k < groups; ++k) {
        int32_t total = 0;
        for (int64_t part = 0; part < parts; ++part) {
            const int32_t count = next[part * groups + k];
            next[part * groups + k] = static_cast<int32_t>(begin[k] * 2 + total);
            total += count * w.r;
        }
        begin[k + 1] = begin[k] + (total + 1) / 2;
        if (total % 2) {
            from[2 * begin[k] + total] = inputs;
            for (int64_t j = 0; j < w.c; ++j) weights[(begin[k + 1] - 1) * w.c * 2 + 2 * j + 1] = 0;
        }
    }
    parallel(p, parts, [&](int64_t part) {
        each_slot(part, [&](int64_t i, int64_t s) {
            int32_t& here = next[part * groups + cols[s]];
            const Half* v = values(w, s);
            if (w.r == 1 && w.c == 1) {
                from[here] = static_cast<int32_t>(i), weights[here++] = *v;
                return;
            }
            for (int64_t q = 0; q < w.r; ++q) from[here + q] = static_cast<int32_t>(i * w.r + q);
            if (w.r % 2 == 0) {
                Half* const to = weights + static_cast<int64_t>(here) * w.c;
                for (int64_t q = 0; q < w.r; q += 2)
                    put_pair<1>(v + q * w.c, v + (q + 1) * w.c, 1, w.c, to + q * w.c);
            } else {
                for (int64_t f = here; f < here + w.r; ++f, v += w.c)
                    for (int64_t j = 0; j < w.c; ++j) weights[(f / 2 * w.c + j) * 2 + f % 2] = v[j];
            }
            here += w.r;
        });
    });
    return {groups, w.c, inputs, begin, from, weights, w.r % 2 == 0};
}
