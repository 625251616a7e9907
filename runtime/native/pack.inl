// Activations between the caller's layout and tiles [n][width] with the batch as the vector axis.

// out[n - n0][0..width) = x[m0.., n]; zeros past the end of m or n. width is a multiple of LANES.
static void pack(const tk_view& x, int64_t m0, int64_t width, int64_t n0, int64_t n1, float* out) {
    const int64_t full_n = n1 < x.n ? n1 : x.n;
    for (int64_t i = 0; i < width; i += LANES) {
        const int64_t here = x.m - m0 - i;  // rows left
        const float* from = x.data + (m0 + i) * x.stride_m;
        int64_t n = n0;
        if (here >= LANES && x.stride_m == 1) {
            for (; n < full_n; ++n) store(out + (n - n0) * width + i, load(from + n * x.stride_n));
        } else if (here >= LANES && x.stride_n == 1) {
            for (; n + LANES <= full_n; n += LANES) {
                V v[LANES];
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) v[j] = load(from + j * x.stride_m + n);
                transpose(v);
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) store(out + (n - n0 + j) * width + i, v[j]);
            }
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
            for (; n + LANES <= n1; n += LANES) {
                V v[LANES];
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) v[j] = load(in + (n - n0 + j) * width + i);
                transpose(v);
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j) store(to + j * y.stride_m + n, v[j]);
            }
        }
        for (; n < n1; ++n)
            for (int64_t j = 0; j < LANES && j < here; ++j)
                to[j * y.stride_m + n * y.stride_n] = in[(n - n0) * width + i + j];
    }
}
