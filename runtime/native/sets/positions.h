// A convolution for inference: positions of the images are the vector axis, so that one image fills it.
//
// The images that are computed together lie side by side on one plane, each with its borders, a plane a channel; where
// the stride is above one, each channel has one plane for each place of a position between two strides that a tap reads.
// So output position q meets a weight at float q + offset of its channel, and the offset depends on the weight's column
// alone: no patch is copied. Between the rows of an image q runs on over the borders; what is computed there is dropped.
#pragma once
#include <type_traits>
#include <vector>

#include "parallel.h"

namespace topkast {

struct Positions {
    // What follows from the shapes alone; Y must not be empty. `copied`: planes are copies, even of images that are such.
    Positions(const tk_matrix& w, const tk_conv& conv, bool copied = false);
    // Offsets, and runs of at most `longest` vectors of `lanes` positions.
    void cut(int64_t lanes, int64_t longest);
    // Of packed images; the last vector may read past them.
    int64_t floats() const { return (in_place ? 0 : conv.channels * pitch) + 16; }

    // Positions q0.. of one task, in whole vectors, and those of them that are outputs.
    struct Run {
        int64_t q0, vectors, first, last;  // first..last of `pieces`
    };
    // `count` positions of the plane from q on are those of a channel of Y from y on, in one of the plane's images.
    struct Piece {
        int64_t q, count, image, y;
    };

    const tk_matrix& w;
    const tk_conv& conv;
    int64_t in_positions, out_positions;
    std::vector<int64_t> places[3];  // by dim: those between two strides that are read, in order
    int64_t size[3], image;          // of an image on a plane, and its positions
    int64_t images, plane;           // how many lie on it, and their positions
    int64_t pitch;                   // floats from channel to channel
    bool in_place;                   // the images are such planes themselves: nothing is packed
    std::vector<int32_t> offset;     // [columns of the matrix]
    std::vector<Run> runs;           // of a plane full of images
    std::vector<Piece> pieces;
};

}  // namespace topkast
