// GELU, GELU by tanh and SiLU, and their gradients, of numbers in bfloat16 that lie side by side, computed in float32 as
// exactly as the rounding to bfloat16 shows.
//
// Each is x s(q(x)) with s(q) = 1 / (1 + e^-q). SiLU's q is x, that of GELU by tanh is 2 sqrt(2 / pi) (x + 0.044715 x^3),
// and GELU's is log(Phi(x) / (1 - Phi(x))), here an odd polynomial: Phi is off by less than 4e-8 anywhere, and by 4e-4 of
// its own size down to x = -4. The derivatives of both GELUs are polynomials, off by less than 8e-5, which are 0 and 1
// beyond -4.5 and 4.5.

static constexpr int64_t NUMBERS = 1 << 15;  // in one task

enum { GELU, GELU_TANH, SILU, ACTIVATIONS };  // as in bf16.h

template <int ACT>
static constexpr int TERMS = ACT == GELU ? 7 : ACT == GELU_TANH ? 2 : 1;
static constexpr double TERM[ACTIVATIONS][7] = {
    {1.59576904, 0.0726688218, -6.75658893e-05, -0.000109749187, 7.78743563e-06, -2.54110568e-07, 3.23955225e-09},
    {1.5957691216057308, 0.071354816272609},
    {1.0}};
static constexpr double LOG2E = 1.4426950408889634;

static inline Sums all(double x) { return _mm512_set1_ps(static_cast<float>(x)); }

// 2^t to 14 bits, for any finite t.
static inline Sums power_of_two(Sums t) {
    const Sums whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm512_sub_ps(t, whole);
    Sums sum = all(0.0096735);
    sum = _mm512_fmadd_ps(sum, rest, all(0.0555055));
    sum = _mm512_fmadd_ps(sum, rest, all(0.2402214));
    sum = _mm512_fmadd_ps(sum, rest, all(0.6931471));
    return _mm512_scalef_ps(_mm512_fmadd_ps(sum, rest, all(1)), whole);
}

static inline Sums within(Sums x, double far) {  // a NaN stays
    return _mm512_min_ps(all(far), _mm512_max_ps(all(-far), x));
}

// e^-q, from which s = 1 / (1 + e^-q). Beyond the limit s is 0 or 1.
template <int ACT>
static inline Sums decay(Sums x) {
    x = within(x, ACT == SILU ? 120 : 12);
    const Sums square = _mm512_mul_ps(x, x);
    Sums sum = all(-LOG2E * TERM[ACT][TERMS<ACT> - 1]);
    UNROLL for (int i = TERMS<ACT> - 2; i >= 0; --i) sum = _mm512_fmadd_ps(sum, square, all(-LOG2E * TERM[ACT][i]));
    return power_of_two(_mm512_mul_ps(sum, x));
}

template <int ACT>
static inline Sums activated(Sums x) {
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(all(1), decay<ACT>(x))));
}

static constexpr float EDGE = 4.5f;
// (act'(x) - 1/2) / x as a polynomial in u = 2 (x / EDGE)^2 - 1, where its coefficients are small.
static constexpr float DERIVATIVE[2][10] = {
    {0.159445688f, -0.0899261981f, 0.0861887038f, -0.0953167602f, 0.105022654f, -0.0879710093f, 0.0477625765f,
     -0.0451604575f, 0.0559502654f, -0.024884345f},
    {0.159311339f, -0.0899282917f, 0.0869655982f, -0.0976723284f, 0.108858854f, -0.0856494308f, 0.0355233736f,
     -0.0399587974f, 0.0636653379f, -0.030004546f}};

// NaN if x is infinite, as it is where 0 and infinity are multiplied.
template <int ACT>
static inline Sums derived(Sums x) {
    if constexpr (ACT == SILU) {  // s + x s (1 - s), where 1 - s = s e^-x keeps its digits
        const Sums e = _mm512_min_ps(all(1e30), decay<ACT>(x)), s = _mm512_rcp14_ps(_mm512_add_ps(all(1), e));
        return _mm512_fmadd_ps(x, _mm512_mul_ps(_mm512_mul_ps(s, s), e), s);
    } else {
        const Sums near = within(x, EDGE), u = _mm512_fmadd_ps(_mm512_mul_ps(near, near), all(2 / EDGE / EDGE), all(-1));
        Sums sum = all(DERIVATIVE[ACT][9]);
        UNROLL for (int i = 8; i >= 0; --i) sum = _mm512_fmadd_ps(sum, u, all(DERIVATIVE[ACT][i]));
        return _mm512_fmadd_ps(x, all(0), _mm512_fmadd_ps(sum, near, all(0.5)));
    }
}

// Numbers of even and of odd place.
static inline Sums even(Halves v) { return (Sums)_mm512_slli_epi32(v, 16); }
static inline Sums odd(Halves v) { return (Sums)_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))); }
static inline Halves by_turns(Sums evens, Sums odds) {
    alignas(64) static const struct Order {
        uint16_t from[HALVES];
        constexpr Order() : from() {
            for (int i = 0; i < HALVES; ++i) from[i] = static_cast<uint16_t>(i / 2 + i % 2 * LANES);
        }
    } order;
    return _mm512_permutexvar_epi16(load(order.from), in_order(evens, odds));
}

template <int ACT>
static void activate_part(const Half* x, const Half* dy, Half* y, int64_t count) {
    for (int64_t i = 0; i < count; i += HALVES) {
        const __mmask32 inside = first(count - i);
        const Halves in = _mm512_maskz_loadu_epi16(inside, x + i);
        Sums evens, odds;
        if (dy) {
            const Halves g = _mm512_maskz_loadu_epi16(inside, dy + i);
            evens = _mm512_mul_ps(derived<ACT>(even(in)), even(g)), odds = _mm512_mul_ps(derived<ACT>(odd(in)), odd(g));
        } else {
            evens = activated<ACT>(even(in)), odds = activated<ACT>(odd(in));
        }
        _mm512_mask_storeu_epi16(y + i, inside, by_turns(evens, odds));
    }
}

typedef void (*ActivatePart)(const Half* x, const Half* dy, Half* y, int64_t count);
static ActivatePart activation(int32_t act) {
    return act == GELU ? activate_part<GELU> : act == GELU_TANH ? activate_part<GELU_TANH> : activate_part<SILU>;
}

void activate_grad(const tk_parallel* p, int32_t act, const void* x, const void* dy, void* dx, int64_t count) {
    const ActivatePart part = activation(act);
    parallel(p, ceil_div(count, NUMBERS), [&](int64_t task) {
        const int64_t begin = task * NUMBERS;
        part(static_cast<const Half*>(x) + begin, static_cast<const Half*>(dy) + begin, static_cast<Half*>(dx) + begin,
             std::min(count - begin, NUMBERS));
    });
}

// The activation of tk_bf16_after for a tile of rows from m0 on. Whole rows, as pieces of rows would be read and written
// without the processor's foresight; a tile of 4096 columns is half of the second-level cache.
static void activate_tile(const tk_bf16_after* after, const tk_view& y, int64_t m0) {
    if (!after) return;
    const ActivatePart part = activation(after->act);
    for (int64_t m = m0; m < m0 + TILE && m < y.m; ++m) {
        Half *const mine = row(y, m), *const other = row(after->other, m);
        if (after->backward) part(other, mine, mine, y.n);
        else part(mine, nullptr, other, y.n);
    }
}
