// A's single weights by columns. With them dX is gathered from dY as Y is from X: sums stay in registers, where a scatter
// loads and stores one for each weight (the transpose included, .58 of its time at 2,048 rows, .62 to .80 at 256). Each
// product makes the transpose anew, so that no refresh, load or copy can leave it stale, and no memory is held between steps.

static constexpr int64_t TURNED_CELL = 512;  // columns of A in one task: as many streams are written at once

// The transpose of A, written into `work`; Row is the type of its columns, the rows of w.
template <class Col, class Row>
static tk_matrix transposed(const tk_parallel* p, const tk_matrix& w, float* work, float* spare) {
    const Col* cols = static_cast<const Col*>(w.cols);
    const int64_t cells = ceil_div(w.columns, TURNED_CELL), slots = forward_slots(w);
    int64_t* ptr = reinterpret_cast<int64_t*>(work);
    float* values = work + 2 * (w.columns + 1);
    Row* rows = reinterpret_cast<Row*>(values + slots);
    int32_t* starts = reinterpret_cast<int32_t*>(spare);
    find_starts<Col>(p, w, TURNED_CELL, cells, starts);
    const auto each_slot = [&](int64_t cell, const auto& f) {
        const int32_t *from = starts + cell * w.rows, *to = from + w.rows;
        for (int64_t i = 0; i < w.rows; ++i)
            for (int64_t s = from[i]; s < to[i]; ++s) f(i, s);
    };
    const auto end = [&](int64_t cell) {
        const int64_t next = (cell + 1) * TURNED_CELL;
        return next < w.columns ? next : w.columns;
    };
    parallel(p, cells, [&](int64_t cell) {
        for (int64_t k = cell * TURNED_CELL; k < end(cell); ++k) ptr[k + 1] = 0;
        each_slot(cell, [&](int64_t, int64_t s) { ++ptr[cols[s] + 1]; });
    });
    ptr[0] = 0;
    for (int64_t k = 0; k < w.columns; ++k) ptr[k + 1] += ptr[k];
    parallel(p, cells, [&](int64_t cell) {
        const int64_t first = cell * TURNED_CELL;
        int64_t next[TURNED_CELL];
        for (int64_t k = first; k < end(cell); ++k) next[k - first] = ptr[k];
        each_slot(cell, [&](int64_t i, int64_t s) {
            const int64_t at = next[cols[s] - first]++;
            values[at] = w.values[s];
            rows[at] = static_cast<Row>(i);
        });
    });
    return {values, ptr, ptr + 1, rows, w.columns, w.rows, slots, 1, 1, sizeof(Row)};
}
