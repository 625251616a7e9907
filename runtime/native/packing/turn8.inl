// turn.inl for vectors of eight floats. Halves of vectors are loaded into their places, so what is left are 16 shuffles
// inside halves, which cost one cycle each; a transpose of whole vectors also moves lanes between halves (121 cycles
// against 41, Zen 4). For AVX2 only: with AVX-512 wide layers lost 4 to 8 % by it.

static inline __m256 halves(const float* lower, const float* upper) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(lower)), _mm_loadu_ps(upper), 1);
}

// to[j * to_step + i] = from[i * step + j].
static inline void turn(const float* from, int64_t step, float* to, int64_t to_step) {
#pragma GCC unroll 2
    for (int h = 0; h < 8; h += 4, from += 4) {
        __m256 row[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) row[i] = halves(from + i * step, from + (i + 4) * step);
        const __m256 a = _mm256_unpacklo_ps(row[0], row[1]), b = _mm256_unpackhi_ps(row[0], row[1]);
        const __m256 c = _mm256_unpacklo_ps(row[2], row[3]), d = _mm256_unpackhi_ps(row[2], row[3]);
        _mm256_storeu_ps(to + (h + 0) * to_step, _mm256_shuffle_ps(a, c, 0x44));
        _mm256_storeu_ps(to + (h + 1) * to_step, _mm256_shuffle_ps(a, c, 0xee));
        _mm256_storeu_ps(to + (h + 2) * to_step, _mm256_shuffle_ps(b, d, 0x44));
        _mm256_storeu_ps(to + (h + 3) * to_step, _mm256_shuffle_ps(b, d, 0xee));
    }
}
