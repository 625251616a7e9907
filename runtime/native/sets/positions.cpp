// Where the weights and positions of a convolution lie when positions are the vector axis, see positions.h.
#include "positions.h"

#include <algorithm>
#include <numeric>

using namespace topkast;

static constexpr int64_t POSITIONS = 512;  // on a plane that is full: from here on another image fills no vector better
static constexpr int64_t LEAST = 128;      // positions of a plane that is read in place: the longest run must fit
static constexpr int64_t LINE = 16;        // floats of a cache line

static int64_t product(const int64_t* of) { return of[0] * of[1] * of[2]; }

Positions::Positions(const tk_matrix& w, const tk_conv& conv, bool copied)
    : w(w), conv(conv), in_positions(product(conv.in)), out_positions(product(conv.out)) {
    int64_t planes = 1;
    in_place = !copied;
    for (int d = 0; d < 3; ++d) {
        // After that many taps the places come again.
        const int64_t period = conv.stride[d] / std::gcd(conv.stride[d], conv.dilation[d]);
        for (int64_t k = 0; k < std::min(conv.kernel[d], period); ++k)
            places[d].push_back(k * conv.dilation[d] % conv.stride[d]);
        std::sort(places[d].begin(), places[d].end());
        places[d].erase(std::unique(places[d].begin(), places[d].end()), places[d].end());
        planes *= static_cast<int64_t>(places[d].size());
        in_place = in_place && conv.kernel[d] == 1 && conv.stride[d] == 1 && conv.in[d] == conv.out[d];
        size[d] = conv.out[d] + (conv.kernel[d] - 1) * conv.dilation[d] / conv.stride[d];
    }
    image = product(size);
    // Single weights load a line for each product: then it pays to have lines on cache lines.
    in_place = in_place && image >= LEAST && (w.r >= 4 || image % LINE == 0);
    if (in_place) {
        images = 1;
        plane = pitch = image;
        return;
    }
    images = ceil_div(conv.batch, ceil_div(conv.batch, ceil_div(POSITIONS, image)));  // as many each time
    plane = image * images;
    // An odd number of cache lines, so that channels do not meet in few places of a cache.
    pitch = (ceil_div(planes * plane, LINE) | 1) * LINE;
}

void Positions::cut(int64_t lanes, int64_t longest) {
    // By dim, of a tap: its plane among `places`, and its position there.
    const auto place = [&](int d, int64_t k) {
        return std::lower_bound(places[d].begin(), places[d].end(), k * conv.dilation[d] % conv.stride[d]) -
               places[d].begin();
    };
    const auto step = [&](int d, int64_t k) { return k * conv.dilation[d] / conv.stride[d]; };
    const int64_t channels = conv.channels / conv.groups;
    offset.reserve(w.columns);
    for (int64_t channel = 0; channel < channels; ++channel)
        for (int64_t z = 0; z < conv.kernel[0]; ++z)
            for (int64_t y = 0; y < conv.kernel[1]; ++y)
                for (int64_t x = 0; x < conv.kernel[2]; ++x) {
                    const int64_t tap[3] = {z, y, x};
                    int64_t of = 0, at = 0;
                    for (int d = 0; d < 3; ++d) {
                        of = of * static_cast<int64_t>(places[d].size()) + place(d, tap[d]);
                        at = at * size[d] + step(d, tap[d]);
                    }
                    offset.push_back(static_cast<int32_t>(channel * pitch + of * plane + at));
                }
    std::vector<Piece> rows;  // the outputs of one image, whole rows where a row has no borders
    for (int64_t z = 0; z < conv.out[0]; ++z)
        for (int64_t y = 0; y < conv.out[1]; ++y) {
            const Piece row{(z * size[1] + y) * size[2], conv.out[2], 0, (z * conv.out[1] + y) * conv.out[2]};
            if (!rows.empty() && rows.back().q + rows.back().count == row.q) rows.back().count += row.count;
            else rows.push_back(row);
        }
    const int64_t end = (images - 1) * image + rows.back().q + rows.back().count;
    const int64_t vectors = ceil_div(end, lanes), count = ceil_div(vectors, longest);
    int64_t q0 = 0, at = 0, of = 0;  // `of`: the image whose row `at` comes next
    for (int64_t i = 0; i < count; ++i) {
        Run run{q0, vectors / count + (i < vectors % count), static_cast<int64_t>(pieces.size()), 0};
        const int64_t q1 = q0 + run.vectors * lanes;
        while (of < images) {
            const Piece& row = rows[at];
            const int64_t q = of * image + row.q, from = std::max(q, q0), to = std::min(q + row.count, q1);
            if (from < to) pieces.push_back({from, to - from, of, row.y + from - q});
            if (q + row.count > q1) break;
            if (++at == static_cast<int64_t>(rows.size())) at = 0, ++of;
        }
        run.last = static_cast<int64_t>(pieces.size());
        // The last run may not read past an image in place: it begins earlier, and what it computes again is dropped.
        if (in_place && q1 > image) run.q0 = image - run.vectors * lanes;
        runs.push_back(run);
        q0 = q1;
    }
}
