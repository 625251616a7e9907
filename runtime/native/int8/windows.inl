// A convolution of any kernel, with positions of the images as the vector axis, see positions.h. Planes hold the numbers of
// the images side by side, narrow ones, and around an image its zero point. So GROUP columns at a run of positions are as
// many registers at any places of the planes.

typedef std::conditional_t<GROUP == 4, uint8_t, std::conditional_t<GROUP == 2, uint16_t, int32_t>> Number;
typedef Number Numbers __attribute__((vector_size(sizeof(Number) * LANES)));

struct Places {  // of a run: what the columns' offsets are counted from, and the scales of its positions
    const Number* from;
    const int32_t *offset, *z;
    const float* s;
};

template <int T>
static inline void operands(const Places& in, const int32_t* cols, I* x) {
    const Number* from[GROUP];
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g) from[g] = in.from + in.offset[cols[g]];
#pragma GCC unroll 8
    for (int t = 0; t < T; t += GROUP) {
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; ++g) x[t + g] = taken<I>(from[g] + t * LANES);
        interleave(x + t);
    }
}

// interleave takes numbers by fours: the fours of GROUP * LANES positions by turns go to its vectors.
static constexpr int64_t sample_of(const Places&, int64_t m) {
    const int64_t all = GROUP * LANES, vector = m % all / LANES, lane = m % LANES;
    return m / all * all + (lane / 4 * GROUP + vector) * 4 + lane % 4;
}

// Fours of lanes of a and b by turns: the lower halves, the upper halves.
template <int half, int... i>
static inline V by_fours(V a, V b, Lanes<i...>) {
    return shuffled<(i / 8 * 4 + half * LANES / 2 + i % 4 + i / 4 % 2 * LANES)...>(a, b);
}

template <int T>
static inline void in_order(const Places&, I* sums) {
    if constexpr (GROUP > 1) {
#pragma GCC unroll 8
        for (int t = 0; t < T; t += GROUP)
#pragma GCC unroll 2
            for (int round = 1; round < GROUP; round *= 2) {
                V turned[GROUP];
#pragma GCC unroll 2
                for (int i = 0; i < GROUP / 2; ++i) {
                    const V a = (V)sums[t + i], b = (V)sums[t + i + GROUP / 2];
                    turned[2 * i] = by_fours<0>(a, b, Count<LANES>::type());
                    turned[2 * i + 1] = by_fours<1>(a, b, Count<LANES>::type());
                }
#pragma GCC unroll 4
                for (int i = 0; i < GROUP; ++i) sums[t + i] = (I)turned[i];
            }
    }
}

struct Windows {
    static constexpr int T = WIDE;  // vectors of positions in a run
    static constexpr int64_t W = T * LANES, CUT = 16 * 1024;  // numbers of an image that one task reads for their range

    const Int8Matrix& w;
    const Positions& plan;
    const int64_t size, cuts;  // numbers of an image, and how many tasks read them
    float *ranges, *s, *inverse;  // [image][cut][2][LANES], [image], [image]
    int32_t* z;                   // [image]
    Number *numbers, *planes;     // [image][size]; as Positions has them

    Windows(const Int8Matrix& w, const Positions& plan, float* work)
        : w(w), plan(plan), size(plan.conv.channels * plan.in_positions), cuts(ceil_div(size, CUT)) {
        ranges = work;
        s = ranges + plan.images * cuts * 2 * LANES;
        inverse = s + plan.images;
        z = reinterpret_cast<int32_t*>(inverse + plan.images);
        numbers = reinterpret_cast<Number*>(z + plan.images);
        planes = numbers + plan.images * size;
    }
    static int64_t floats_needed(const Positions& plan) {
        const int64_t size = plan.conv.channels * plan.in_positions;
        const int64_t all = plan.images * size + plan.conv.channels * plan.pitch + W;  // the last run reads past the planes
        return plan.images * (ceil_div(size, CUT) * 2 * LANES + 3) + ceil_div(all * sizeof(Number), sizeof(float));
    }

    void find_range(const float* x, int64_t image, int64_t cut) const {
        const float *from = x + image * size + cut * CUT, *const end = x + image * size + (cut + 1 < cuts ? (cut + 1) * CUT : size);
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

    // Channels k0 .. k1 of some images, onto their planes.
    void fill(const float* x, int64_t images, int64_t k0, int64_t k1) const {
        for (int64_t image = 0; image < images; ++image) {
            const Scale scale(splat(s[image]), splat(inverse[image]), I{} + z[image]);
            const int64_t begin = image * size + k0 * plan.in_positions, end = image * size + k1 * plan.in_positions;
            for (int64_t i = begin; i < end; i += LANES) {
                const size_t count = static_cast<size_t>(end - i < LANES ? end - i : LANES);
                V from{};
                if (count == LANES) from = load(x + i);
                else __builtin_memcpy(&from, x + i, sizeof(float) * count);
                const Numbers found = __builtin_convertvector(scale.quantised(from), Numbers);
                if (count == LANES) __builtin_memcpy(numbers + i, &found, sizeof found);
                else __builtin_memcpy(numbers + i, &found, sizeof(Number) * count);
            }
        }
        const auto border = [&](int64_t image) { return static_cast<Number>(z[image]); };
        for (int64_t k = k0; k < k1; ++k) pack_plane(plan, numbers, images, k, border, planes + k * plan.pitch);
    }

    // Units first .. end of y at one run, whose columns are counted from `from`.
    void compute(const Positions::Run& run, const Number* from, int64_t first, int64_t end, int64_t images, const float* bias,
                 int32_t act, float* y) const {
        alignas(64) float own[RANGE * W], turned[RANGE * W], run_s[W];
        alignas(64) int32_t run_z[W];
        int64_t image = run.q0 / plan.image, left = (image + 1) * plan.image - run.q0;
        for (int64_t i = 0; i < W; ++i, --left) {
            if (left == 0) left = plan.image, ++image;
            run_s[i] = s[image < images ? image : 0];
            run_z[i] = z[image < images ? image : 0];
        }
        const Places in{from, plan.offset.data(), run_z, run_s};
        const bool lanes = w.r % LANES == 0;
        for (int64_t unit = first, stop; unit < end; unit = stop) {
            stop = unit + RANGE / w.r < end ? unit + RANGE / w.r : end;
            const int64_t n0 = unit * w.r, count = (stop - unit) * w.r, height = w.rows - n0 < count ? w.rows - n0 : count;
            const float* rows = own;
            if (lanes) {
                Gathered<T> gathered;
                for (int64_t i = unit; i < stop; ++i)
                    lanes_unit<T>(w, i, in, bias, gathered, own + (i - unit) * w.r, count);
                pack({own, W, count, count, 1, 0}, 0, W, 0, count, turned);
                rows = turned;
            } else {
                for (int64_t i = unit; i < stop; ++i) unit_rows<T, ROWS>(w, i, 0, in, bias, own + (i - unit) * w.r * W);
            }
            activate(act, lanes ? turned : own, count * W);
            for (int64_t n = 0; n < height; ++n)
                for (int64_t k = run.first; k < run.last; ++k) {
                    const Positions::Piece& piece = plan.pieces.data()[k];
                    if (piece.image >= images) break;
                    __builtin_memcpy(y + (piece.image * w.rows + n0 + n) * plan.out_positions + piece.y,
                                     rows + n * W + piece.q - run.q0, sizeof(float) * static_cast<size_t>(piece.count));
                }
        }
    }
};

static int64_t windows_workspace(const Positions& plan) { return Windows::floats_needed(plan); }

static void windows(const tk_parallel* p, const Int8Matrix& w, Positions& plan, const float* x, const float* bias, int32_t act,
                    float* y, float* work) {
    const tk_conv& conv = plan.conv;
    plan.cut(Windows::W, 1);
    const Windows windows(w, plan, work);
    const int64_t channels = conv.channels / conv.groups, units = w.units / conv.groups;
    const int64_t runs = static_cast<int64_t>(plan.runs.size()), together = ceil_div(PLANES, plan.pitch);
    // Units are cut no finer than the threads need: a run's places are read again for each range.
    const int64_t wanted = p->threads > 1 ? ceil_div(4 * p->threads, conv.groups * runs) : 1;
    const int64_t step = ceil_div(units, wanted), ranges = ceil_div(units, step);
    for (int64_t b0 = 0; b0 < conv.batch; b0 += plan.images) {
        const int64_t images = conv.batch - b0 < plan.images ? conv.batch - b0 : plan.images;
        const float* from = x + b0 * windows.size;
        parallel(p, images * windows.cuts, [&](int64_t task) { windows.find_range(from, task / windows.cuts, task % windows.cuts); });
        for (int64_t image = 0; image < images; ++image) windows.find_scale(image);
        parallel(p, ceil_div(conv.channels, together), [&](int64_t task) {
            const int64_t k0 = task * together, k1 = k0 + together < conv.channels ? k0 + together : conv.channels;
            windows.fill(from, images, k0, k1);
        });
        parallel(p, conv.groups * runs * ranges, [&](int64_t task) {
            const int64_t group = task / ranges / runs, range = task % ranges;
            const Positions::Run& run = plan.runs.data()[task / ranges % runs];
            const int64_t first = group * units + range * step, last = (group + 1) * units;
            const Number* at = windows.planes + group * channels * plan.pitch + run.q0;
            windows.compute(run, at, first, first + step < last ? first + step : last, images, bias, act,
                            y + b0 * w.rows * plan.out_positions);
        });
    }
}
