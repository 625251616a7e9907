// Rows of activations and images as whole numbers from 0 to 255, see int8.h.

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

typedef std::conditional_t<GROUP == 4, uint8_t, std::conditional_t<GROUP == 2, uint16_t, int32_t>> Number;  // of an image
typedef Number Numbers __attribute__((vector_size(sizeof(Number) * LANES)));

// Some images on their planes, with a scale for each image; or, if an image is its own plane, for each position.
struct Images {
    static constexpr int64_t W = WIDE * LANES, CUT = 16 * 1024;  // numbers of an image that one task reads for their range

    const Positions& plan;
    const int64_t channels, size, cuts;  // size: numbers of an image, which so many tasks read
    float *ranges, *inverse, *s;         // [image][cut][2][LANES], [image], [image]; by position only s, [position]
    int32_t* z;                          // as s
    Number *numbers, *planes;            // [image][size], only if by image; as Positions has them

    Images(const Positions& plan, bool by_position, float* work)
        : plan(plan), channels(plan.conv.channels), size(channels * plan.in_positions), cuts(ceil_div(size, CUT)) {
        const int64_t scales = by_position ? ceil_div(plan.plane, W) * W : plan.images;
        ranges = work;
        inverse = ranges + (by_position ? 0 : plan.images * cuts * 2 * LANES);
        s = inverse + (by_position ? 0 : scales);
        z = reinterpret_cast<int32_t*>(s + scales);
        numbers = reinterpret_cast<Number*>(z + scales);
        planes = numbers + (by_position ? 0 : plan.images * size);
    }
    int64_t bytes(const float* work) const {  // the last run reads past the planes
        return reinterpret_cast<const char*>(planes + channels * plan.pitch + W) - reinterpret_cast<const char*>(work);
    }

    void find_range(const float* x, int64_t image, int64_t cut) const {
        const float* from = x + image * size + cut * CUT;
        const float* const end = x + image * size + (cut + 1 < cuts ? (cut + 1) * CUT : size);
        Range range[2];
        for (; from + 2 * LANES <= end; from += 2 * LANES) {
            range[0].add(load(from));
            range[1].add(load(from + LANES));
        }
        for (; from < end; ++from) range[0].add(splat(*from));
        range[0].add(range[1].lo + range[1].bad);
        range[0].add(range[1].hi);
        store(ranges + (image * cuts + cut) * 2 * LANES, range[0].lo + range[0].bad);
        store(ranges + ((image * cuts + cut) * 2 + 1) * LANES, range[0].hi);
    }

    void find_scale(int64_t image) const {
        Range range;
        for (int64_t i = 0; i < 2 * cuts; ++i) range.add(load(ranges + (image * cuts * 2 + i) * LANES));
        const Scale scale(of_all_lanes(range));
        s[image] = scale.s[0];
        inverse[image] = scale.inverse[0];
        z[image] = scale.z[0];
    }

    // At most LANES numbers.
    static inline V some(const float* from, int64_t count) {
        V x{};
        if (count >= LANES) return load(from);
        __builtin_memcpy(&x, from, sizeof(float) * static_cast<size_t>(count));
        return x;
    }
    static inline void quantise(const Scale& scale, const float* from, int64_t count, Number* to) {
        const Numbers found = __builtin_convertvector(scale.quantised(some(from, count)), Numbers);
        if (count >= LANES) __builtin_memcpy(to, &found, sizeof found);
        else __builtin_memcpy(to, &found, sizeof(Number) * static_cast<size_t>(count));
    }

    // Channels k0 .. k1 of some images, onto their planes.
    void fill(const float* x, int64_t count, int64_t k0, int64_t k1) const {
        for (int64_t image = 0; image < count; ++image) {
            const Scale scale(splat(s[image]), splat(inverse[image]), I{} + z[image]);
            const int64_t end = image * size + k1 * plan.in_positions;
            for (int64_t i = image * size + k0 * plan.in_positions; i < end; i += LANES)
                quantise(scale, x + i, end - i, numbers + i);
        }
        const auto border = [&](int64_t image) { return static_cast<Number>(z[image]); };
        for (int64_t k = k0; k < k1; ++k) pack_plane(plan, numbers, count, k, border, planes + k * plan.pitch);
    }

    // All channels of positions q .. q + W of an image, by position.
    void fill_run(const float* x, int64_t q) const {
        const int64_t here = plan.in_positions - q < W ? plan.in_positions - q : W;
        if (here > 3 * LANES) fill_vectors<WIDE < 4 ? WIDE : 4>(x + q, q, here);
        else if (here > 2 * LANES) fill_vectors<WIDE < 3 ? WIDE : 3>(x + q, q, here);
        else if (here > LANES) fill_vectors<2>(x + q, q, here);
        else fill_vectors<1>(x + q, q, here);
    }

    template <int T>
    void fill_vectors(const float* x, int64_t q, int64_t here) const {
        const int64_t pitch = plan.in_positions;
        // Numbers of the next channel fill the last vector, and are never read; behind the last channel there are none.
        const float* const last = x + (channels - 1) * pitch;
        Number* to = planes + q;
        Range range[T];
        Scale scale[T];
        for (const float* from = x; from < last; from += pitch)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) range[t].add(load(from + t * LANES));
        for (int t = 0; t < T; ++t) {
            range[t].add(some(last + t * LANES, here - t * LANES));
            scale[t] = Scale(range[t]);
            store(s + q + t * LANES, scale[t].s);
            store_words(z + q + t * LANES, scale[t].z);
        }
        for (const float* from = x; from < last; from += pitch, to += plan.pitch)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) quantise(scale[t], from + t * LANES, LANES, to + t * LANES);
        for (int t = 0; t < T; ++t) quantise(scale[t], last + t * LANES, here - t * LANES, to + t * LANES);
    }
};
