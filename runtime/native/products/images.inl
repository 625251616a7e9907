// Images between the caller's layout and lines: channels of positions, `width` images side by side.

// Channels c0..c1 of positions p0..p1 of some images, and where their lines lie: line(c, p) = at[p] * pitch + c.
struct Box {
    int64_t channels, positions;  // of a whole image
    int64_t c0, c1, p0, p1;
    const int32_t* at;  // null: position p is line p - p0; negative: nowhere
    int64_t pitch;
};

// Floats 0..LANES of LANES images, which lie `stride` apart, and as many lines' lanes from `i` on; nowhere is null.
template <bool into_lines>
static inline void whole_tile(float* images, int64_t stride, float* const* line, int64_t i) {
    V v[LANES];
    if (into_lines) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) v[j] = load(images + j * stride);
        transpose(v);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j)
            if (line[j]) store(line[j] + i, v[j]);
    } else {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) v[j] = line[j] ? load(line[j] + i) : V{};
        transpose(v);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) store(images + j * stride, v[j]);
    }
}

// The same for `many` floats of `here` images; lanes of other images get zeros.
template <bool into_lines>
static void part_of_tile(float* images, int64_t stride, int64_t here, float* const* line, int64_t i, int64_t many) {
    for (int64_t k = 0; k < many; ++k)
        for (int64_t j = 0; j < LANES; ++j) {
            if (!into_lines && j < here) images[j * stride + k] = line[k] ? line[k][i + j] : 0.0f;
            if (into_lines && line[k]) line[k][i + j] = j < here ? images[j * stride + k] : 0.0f;
        }
}

// Where images lie side by side already, lane by lane: a copy.
template <bool into_lines>
static void copy_box(const tk_image& image, int64_t batch, int64_t b0, int64_t width, const Box& box, float* lines) {
    for (int64_t p = box.p0; p < box.p1; ++p) {
        const int64_t at = box.at ? box.at[p] : p - box.p0;
        for (int64_t c = box.c0; c < box.c1; ++c) {
            float *line = lines + (at * box.pitch + c) * width, *row = image.data + p * image.stride + c * batch + b0;
            for (int64_t i = 0; i < width; i += LANES) {
                if (b0 + i + LANES <= batch) {
                    store(into_lines ? line + i : row + i, load(into_lines ? row + i : line + i));
                    continue;
                }
                for (int64_t j = i; j < i + LANES; ++j) {
                    if (into_lines) line[j] = b0 + j < batch ? row[j] : 0.0f;
                    else if (b0 + j < batch) row[j] = line[j];
                }
            }
        }
    }
}

// Between images b0.. in memory order and lines of `width` images, tile by tile of LANES x LANES.
template <bool into_lines>
static void move_box(const tk_image& image, int64_t batch, int64_t b0, int64_t width, const Box& box, float* lines) {
    if (image.order == 2) return copy_box<into_lines>(image, batch, b0, width, box, lines);
    const bool last = image.order == 1;
    const int64_t inner0 = last ? box.c0 : box.p0, inner1 = last ? box.c1 : box.p1;
    const int64_t outer0 = last ? box.p0 : box.c0, outer1 = last ? box.p1 : box.c1;
    const int64_t size = last ? box.channels : box.positions;
    const bool whole = inner0 == 0 && inner1 == size;  // then the rows of the box follow each other in memory
    const int64_t pieces = whole ? 1 : outer1 - outer0;
    const int64_t count = (whole ? outer1 - outer0 : 1) * (inner1 - inner0);
    for (int64_t piece = 0; piece < pieces; ++piece)
        for (int64_t f = 0; f < count;) {
            // The last tile of a piece reaches back, over what is done already; a piece below one tile is masked.
            if (f > 0 && f + LANES > count) f = count - LANES;
            const int64_t many = count < LANES ? count : LANES;
            int64_t outer = outer0 + piece + f / (inner1 - inner0), inner = inner0 + f % (inner1 - inner0);
            float* from = image.data + outer * size + inner;
            float* line[LANES];
            for (int64_t j = 0; j < many; ++j) {
                const int64_t c = last ? inner : outer, p = last ? outer : inner;
                const int64_t at = box.at ? box.at[p] : p - box.p0;
                line[j] = at < 0 ? nullptr : lines + (at * box.pitch + c) * width;
                if (++inner == inner1) inner = inner0, ++outer;
            }
            for (int64_t i = 0; i < width; i += LANES) {
                const int64_t here = batch - b0 - i;
                float* images = from + (b0 + i) * image.stride;
                if (many == LANES && here >= LANES) {
                    whole_tile<into_lines>(images, image.stride, line, i);
                } else {
                    part_of_tile<into_lines>(images, image.stride, here < LANES ? here : LANES, line, i, many);
                }
            }
            f += LANES;
        }
}

static constexpr int64_t PIECE = 2048;  // floats of an image that one task packs

// Images b0.. as lines [position][pitch]; `at` as in Box. Rows of a group are padded to whole blocks: channels
// [group][padded], of which `used` are in the image.
static void pack_images(const tk_parallel* p, const tk_image& image, int64_t batch, int64_t b0, int64_t width,
                        int64_t groups, int64_t used, int64_t padded, int64_t positions, const int32_t* at,
                        float* lines) {
    const int64_t pitch = groups * padded;
    const bool cut_positions = image.order != 0;
    const int64_t step = cut_positions ? ceil_div(PIECE, used) : ceil_div(PIECE, positions);
    const int64_t cut = ceil_div(cut_positions ? positions : used, step);
    parallel(p, groups * cut, [&](int64_t task) {
        const int64_t group = task / cut, from = task % cut * step, to = from + step;
        Box box{groups * used, positions, group * used, (group + 1) * used, 0, positions, at, pitch};
        int64_t &low = cut_positions ? box.p0 : box.c0, &high = cut_positions ? box.p1 : box.c1;
        high = low + to < high ? low + to : high;
        low += from;
        float* to_lines = lines + group * (padded - used) * width;
        if (!at) to_lines += box.p0 * pitch * width;
        move_box<true>(image, batch, b0, width, box, to_lines);
    });
    if (padded == used) return;
    parallel(p, groups * positions, [&](int64_t task) {  // never with borders
        float* line = lines + (task / groups * pitch + task % groups * padded + used) * width;
        for (int64_t i = 0; i < (padded - used) * width; i += LANES) store(line + i, V{});
    });
}
