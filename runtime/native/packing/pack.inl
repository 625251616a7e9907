// Activations between the caller's layout and tiles [n][width] with the batch as the vector axis.

// f(first row of out, count, column n0 of x at these rows): the tiles that rows m0..m0+width of x lie in, one by one.
template <class F>
static inline void each_tile(const tk_view& x, int64_t m0, int64_t width, int64_t n0, const F& f) {
    for (int64_t i = 0, count; i < width && m0 + i < x.m; i += count) {
        const int64_t tile = (m0 + i) / x.width, inside = (m0 + i) % x.width;
        count = x.width - inside < width - i ? x.width - inside : width - i;
        f(i, count, x.data + (tile * x.n + n0) * x.width + inside);
    }
}

// The same as pack, from tiles of another or the same width: a product reads columns in any order, so it pays to have
// a tile's rows together in the cache first.
static void pack_tiles(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, float* out) {
    if (n1 > x.n || m0 + width > x.m)
        for (int64_t i = 0; i < (n1 - n0) * width; i += LANES) store(out + i, V{});
    const int64_t columns = (n1 < x.n ? n1 : x.n) - n0;
    each_tile(x, m0, width, n0, [&](int64_t i, int64_t count, const float* from) {
        for (int64_t n = 0; n < columns; ++n)
            for (int64_t j = 0; j < count; j += LANES) store(out + n * width + i + j, load(from + n * x.width + j));
    });
}

// The same in panels of LANES columns: out[(n - n0) / LANES][m][LANES]. x.n is a multiple of LANES.
static void panel_tiles(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, float* out) {
    if (m0 + width > x.m)
        for (int64_t i = 0; i < (n1 - n0) * width; i += LANES) store(out + i, V{});
    each_tile(x, m0, width, n0, [&](int64_t i, int64_t count, const float* from) {
        for (int64_t n = 0; n < n1 - n0; n += LANES)
            for (int64_t m = 0; m < count; m += LANES) {
                V v[LANES];
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) v[j] = load(from + (n + j) * x.width + m);
                transpose(v);
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) store(out + n * width + (i + m + j) * LANES, v[j]);
            }
    });
}

// out[n - n0][0..width) = x[m0.., n]; zeros past the end of m or n. width is a multiple of LANES.
static void pack(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, float* out) {
    if (x.width) return pack_tiles(x, m0, width, n0, n1, out);
    const int64_t full_n = n1 < x.n ? n1 : x.n;
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t here = x.m - m0 - i;  // rows left
        const float* from = x.data + (m0 + i) * x.stride_m;
        int64_t n = n0;
        if (here >= LANES && x.stride_m == 1) {
            for (; n < full_n; ++n) store(out + (n - n0) * width + i, load(from + n * x.stride_n));
        } else if (here >= LANES && x.stride_n == 1) {
            for (; n + LANES <= full_n; n += LANES)
                turn(from + n, x.stride_m, out + (n - n0) * width + i, width);
        }
        for (; n < n1; ++n) {
            float* to = out + (n - n0) * width + i;
            for (int64_t j = 0; j < LANES; ++j)
                to[j] = n < x.n && j < here ? from[j * x.stride_m + n * x.stride_n] : 0.0f;
        }
    }
}

// y[m0.., n] = in[n - n0][0..width), within y.
static void unpack(const float* in, int64_t m0, int64_t width, int64_t n0, int64_t n1, const tk_view& y) {
    if (n1 > y.n) n1 = y.n;
    for (int64_t i = 0; i < width && m0 + i < y.m; i += LANES) {
        const int64_t here = y.m - m0 - i;
        float* to = y.data + (m0 + i) * y.stride_m;
        int64_t n = n0;
        if (here >= LANES && y.stride_m == 1) {
            for (; n < n1; ++n) store(to + n * y.stride_n, load(in + (n - n0) * width + i));
        } else if (here >= LANES && y.stride_n == 1) {
            for (; n + LANES <= n1; n += LANES)
                turn(in + (n - n0) * width + i, width, to + n, y.stride_m);
        }
        for (; n < n1; ++n)
            for (int64_t j = 0; j < LANES && j < here; ++j)
                to[j * y.stride_m + n * y.stride_n] = in[(n - n0) * width + i + j];
    }
}
