// Activations as the products read them: columns [n][width], the batch as the vector axis, the same with two columns in a
// pair, or panels of 16 columns with two rows of the batch in a pair. What lies past the end of rows or columns is zero.

static constexpr int64_t TILE = 64;   // samples of a tile of columns
static constexpr int64_t PART = 512;  // columns in one task
static constexpr int AHEAD = 64;      // a transpose reads 32 rows side by side, more than the processor foresees

static inline const Half* at(const tk_view& x, int64_t m, int64_t n) {
    return reinterpret_cast<const Half*>(x.data) + m * x.stride_m + n * x.stride_n;
}
static inline Half* row(const tk_view& y, int64_t m) { return reinterpret_cast<Half*>(y.data) + m * y.stride_m; }

// Rows m.. of column n, of a view whose columns do not lie side by side.
static inline Halves column(const tk_view& x, int64_t m, int64_t n) {
    const int64_t here = n < x.n ? x.m - m : 0;  // rows left
    if (x.stride_m == 1) return _mm512_maskz_loadu_epi16(first(here), at(x, m, n));
    alignas(64) Half found[HALVES] = {};
    for (int64_t j = 0; j < HALVES && j < here; ++j) found[j] = *at(x, m + j, n);
    return load(found);
}

// out[n - n0][0..width) = x[m0.., n]; width is a multiple of 32.
static void pack(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, Half* out) {
    for (int64_t i = 0; i < width; i += HALVES) {
        const int64_t here = x.m - m0 - i;  // rows left
        if (x.stride_n == 1) {
            for (int64_t n = n0; n < n1; n += HALVES) {
                const __mmask32 inside = first(x.n - n);
                Halves v[HALVES];
                UNROLL for (int j = 0; j < HALVES; ++j) {
                    v[j] = none();
                    if (j < here) v[j] = _mm512_maskz_loadu_epi16(inside, at(x, m0 + i + j, n));
                    if (j < here) __builtin_prefetch(at(x, m0 + i + j, n + AHEAD));
                }
                transpose(v);
                Half* const to = out + (n - n0) * width + i;
                if (n + HALVES <= n1) {
                    UNROLL for (int j = 0; j < HALVES; ++j) store(to + j * width, v[j]);
                } else {
                    for (int j = 0; n + j < n1; ++j) store(to + j * width, v[j]);
                }
            }
        } else {
            for (int64_t n = n0; n < n1; ++n) store(out + (n - n0) * width + i, column(x, m0 + i, n));
        }
    }
}

// Columns in pairs: out[(n - n0) / 2][0..width) pairs; n1 - n0 is even, width a multiple of 32.
static void pack_columns(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, Half* out) {
    if (x.stride_n != 1) {
        for (int64_t n = n0; n < n1; n += 2, out += 2 * width)
            for (int64_t i = 0; i < width; i += HALVES) {
                const Halves one = column(x, m0 + i, n), other = column(x, m0 + i, n + 1);
                store(out + 2 * i, first_pairs(one, other)), store(out + 2 * i + HALVES, last_pairs(one, other));
            }
        return;
    }
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t here = x.m - m0 - i;  // rows left
        for (int64_t n = n0; n < n1; n += HALVES) {
            const __mmask32 inside = first(x.n - n);
            Halves v[LANES];
            UNROLL for (int j = 0; j < LANES; ++j) {
                v[j] = none();
                if (j < here) v[j] = _mm512_maskz_loadu_epi16(inside, at(x, m0 + i + j, n));
                if (j < here) __builtin_prefetch(at(x, m0 + i + j, n + AHEAD));
            }
            transpose_pairs(v);
            Half* const to = out + (n - n0) * width + 2 * i;
            if (n + HALVES <= n1) {
                UNROLL for (int j = 0; j < LANES; ++j) store(to + j * 2 * width, v[j]);
            } else {
                for (int j = 0; n + 2 * j < n1; ++j) store(to + j * 2 * width, v[j]);
            }
        }
    }
}

// y[m0.., n] = in[n - n0][0..width), within y.
static void unpack(const Half* in, int64_t m0, int64_t width, int64_t n0, int64_t n1, const tk_view& y) {
    n1 = std::min(n1, y.n);
    for (int64_t i = 0; i < width && m0 + i < y.m; i += HALVES)
        for (int64_t n = n0; n < n1; n += HALVES) {
            Halves v[HALVES];
            const int64_t count = n1 - n;
            const Half* const from = in + (n - n0) * width + i;
            UNROLL for (int j = 0; j < HALVES; ++j) v[j] = j < count ? load(from + j * width) : none();
            transpose(v);
            const __mmask32 inside = first(count);
            UNROLL for (int j = 0; j < HALVES; ++j)
                if (m0 + i + j < y.m) _mm512_mask_storeu_epi16(row(y, m0 + i + j) + n, inside, v[j]);
        }
}

// Panels: out[(n - n0) / 16][m / 2][16] pairs; n1 - n0 is a multiple of 16, width of 32.
static void pack_panels(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, Half* out) {
    if (x.stride_n != 1) {
        for (int64_t n = n0; n < n1; ++n)
            for (int64_t m = 0; m < width; ++m)
                out[(n - n0) / LANES * LANES * width + (m / 2 * LANES + (n - n0) % LANES) * 2 + m % 2] =
                    m0 + m < x.m && n < x.n ? *at(x, m0 + m, n) : 0;
        return;
    }
    // 32 rows at a time: rows are read as they lie, and what is written lies together.
    for (int64_t i = 0; i < width; i += HALVES)
        for (int64_t n = n0; n < n1; n += HALVES) {
            const __mmask32 inside = first(x.n - n);
            for (int64_t m = i; m < i + HALVES; m += 2) {
                Halves v[2] = {none(), none()};
                UNROLL for (int h = 0; h < 2; ++h)
                    if (m0 + m + h < x.m) {
                        v[h] = _mm512_maskz_loadu_epi16(inside, at(x, m0 + m + h, n));
                        __builtin_prefetch(at(x, m0 + m + h, n + AHEAD));
                    }
                Half* const to = out + (n - n0) * width + m * LANES;
                store(to, first_pairs(v[0], v[1]));
                if (n + LANES < n1) store(to + LANES * width, last_pairs(v[0], v[1]));
            }
        }
}
