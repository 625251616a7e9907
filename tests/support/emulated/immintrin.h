// The intrinsics of AVX-512 that the int8 kernels use, in plain C++ after the pseudocode of Intel's Intrinsics Guide, so
// that the kernels' indices and layouts are tested on a processor without AVX-512. Found before the compiler's own header.
#pragma once
#include <stdint.h>
#include <string.h>

typedef int64_t __m512i __attribute__((vector_size(64), may_alias));
typedef int64_t __m256i __attribute__((vector_size(32), may_alias));
typedef int64_t __m128i __attribute__((vector_size(16), may_alias));

template <class Out, class Element, class F>
static inline Out each(const F& f) {
    constexpr int count = sizeof(Out) / sizeof(Element);
    Element found[count];
    for (int i = 0; i < count; ++i) found[i] = f(i);
    Out out;
    memcpy(&out, found, sizeof out);
    return out;
}
template <class Element, class Vector>
static inline Element at(const Vector& v, int i) {
    Element found;
    memcpy(&found, reinterpret_cast<const char*>(&v) + i * sizeof(Element), sizeof found);
    return found;
}
template <class Wide, class Narrow>
static inline Narrow saturated(Wide x, Wide most) {
    return static_cast<Narrow>(x < 0 ? 0 : x > most ? most : x);
}

// In each lane of 16 bytes: elements of a and b by turns, from the lane's lower (high = 0) or upper half.
template <class Element>
static inline __m512i unpack(const __m512i& a, const __m512i& b, int high) {
    constexpr int per = 16 / sizeof(Element);
    return each<__m512i, Element>([&](int i) {
        const int from = i / per * per + high * per / 2 + i % per / 2;
        return at<Element>(i % 2 ? b : a, from);
    });
}
static inline __m512i _mm512_unpacklo_epi8(__m512i a, __m512i b) { return unpack<uint8_t>(a, b, 0); }
static inline __m512i _mm512_unpackhi_epi8(__m512i a, __m512i b) { return unpack<uint8_t>(a, b, 1); }
static inline __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) { return unpack<uint16_t>(a, b, 0); }
static inline __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) { return unpack<uint16_t>(a, b, 1); }

// In each lane of 16 bytes: a's elements, saturated to unsigned ones of half the size, then b's.
template <class Wide, class Narrow>
static inline __m512i packus(const __m512i& a, const __m512i& b, Wide most) {
    constexpr int per = 16 / sizeof(Narrow), half = per / 2;
    return each<__m512i, Narrow>([&](int i) {
        const int from = i / per * half + i % half;
        return saturated<Wide, Narrow>(at<Wide>(i % per < half ? a : b, from), most);
    });
}
static inline __m512i _mm512_packus_epi32(__m512i a, __m512i b) { return packus<int32_t, uint16_t>(a, b, INT32_C(65535)); }
static inline __m512i _mm512_packus_epi16(__m512i a, __m512i b) { return packus<int16_t, uint8_t>(a, b, int16_t{255}); }

template <class Vector>
static inline Vector dpbusd(const Vector& sum, const Vector& x, const Vector& w) {
    return each<Vector, int32_t>([&](int i) {
        int32_t found = at<int32_t>(sum, i);
        for (int j = 4 * i; j < 4 * i + 4; ++j) found += int32_t{at<uint8_t>(x, j)} * int32_t{at<int8_t>(w, j)};
        return found;
    });
}
static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i x, __m512i w) { return dpbusd(sum, x, w); }
static inline __m128i _mm_dpbusd_epi32(__m128i sum, __m128i x, __m128i w) { return dpbusd(sum, x, w); }

template <class Vector>
static inline Vector madd(const Vector& x, const Vector& w) {
    return each<Vector, int32_t>([&](int i) {
        return int32_t{at<int16_t>(x, 2 * i)} * at<int16_t>(w, 2 * i) + int32_t{at<int16_t>(x, 2 * i + 1)} * at<int16_t>(w, 2 * i + 1);
    });
}
static inline __m512i _mm512_madd_epi16(__m512i x, __m512i w) { return madd(x, w); }
static inline __m128i _mm_madd_epi16(__m128i x, __m128i w) { return madd(x, w); }

static inline __m512i _mm512_cvtepi8_epi16(__m256i v) {
    return each<__m512i, int16_t>([&](int i) { return int16_t{at<int8_t>(v, i)}; });
}
static inline __m512i _mm512_loadu_si512(const void* p) {
    __m512i v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline __m256i _mm256_loadu_si256(const __m256i* p) {
    __m256i v;
    memcpy(&v, p, sizeof v);
    return v;
}
