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

    // At most LANES numbers, then zeros.
    static inline V some(const float* from, int64_t count) {
        V x{};
        if (count >= LANES) return load(from);
        __builtin_memcpy(&x, from, sizeof(float) * static_cast<size_t>(count));
        return x;
    }
    static inline void quantise(const Scale& scale, V x, int64_t count, Number* to) {
        const Numbers found = __builtin_convertvector(scale.quantised(x), Numbers);
        if (count >= LANES) __builtin_memcpy(to, &found, sizeof found);
        else __builtin_memcpy(to, &found, sizeof(Number) * static_cast<size_t>(count));
    }

    // Channels k0 .. k1 of some images, onto their planes.
    void fill(const float* x, int64_t count, int64_t k0, int64_t k1) const {
        for (int64_t image = 0; image < count; ++image) {
            const Scale scale(splat(s[image]), splat(inverse[image]), I{} + z[image]);
            const int64_t end = image * size + k1 * plan.in_positions;
            for (int64_t i = image * size + k0 * plan.in_positions; i < end; i += LANES)
                quantise(scale, some(x + i, end - i), end - i, numbers + i);
        }
        const auto border = [&](int64_t image) { return static_cast<Number>(z[image]); };
        int64_t used = plan.plane;  // of a channel; the rest is read too, for positions that no output has
        for (const auto& places : plan.places) used *= static_cast<int64_t>(places.size());
        for (int64_t k = k0; k < k1; ++k) {
            Number *const to = planes + k * plan.pitch, *const rest = count < plan.images ? to : to + used;
            fill_row<Number>(0, to + plan.pitch + (k + 1 < channels ? 0 : W) - rest, rest);
            pack_plane(plan, numbers, count, k, border, to);
        }
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
        // Numbers of the next channels fill the last vector, and are never read; the last channels have none behind them.
        const int64_t pitch = plan.in_positions, room = channels * pitch - q - T * LANES;
        const int64_t whole = room < 0 ? 0 : room / pitch + 1;
        Range range[T];
        Scale scale[T];
        const float* from = x;
        for (int64_t k = 0; k < whole; ++k, from += pitch)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) range[t].add(load(from + t * LANES));
        for (int64_t k = whole; k < channels; ++k, from += pitch)
            for (int t = 0; t < T; ++t) range[t].add(some(from + t * LANES, here - t * LANES));
        for (int t = 0; t < T; ++t) {
            scale[t] = Scale(range[t]);
            store(s + q + t * LANES, scale[t].s);
            store_words(z + q + t * LANES, scale[t].z);
        }
        Number* to = planes + q;
        from = x;
        for (int64_t k = 0; k < whole; ++k, from += pitch, to += plan.pitch)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) quantise(scale[t], load(from + t * LANES), LANES, to + t * LANES);
        for (int64_t k = whole; k < channels; ++k, from += pitch, to += plan.pitch)
            for (int t = 0; t < T; ++t) quantise(scale[t], some(from + t * LANES, here - t * LANES), LANES, to + t * LANES);
        if (T == WIDE) return;
        for (int t = T; t < WIDE; ++t) {  // read too, for positions that no output has
            store(s + q + t * LANES, V{});
            store_words(z + q + t * LANES, I{});
        }
        for (int64_t k = 0; k < channels; ++k) fill_row<Number>(0, W - T * LANES, planes + k * plan.pitch + q + T * LANES);
    }
};
