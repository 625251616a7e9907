// Rows of activations as whole numbers from 0 to 255, see int8.h.

struct Range {
    V lo{}, hi{}, bad{};  // bad: NaN if the row holds a NaN or an infinity
    void add(V x) {
        lo = x < lo ? x : lo;
        hi = x > hi ? x : hi;
        bad += x - x;
    }
};

// The nearest whole number, halves to the even one, of |x| < 2^22: adding 1.5 * 2^23 leaves it in the low bits.
static inline I nearest(V x) { return (I)(x + 12582912.0f) - 0x4B400000; }

static inline I clip(I q) {
    q = q < 0 ? I{} : q;
    return q > 255 ? I{} + 255 : q;
}

// What turns a row into whole numbers and back. The scale of a bad row is NaN, its numbers mean nothing.
struct Scale {
    V s{}, inverse{};
    I z{};
    Scale() = default;
    Scale(V s, V inverse, I z) : s(s), inverse(inverse), z(z) {}
    explicit Scale(const Range& range) {
        const V span = range.hi - range.lo, whole = span / 255.0f, least = splat(FLT_MIN);
        s = (whole < least ? least : whole) + (span - span) + range.bad;
        inverse = 1.0f / s;
        z = clip(nearest(-range.lo * inverse));
    }
    I quantised(V x) const { return clip(nearest(x * inverse) + z); }
};

// The range of all lanes, in each lane.
static inline Range of_all_lanes(const Range& range) {
    Range all;
    for (int lane = 0; lane < LANES; ++lane) {
        all.add(splat(range.lo[lane] + range.bad[lane]));
        all.add(splat(range.hi[lane] + range.bad[lane]));
    }
    return all;
}
