// A weight that came from a file: everything the kernels trust, checked before they see it.
#pragma once
#include <stdint.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "int8.h"
#include "tensor.h"

namespace topkast {
namespace ort {

constexpr int64_t MAX_BLOCK = 64;  // rows and columns of a block; the kernels' buffers are cut for it

struct Geometry {
    int64_t rows, columns, r, c;

    int64_t grid_rows() const { return (rows + r - 1) / r; }
    int64_t grid_cols() const { return (columns + c - 1) / c; }
};

inline std::string text(int64_t number) { return std::to_string(number); }

inline void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument("topkast: " + message);
}

inline void check(const Geometry& g) {
    const int64_t most = INT32_MAX;
    require(g.rows >= 1 && g.rows <= most, "rows is " + text(g.rows) + ", must be from 1 to 2147483647");
    require(g.columns >= 1 && g.columns <= most, "columns is " + text(g.columns) + ", must be from 1 to 2147483647");
    require(g.r >= 1 && g.r <= MAX_BLOCK && g.c >= 1 && g.c <= MAX_BLOCK,
            "block is " + text(g.r) + " x " + text(g.c) + ", must be from 1 x 1 to 64 x 64");
}

template <class Col>
void check_columns(const int64_t* row_ptr, const Col* cols, const Geometry& g) {
    const int64_t limit = g.grid_cols();
    for (int64_t i = 0; i < g.grid_rows(); ++i) {
        int64_t before = -1;
        for (int64_t s = row_ptr[i]; s < row_ptr[i + 1]; ++s) {
            const int64_t col = cols[s];
            if (col <= before || col >= limit)
                require(false, "cols[" + text(s) + "] is " + text(col) + ", must be above " + text(before) +
                                   " and below " + text(limit));
            before = col;
        }
    }
}

inline float widen(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
    float found;
    if (magnitude < 0x0400) {  // zero and subnormal numbers: multiples of 2^-24
        found = static_cast<float>(magnitude) * 0x1p-24f;
    } else {  // the exponent's bias is 112 less; of infinities and NaN all its bits are set
        const uint32_t bits = magnitude >= 0x7c00 ? 0x7f800000 | (magnitude & 0x03ff) << 13 : (magnitude << 13) + (112u << 23);
        __builtin_memcpy(&found, &bits, 4);
    }
    return sign ? -found : found;
}

// The index of a weight in two steps: the tensors themselves, then what they hold. The values are checked between.
inline void check_types(const Geometry& g, const Tensor& row_ptr, const Tensor& cols) {
    require(row_ptr.type == INT64 && row_ptr.dims.size() == 1 && row_ptr.count == g.grid_rows() + 1,
            "row_ptr must be int64 [" + text(g.grid_rows() + 1) + "], one more than there are rows of blocks");
    require((cols.type == UINT16 || cols.type == INT32) && cols.dims.size() == 1 && cols.count <= INT32_MAX,
            "cols must be a vector of uint16 or int32, of at most 2147483647");
}

inline void check_contents(const Geometry& g, const Tensor& row_ptr, const Tensor& cols) {
    const int64_t* starts = static_cast<const int64_t*>(row_ptr.data);
    require(starts[0] == 0 && starts[g.grid_rows()] == cols.count,
            "row_ptr must begin at 0 and end at " + text(cols.count) + ", the length of cols");
    for (int64_t i = 0; i < g.grid_rows(); ++i)
        require(starts[i] <= starts[i + 1], "row_ptr descends after entry " + text(i));
    if (cols.type == UINT16) check_columns(starts, static_cast<const uint16_t*>(cols.data), g);
    if (cols.type == INT32) check_columns(starts, static_cast<const int32_t*>(cols.data), g);
}

// A file holds A only: a row's first slots of the forward set are all of them.
inline tk_matrix indexed(const Geometry& g, const Tensor& row_ptr, const Tensor& cols) {
    const int64_t* starts = static_cast<const int64_t*>(row_ptr.data);
    return {nullptr, starts, starts + 1, cols.data, g.rows, g.columns, cols.count,
            static_cast<int32_t>(g.r), static_cast<int32_t>(g.c), cols.type == UINT16 ? 2 : 4};
}

// The matrix of a node, whose tensors must outlive it; values of 16 bits are widened here, once.
class Weight {
public:
    static constexpr size_t PARTS = 3;  // values, row_ptr, cols

    Weight() = default;
    Weight(const Weight&) = delete;

    void take(const Geometry& g, const Tensor* parts) {
        const Tensor &values = parts[0], &row_ptr = parts[1], &cols = parts[2];
        check_types(g, row_ptr, cols);
        const int64_t size = cols.count * g.r * g.c;
        require((values.type == FLOAT || values.type == FLOAT16) && values.dims.size() == 1 && values.count == size,
                "values must be float or float16 [" + text(size) + "], a block for each of cols");
        check_contents(g, row_ptr, cols);
        matrix_ = indexed(g, row_ptr, cols);
        matrix_.values = static_cast<const float*>(values.data);
        if (values.type == FLOAT16) {
            const uint16_t* halves = static_cast<const uint16_t*>(values.data);
            widened_.resize(size);
            for (int64_t i = 0; i < size; ++i) widened_[i] = widen(halves[i]);
            matrix_.values = widened_.data();
        }
    }

    bool taken() const { return matrix_.row_ptr != nullptr; }
    const tk_matrix& matrix() const { return matrix_; }

private:
    tk_matrix matrix_{};
    std::vector<float> widened_;
};

// The same with values of int8 and a scale for each row, prepared for the kernels once; the tensors need not outlive it.
// `words`: for a convolution, see int8.h.
template <bool words>
class Quantised {
public:
    static constexpr size_t PARTS = 4;  // values, row_ptr, cols, scale

    void take(const Geometry& g, const Tensor* parts) {
        const Tensor &values = parts[0], &row_ptr = parts[1], &cols = parts[2], &scale = parts[3];
        check_types(g, row_ptr, cols);
        const int64_t size = cols.count * g.r * g.c;
        require(values.type == INT8 && values.dims.size() == 1 && values.count == size,
                "values must be int8 [" + text(size) + "], a block for each of cols");
        require(scale.type == FLOAT && scale.dims.size() == 1 && scale.count == g.rows,
                "scale must be float [" + text(g.rows) + "]");
        check_contents(g, row_ptr, cols);
        weight_ = std::make_unique<Int8Weight>(indexed(g, row_ptr, cols), static_cast<const int8_t*>(values.data),
                                               static_cast<const float*>(scale.data), words);
    }

    bool taken() const { return weight_ != nullptr; }
    const Int8Weight& matrix() const { return *weight_; }

private:
    std::unique_ptr<Int8Weight> weight_;
};

}  // namespace ort
}  // namespace topkast
