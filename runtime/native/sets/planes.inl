// Images onto planes, see positions.h.

static constexpr int64_t PLANES = 16 * 1024;  // numbers of planes that one task packs

// to[i] = from[i * stride]; the first two are loops that a compiler turns into vectors.
template <class Number>
static inline void copy_row(const Number* __restrict from, int64_t stride, int64_t count, Number* __restrict to) {
    constexpr int64_t SHORT = 16 / sizeof(Number);
    if (stride == 1 && count >= SHORT) {  // the last piece reaches back, over what is done already
        for (int64_t i = 0; i + SHORT < count; i += SHORT) __builtin_memcpy(to + i, from + i, 16);
        __builtin_memcpy(to + count - SHORT, from + count - SHORT, 16);
    } else if (stride == 2) {
        for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
    }
}

// One channel of some images, onto its planes; border(image) is what lies around an image.
template <class Number, class Border>
static void pack_plane(const Positions& plan, const Number* x, int64_t images, int64_t channel, const Border& border,
                       Number* to) {
    const tk_conv& conv = plan.conv;
    for (const int64_t z0 : plan.places[0])
        for (const int64_t y0 : plan.places[1])
            for (const int64_t x0 : plan.places[2]) {
                // Of a row of the plane, left..right are read from the image.
                const int64_t stride = conv.stride[2], shift = x0 - conv.padding[2];
                const int64_t left = shift < 0 ? ceil_div(-shift, stride) : 0;
                const int64_t most = conv.in[2] - shift > 0 ? ceil_div(conv.in[2] - shift, stride) : 0;
                const int64_t start = left < plan.size[2] ? left : plan.size[2];
                const int64_t right = most < start ? start : most < plan.size[2] ? most : plan.size[2];
                for (int64_t b = 0; b < images; ++b) {
                    const Number around = border(b);
                    for (int64_t z = 0; z < plan.size[0]; ++z)
                        for (int64_t y = 0; y < plan.size[1]; ++y, to += plan.size[2]) {
                            const int64_t in_z = z * conv.stride[0] + z0 - conv.padding[0];
                            const int64_t in_y = y * conv.stride[1] + y0 - conv.padding[1];
                            const bool inside = in_z >= 0 && in_z < conv.in[0] && in_y >= 0 && in_y < conv.in[1];
                            const int64_t end = inside ? right : start;
                            for (int64_t i = 0; i < start; ++i) to[i] = around;
                            for (int64_t i = end; i < plan.size[2]; ++i) to[i] = around;
                            if (!inside) continue;
                            const Number* from = x + (b * conv.channels + channel) * plan.in_positions +
                                                (in_z * conv.in[1] + in_y) * conv.in[2] + shift;
                            copy_row(from + start * stride, stride, end - start, to + start);
                        }
                }
                to += (plan.images - images) * plan.image;
            }
}
