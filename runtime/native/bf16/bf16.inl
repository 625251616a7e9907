// The three products, by block and by the width of the columns.

template <class Col>
static void gathered_transposed(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx,
                                const tk_bf16_after* after, Room room) {
    const Pairs pairs = pairs_transposed<Col>(p, w, room);
    gather(p, pairs, dy, nullptr, dx, after, room);
}

template <class Col>
static void scattered(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx,
                      const tk_bf16_after* after, Room room) {
    if (w.r > 8) scatter_tiles<8, 1, Col>(p, w, dy, dx, after, room);
    else scatter_tiles<4, 2, Col>(p, w, dy, dx, after, room);
}

template <class Col>
static void sampled(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad, Room room) {
    if (w.r % LANES == 0 || w.c % LANES == 0) sddmm_outer<Col>(p, w, dy, x, grad, room);
    else sddmm_dots<Col>(p, w, dy, x, grad, room);
    const int64_t used = w.row_ptr[blocks_down(w)];
    if (used < w.slots) memset(grad + used * w.r * w.c, 0, sizeof(float) * (w.slots - used) * w.r * w.c);
}

int64_t workspace(const tk_parallel* p, const tk_matrix& w, int64_t m) {
    const int64_t in = blocks_across(w) * w.c, out = blocks_down(w) * w.r, packed = (m + DOTS_CHUNK) * (in + out + 2) * 2;
    const int64_t back = gathers_transposed(w) ? pairs_bytes(p, w, true) : row_pairs_bytes(w);
    return (packed + std::max(pairs_bytes(p, w, false), back)) / 4 + 64;
}

static Room room_in(float* work) { return {reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(work) + 63) / 64 * 64)}; }

void spmm(const tk_parallel* p, const tk_matrix& w, const tk_view& x, const float* bias, const tk_view& y,
          const tk_bf16_after* after, float* work) {
    Room room = room_in(work);
    gather(p, w.col_bytes == 2 ? pairs_of<uint16_t>(p, w, room) : pairs_of<int32_t>(p, w, room), x, bias, y, after, room);
}

void spmm_t(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& dx, const tk_bf16_after* after,
            float* work) {
    const auto narrow = gathers_transposed(w) ? gathered_transposed<uint16_t> : scattered<uint16_t>;
    const auto wide = gathers_transposed(w) ? gathered_transposed<int32_t> : scattered<int32_t>;
    (w.col_bytes == 2 ? narrow : wide)(p, w, dy, dx, after, room_in(work));
}

void sddmm(const tk_parallel* p, const tk_matrix& w, const tk_view& dy, const tk_view& x, float* grad, float* work) {
    (w.col_bytes == 2 ? sampled<uint16_t> : sampled<int32_t>)(p, w, dy, x, grad, room_in(work));
}
