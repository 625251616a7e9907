// Products with a weight of int8, whose activations are quantised inside, row by row:
//
//   lo = min(0, min x)      hi = max(0, max x)      s = max((hi - lo) / 255, 2^-126)      i = 1 / s
//   z = clip(round(-lo i), 0, 255)                  q_k = clip(round(x_k i) + z, 0, 255)
//   acc_n = sum_k q_k w_nk - z sum_k w_nk           y_n = float(acc_n) (s scale_n) + bias_n
//
// A convolution is such a product for each position, of the numbers that its window meets. All numbers of an image have one
// s and one z (or those of a position, where a window is one), and what lies around the image is 0, which z stands for.
//
// The sums are exact. Each operation on floats is rounded by itself, round() takes halves to the even number, so the
// result has the same bits on every processor. A row of x (or an image) with a NaN or an infinity, or whose hi - lo overflows,
// gives NaN.
#pragma once
#include <float.h>
#include <stddef.h>
#include <stdint.h>

#include <type_traits>
#include <vector>

#include "positions.h"
#include "topkast.h"

namespace topkast {

struct Int8Kernels;

// The weight as the kernels read it. Blocks of several columns are cut into single ones. `group` chosen columns of a row
// of blocks make one word of 32 bits, as one instruction multiplies them; the last group is filled with weights of zero.
struct Int8Matrix {
    int64_t rows, columns, units;  // units: rows of blocks
    int32_t r;                     // rows of a block
    const int64_t* starts;         // [units + 1], in groups
    const int32_t* cols;           // [groups][group]
    const int32_t* words;          // [groups][r]; null if a product finds r a multiple of the kernels' lanes, and then instead
    const int8_t* packed;          // [groups][r][group]
    const int32_t* sums;           // [units * r]: of a row's weights
    const float* scale;            // [units * r]
};

class Int8Weight {
public:
    // Row i of blocks owns the slots row_ptr[i] .. row_ptr[i + 1] of cols [slots] and of values [slots][r][c]; both are
    // checked. scale is [rows]. The kernels are those of the instruction set in use. `words`: in words for any r, as
    // convolutions read the weight. Throws std::invalid_argument if a sum could leave int32.
    Int8Weight(const tk_matrix& index, const int8_t* values, const float* scale, bool words = false);
    Int8Weight(const Int8Weight&) = delete;

    const Int8Kernels& kernels() const { return kernels_; }
    const Int8Matrix& matrix() const { return matrix_; }

    // Y = act(X * W^T + bias) as tk_conv_positions has it, and its scratch in floats; the weight is in words. `by_position`:
    // an output reads one position, whose numbers have their own scale, in place of one for the image.
    int64_t convolution_workspace(const tk_conv& conv, bool by_position) const;
    void convolve(const tk_parallel* p, const tk_conv& conv, bool by_position, const float* x, const float* bias, int32_t act,
                  float* y, float* work) const;

private:
    const Int8Kernels& kernels_;
    std::vector<int64_t> starts_;
    std::vector<int32_t> cols_, words_, sums_;
    std::vector<int8_t> packed_;
    std::vector<float> scale_;
    Int8Matrix matrix_;
};

struct Int8Kernels {
    int lanes, group;                                    // words in a vector; columns in a word
    int64_t (*workspace)(const Int8Matrix&, int64_t m);  // floats of scratch for m rows of activations
    // y = act(x W^T + bias), x and y in rows of any strides; bias may be null.
    void (*product)(const tk_parallel*, const Int8Matrix&, const tk_view& x, const float* bias, int32_t act,
                    const tk_view& y, float* work);
    // The same of a convolution, see Int8Weight.
    int64_t (*convolution_workspace)(Positions&, bool by_position);
    void (*convolution)(const tk_parallel*, const Int8Matrix&, Positions&, bool by_position, const float* x, const float* bias,
                        int32_t act, float* y, float* work);
};

const Int8Kernels& int8_kernels();  // of the instruction set in use

namespace portable { extern const Int8Kernels int8; }
#ifdef __x86_64__
namespace avx2 { extern const Int8Kernels int8; }
namespace avx512 { extern const Int8Kernels int8; }
namespace vnni { extern const Int8Kernels int8; }
#endif

}  // namespace topkast
