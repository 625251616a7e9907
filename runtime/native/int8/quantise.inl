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
    V s{};
    I z{};
    Scale() = default;
    explicit Scale(const Range& range) {
        const V span = range.hi - range.lo, whole = span / 255.0f;
        s = (whole == 0.0f ? splat(1.0f) : whole) + (span - span) + range.bad;
        z = clip(nearest(-range.lo / s));
    }
    I quantised(V x) const { return clip(nearest(x / s) + z); }
};
