// A weight of int8 on its way to the form that the kernels read.
#include <stdexcept>
#include <string>

#include "int8.h"

using namespace topkast;

static constexpr int64_t MOST = INT32_MAX / (255 * 128);  // entries of a row whose sum cannot leave int32

Int8Weight::Int8Weight(const tk_matrix& index, const int8_t* values, const float* scale, bool words)
    : kernels_(int8_kernels()) {
    const int64_t units = (index.rows + index.r - 1) / index.r, r = index.r, c = index.c, group = kernels_.group;
    const bool packed = !words && r % kernels_.lanes == 0;
    const uint32_t bits = 32 / static_cast<uint32_t>(group), mask = ~uint32_t{0} >> (32 - bits);
    starts_.push_back(0);
    sums_.resize(units * r);
    for (int64_t unit = 0; unit < units; ++unit) {
        int64_t entries = 0;
        for (int64_t s = index.row_ptr[unit]; s < index.row_ptr[unit + 1]; ++s) {
            const int64_t first = c * (index.col_bytes == 2 ? static_cast<const uint16_t*>(index.cols)[s]
                                                            : static_cast<const int32_t*>(index.cols)[s]);
            for (int64_t j = 0; j < c && first + j < index.columns; ++j, ++entries) {  // a block may hang over the edge
                const int64_t part = entries % group;
                if (part == 0) {
                    cols_.resize(cols_.size() + group);
                    packed ? packed_.resize(packed_.size() + r * group) : words_.resize(words_.size() + r);
                }
                cols_[cols_.size() - group + part] = static_cast<int32_t>(first + j);
                for (int64_t q = 0; q < r; ++q) {
                    const int32_t value = values[(s * r + q) * c + j];
                    sums_[unit * r + q] += value;
                    if (packed) {
                        packed_[packed_.size() - (r - q) * group + part] = static_cast<int8_t>(value);
                        continue;
                    }
                    int32_t& word = words_[words_.size() - r + q];
                    const uint32_t placed = (static_cast<uint32_t>(value) & mask) << (part * bits);
                    word = static_cast<int32_t>(static_cast<uint32_t>(word) | placed);
                }
            }
        }
        if (entries > MOST)
            throw std::invalid_argument("topkast: a row holds " + std::to_string(entries) +
                                        " entries, the sums of int8 fit up to " + std::to_string(MOST));
        starts_.push_back(static_cast<int64_t>(cols_.size()) / group);
    }
    scale_.assign(scale, scale + index.rows);
    scale_.resize(units * r);
    matrix_ = {index.rows, index.columns, units, index.r, starts_.data(), cols_.data(), words_.data(), packed_.data(),
               sums_.data(), scale_.data()};
}

// As much of the matrix as the places of a convolution depend on.
static tk_matrix shape_of(const Int8Matrix& w) {
    tk_matrix found{};
    found.rows = w.rows;
    found.columns = w.columns;
    found.r = w.r;
    found.c = 1;
    return found;
}

static Positions places(const tk_matrix& shape, const tk_conv& conv, bool by_position) {
    Positions plan(shape, conv, true);
    if (by_position) plan.images = 1, plan.plane = plan.image;
    return plan;
}

int64_t Int8Weight::convolution_workspace(const tk_conv& conv, bool by_position) const {
    const tk_matrix shape = shape_of(matrix_);
    Positions plan = places(shape, conv, by_position);
    return kernels_.convolution_workspace(plan, by_position);
}

void Int8Weight::convolve(const tk_parallel* p, const tk_conv& conv, bool by_position, const float* x, const float* bias,
                          int32_t act, float* y, float* work) const {
    const tk_matrix shape = shape_of(matrix_);
    Positions plan = places(shape, conv, by_position);
    kernels_.convolution(p, matrix_, plan, by_position, x, bias, act, y, work);
}
