// A convolution with positions of the images as the vector axis, see positions.h. Planes hold the numbers of the images side
// by side, narrow ones, and around an image its zero point. So GROUP columns at a run of positions are as many registers at
// any places of the planes.

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

struct Gathers {  // the same words, which were gathered before; `first` are the columns of the first ones
    const int32_t *words, *first, *z;
    const float* s;
};

template <int T>
static inline void operands(const Gathers& in, const int32_t* cols, I* x) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) x[t] = load_words(in.words + (cols - in.first) * (T * LANES / GROUP) + t * LANES);
}

// Fours of lanes of a and b by turns: the lower halves, the upper halves.
template <int half, int... i>
static inline V by_fours(V a, V b, Lanes<i...>) {
    return shuffled<(i / 8 * 4 + half * LANES / 2 + i % 4 + i / 4 % 2 * LANES)...>(a, b);
}

// interleave deals fours of positions out to its vectors by turns.
template <int T>
static inline void collect_fours(I* sums) {
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
template <int T>
static inline void in_order(const Places&, I* sums) { collect_fours<T>(sums); }
template <int T>
static inline void in_order(const Gathers&, I* sums) { collect_fours<T>(sums); }

struct Windows {
    static constexpr int T = WIDE;  // vectors of positions in a run
    static constexpr int64_t W = T * LANES, MOST = 128;  // groups of a unit that are gathered once: their words fit caches

    const Int8Matrix& w;
    const Positions& plan;
    const float *s, *bias;  // scales and zero points, of an image or of a position
    const int32_t* z;
    bool by_position;
    int32_t act;

    // Units first .. end at one run of some images, of a group whose planes begin at `from`.
    void compute(const Positions::Run& run, const Number* from, int64_t first, int64_t end, int64_t images, float* y) const {
        alignas(64) float own[RANGE * W], run_s[W];
        alignas(64) int32_t words[MOST * W], run_z[W];
        Places in{from + run.q0, plan.offset.data(), z + run.q0, s + run.q0};
        if (!by_position) {
            int64_t image = run.q0 / plan.image, left = (image + 1) * plan.image - run.q0;
            for (int64_t i = 0; i < W; ++i, --left) {
                if (left == 0) left = plan.image, ++image;
                run_s[i] = s[image < images ? image : 0];
                run_z[i] = z[image < images ? image : 0];
            }
            in.z = run_z, in.s = run_s;
        }
        const Positions::Piece* const pieces = plan.pieces.data();
        const bool straight = run.last - run.first == 1 && pieces[run.first].count == W && pieces[run.first].image < images;
        for (int64_t unit = first; unit < end; ++unit) {
            const int64_t n0 = unit * w.r, height = w.rows - n0 < w.r ? w.rows - n0 : w.r;
            const auto at = [&](const Positions::Piece& piece) {
                return y + (piece.image * w.rows + n0) * plan.out_positions + piece.y;
            };
            Out out{own, W};
            if (straight && height == w.r) out = {at(pieces[run.first]), plan.out_positions};
            unit_at(unit, in, words, out);
            for (int64_t n = 0; n < height; ++n) activate(act, out.data + n * out.pitch, W);
            if (out.data != own) continue;
            for (int64_t k = run.first; k < run.last && pieces[k].image < images; ++k)
                for (int64_t n = 0; n < height; ++n)
                    copy_row(own + n * W + pieces[k].q - run.q0, 1, pieces[k].count, at(pieces[k]) + n * plan.out_positions);
        }
    }

    void unit_at(int64_t unit, const Places& in, int32_t* words, Out out) const {
        const int64_t begin = w.starts[unit], groups = w.starts[unit + 1] - begin;
        if (w.r <= ROWS || groups > MOST) return unit_rows<T, ROWS>(w, unit, 0, in, bias, out);
        for (int64_t g = 0; g < groups; ++g) {
            I x[T];
            operands<T>(in, w.cols + (begin + g) * GROUP, x);
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) store_words(words + g * W + t * LANES, x[t]);
        }
        unit_rows<T, ROWS>(w, unit, 0, Gathers{words, w.cols + begin * GROUP, in.z, in.s}, bias, out);
    }
};

// An image that is its own plane has whole runs there.
static void spread(Positions& plan, bool by_position) {
    if (by_position && plan.pitch % Images::W) plan.pitch += Images::W - plan.pitch % Images::W;
}

static int64_t windows_workspace(Positions& plan, bool by_position) {
    spread(plan, by_position);
    float none;
    return ceil_div(Images(plan, by_position, &none).bytes(&none), sizeof(float));
}

static void windows(const tk_parallel* p, const Int8Matrix& w, Positions& plan, bool by_position, const float* x,
                    const float* bias, int32_t act, float* y, float* work) {
    const tk_conv& conv = plan.conv;
    spread(plan, by_position);
    plan.cut(Windows::W, 1);
    const Images images(plan, by_position, work);
    const Windows windows{w, plan, images.s, bias, images.z, by_position, act};
    const int64_t channels = conv.channels / conv.groups, units = w.units / conv.groups;
    const int64_t runs = static_cast<int64_t>(plan.runs.size()), together = ceil_div(PLANES, plan.pitch);
    // Units are cut no finer than the threads need: a run's places are read again for each range.
    const int64_t wanted = p->threads > 1 ? ceil_div(4 * p->threads, conv.groups * runs) : 1;
    const int64_t step = ceil_div(units, wanted), ranges = ceil_div(units, step);
    for (int64_t b0 = 0; b0 < conv.batch; b0 += plan.images) {
        const int64_t count = conv.batch - b0 < plan.images ? conv.batch - b0 : plan.images;
        const float* const from = x + b0 * images.size;
        float* const to = y + b0 * w.rows * plan.out_positions;
        const auto compute = [&](int64_t run, int64_t group, int64_t range) {
            const int64_t first = group * units + range * step, last = (group + 1) * units;
            windows.compute(plan.runs.data()[run], images.planes + group * channels * plan.pitch, first,
                            first + step < last ? first + step : last, count, to);
        };
        if (by_position && ranges == 1) {
            parallel(p, runs, [&](int64_t run) {
                images.fill_run(from, run * Images::W);
                compute(run, 0, 0);
            });
            continue;
        }
        if (by_position) {
            parallel(p, runs, [&](int64_t run) { images.fill_run(from, run * Images::W); });
        } else {
            parallel(p, count * images.cuts, [&](int64_t task) { images.find_range(from, task / images.cuts, task % images.cuts); });
            for (int64_t image = 0; image < count; ++image) images.find_scale(image);
            parallel(p, ceil_div(conv.channels, together), [&](int64_t task) {
                const int64_t k0 = task * together, k1 = k0 + together < conv.channels ? k0 + together : conv.channels;
                images.fill(from, count, k0, k1);
            });
        }
        parallel(p, conv.groups * runs * ranges,
                 [&](int64_t task) { compute(task / ranges % runs, task / ranges / runs, task % ranges); });
    }
}
