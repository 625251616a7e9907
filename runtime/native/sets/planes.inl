// Images onto planes, see positions.h.

static constexpr int64_t PLANES = 16 * 1024;  // numbers of planes that one task packs

// A row of an image is short, so pieces of as many bytes as fit do it; the last one reaches back, over what is done already.
template <int64_t BYTES, class Number>
static inline void copy_pieces(const Number* from, int64_t count, Number* to) {
    if constexpr (BYTES <= sizeof(Number)) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    } else {
        constexpr int64_t PIECE = BYTES / sizeof(Number);
        if (count < PIECE) return copy_pieces<BYTES / 2>(from, count, to);
        for (int64_t i = 0; i + PIECE < count; i += PIECE) __builtin_memcpy(to + i, from + i, BYTES);
        __builtin_memcpy(to + count - PIECE, from + count - PIECE, BYTES);
    }
}

// to[i] = from[i * stride].
template <class Number>
static inline void copy_row(const Number* from, int64_t stride, int64_t count, Number* to) {
    typedef std::conditional_t<sizeof(Number) == 1, uint8_t, std::conditional_t<sizeof(Number) == 2, uint16_t, uint32_t>> Narrow;
    typedef std::conditional_t<sizeof(Number) == 1, uint16_t, std::conditional_t<sizeof(Number) == 2, uint32_t, uint64_t>> Wide;
    typedef Narrow Piece __attribute__((vector_size(16)));
    typedef Wide Pairs __attribute__((vector_size(32)));
    constexpr int64_t PIECE = 16 / sizeof(Number);
    if (stride == 1) {
        copy_pieces<64>(from, count, to);
    } else if (stride == 2 && count > PIECE && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__) {
        Pairs pairs;
        for (int64_t i = 0; i + PIECE < count; i += PIECE) {
            __builtin_memcpy(&pairs, from + 2 * i, 32);
            const Piece found = __builtin_convertvector(pairs, Piece);
            __builtin_memcpy(to + i, &found, 16);
        }
        // One earlier, so as not to read behind the row.
        __builtin_memcpy(&pairs, from + 2 * (count - PIECE) - 1, 32);
        const Piece found = __builtin_convertvector(pairs >> 8 * sizeof(Number), Piece);
        __builtin_memcpy(to + count - PIECE, &found, 16);
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
    }
}

template <class Number>
static inline void fill_row(Number value, int64_t count, Number* to) {
    constexpr int64_t PIECE = 16 / sizeof(Number);
    Number piece[PIECE];
    for (int64_t i = 0; i < PIECE; ++i) piece[i] = value;
    for (; count >= PIECE; count -= PIECE, to += PIECE) __builtin_memcpy(to, piece, 16);
    for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// One channel of some images, onto its planes; border(image) is what lies around an image.
template <class Number, class Border>
static void pack_plane(const Positions& plan, const Number* x, int64_t images, int64_t channel, const Border& border,
                       Number* to) {
    const tk_conv& conv = plan.conv;
    // By dim, for each place: positions first .. last of a plane are read from the image, from `shift` on.
    struct Part {
        int64_t shift, first, last;
    };
    const auto part = [&](int d, int64_t place) {
        const int64_t stride = conv.stride[d], shift = place - conv.padding[d], left = shift < 0 ? ceil_div(-shift, stride) : 0;
        const int64_t most = conv.in[d] - shift > 0 ? ceil_div(conv.in[d] - shift, stride) : 0;
        const int64_t first = left < plan.size[d] ? left : plan.size[d];
        return Part{shift, first, most < first ? first : most < plan.size[d] ? most : plan.size[d]};
    };
    for (const int64_t z0 : plan.places[0])
        for (const int64_t y0 : plan.places[1])
            for (const int64_t x0 : plan.places[2]) {
                const Part of_z = part(0, z0), of_y = part(1, y0), of_x = part(2, x0);
                const int64_t count = of_x.last - of_x.first;
                const bool whole = (of_z.last - of_z.first) * (of_y.last - of_y.first) * count == plan.image;
                for (int64_t b = 0; b < images; ++b, to += plan.image) {
                    if (!whole) fill_row(border(b), plan.image, to);
                    const Number* const from = x + (b * conv.channels + channel) * plan.in_positions;
                    for (int64_t z = of_z.first; z < of_z.last; ++z)
                        for (int64_t y = of_y.first; y < of_y.last; ++y) {
                            const int64_t in_z = z * conv.stride[0] + of_z.shift, in_y = y * conv.stride[1] + of_y.shift;
                            const int64_t in_x = of_x.first * conv.stride[2] + of_x.shift;
                            copy_row(from + (in_z * conv.in[1] + in_y) * conv.in[2] + in_x, conv.stride[2], count,
                                     to + (z * plan.size[1] + y) * plan.size[2] + of_x.first);
                        }
                }
                to += (plan.images - images) * plan.image;
            }
}
