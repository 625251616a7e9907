// Exact selection of the largest scores, ties cut by the lower index, and the index of two nested sets.
#include <string.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "parallel.h"

using namespace topkast;

namespace {

constexpr int64_t CHUNK = 1 << 18;  // scores in one task
constexpr uint32_t INFINITE = 0x7f800000;

// Bits of a score that is not negative order as the score does; what is not a number counts as infinite.
inline uint32_t ordered(float score) {
    uint32_t bits;
    memcpy(&bits, &score, 4);
    bits &= 0x7fffffff;
    return bits < INFINITE ? bits : INFINITE;
}

// How many scores have each value of (bits >> shift) & 0xffff, of those whose bits above these equal `prefix`.
std::vector<int64_t> histogram(const tk_parallel* p, const float* score, int64_t n, int shift, uint32_t prefix) {
    const int64_t tasks = p->threads, each = ceil_div(n, tasks);
    std::vector<std::vector<int64_t>> parts(tasks, std::vector<int64_t>(1 << 16));
    parallel(p, tasks, [&](int64_t task) {
        int64_t* part = parts[task].data();
        for (int64_t i = task * each; i < n && i < (task + 1) * each; ++i) {
            const uint32_t bits = ordered(score[i]);
            if (shift == 16 || bits >> 16 == prefix) ++part[(bits >> shift) & 0xffff];
        }
    });
    for (int64_t task = 1; task < tasks; ++task)
        for (int bin = 0; bin < 1 << 16; ++bin) parts[0][bin] += parts[task][bin];
    return parts[0];
}

// The bin that holds the count-th largest; count becomes how many of that bin are wanted.
uint32_t bin_of(const std::vector<int64_t>& counts, int64_t* count) {
    uint32_t bin = 0xffff;
    while (counts[bin] < *count) *count -= counts[bin--];
    return bin;
}

// Of one row of n scores, short enough that its keys are sorted as far as the threshold; room for 2n keys.
void of_row(const float* score, int64_t n, int64_t count, uint8_t* mask, uint32_t* keys) {
    uint32_t* sorted = keys + n;
    for (int64_t i = 0; i < n; ++i) keys[i] = sorted[i] = ordered(score[i]);
    std::nth_element(sorted, sorted + count - 1, sorted + n, std::greater<uint32_t>());
    const uint32_t threshold = sorted[count - 1];
    int64_t wanted = count;
    for (int64_t i = 0; i < n; ++i) wanted -= mask[i] = keys[i] > threshold;
    for (int64_t i = 0; wanted > 0 && i < n; ++i)
        if (keys[i] == threshold) mask[i] = 1, --wanted;
}

}  // namespace

void tk_largest(const tk_parallel* p, const float* score, int64_t rows, int64_t n, int64_t count, uint8_t* mask) {
    if (count <= 0) {
        memset(mask, 0, rows * n);
        return;
    }
    if (rows != 1) {
        const int64_t each = std::max<int64_t>(1, CHUNK / 8 / n);
        parallel(p, ceil_div(rows, each), [&](int64_t task) {
            std::vector<uint32_t> keys(2 * n);
            for (int64_t i = task * each; i < rows && i < (task + 1) * each; ++i)
                of_row(score + i * n, n, count, mask + i * n, keys.data());
        });
        return;
    }
    int64_t wanted = count;  // in the end: of those that equal the threshold
    const uint32_t high = bin_of(histogram(p, score, n, 16, 0), &wanted);
    const uint32_t threshold = high << 16 | bin_of(histogram(p, score, n, 0, high), &wanted);
    const int64_t chunks = ceil_div(n, CHUNK);
    std::vector<int64_t> ties(chunks + 1);
    parallel(p, chunks, [&](int64_t chunk) {
        int64_t equal = 0;
        for (int64_t i = chunk * CHUNK; i < n && i < (chunk + 1) * CHUNK; ++i) {
            const uint32_t bits = ordered(score[i]);
            mask[i] = bits > threshold;
            equal += bits == threshold;
        }
        ties[chunk + 1] = equal;
    });
    for (int64_t chunk = 0; chunk < chunks; ++chunk) ties[chunk + 1] += ties[chunk];
    parallel(p, chunks, [&](int64_t chunk) {
        int64_t left = wanted - ties[chunk];  // of equal scores the lower index is taken
        for (int64_t i = chunk * CHUNK; left > 0 && i < n && i < (chunk + 1) * CHUNK; ++i)
            if (ordered(score[i]) == threshold) mask[i] = 1, --left;
    });
}

namespace {

template <class Col>
void fill(const tk_parallel* p, const uint8_t* fwd, const uint8_t* bwd, int64_t rows, int64_t columns,
          const int64_t* row_ptr, const int64_t* row_fwd, Col* cols) {
    parallel(p, ceil_div(rows, 16), [&](int64_t task) {
        for (int64_t i = task * 16; i < rows && i < (task + 1) * 16; ++i) {
            int64_t a = row_ptr[i], b = row_fwd[i];
            for (int64_t k = i * columns; k < (i + 1) * columns; ++k)
                if (bwd[k]) cols[fwd[k] ? a++ : b++] = static_cast<Col>(k - i * columns);
        }
    });
}

}  // namespace

void tk_build_index(const tk_parallel* p, const uint8_t* fwd, const uint8_t* bwd, int64_t rows, int64_t columns,
                    int64_t* row_ptr, int64_t* row_fwd, void* cols, int32_t col_bytes) {
    parallel(p, ceil_div(rows, 16), [&](int64_t task) {
        for (int64_t i = task * 16; i < rows && i < (task + 1) * 16; ++i) {
            int64_t a = 0, b = 0;
            for (int64_t k = i * columns; k < (i + 1) * columns; ++k) a += fwd[k], b += bwd[k];
            row_fwd[i] = a;
            row_ptr[i + 1] = b;
        }
    });
    row_ptr[0] = 0;
    for (int64_t i = 0; i < rows; ++i) {
        row_fwd[i] += row_ptr[i];
        row_ptr[i + 1] += row_ptr[i];
    }
    if (col_bytes == 2) {
        fill(p, fwd, bwd, rows, columns, row_ptr, row_fwd, static_cast<uint16_t*>(cols));
    } else {
        fill(p, fwd, bwd, rows, columns, row_ptr, row_fwd, static_cast<int32_t*>(cols));
    }
}
