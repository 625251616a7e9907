// The C ABI of topkast's CPU kernels: raw pointers and a parallel_for handed in; no torch, no ONNX Runtime.
//
// A weight is a matrix [rows, cols] cut into blocks r x c, stored as runtime/layout.py says: block row i owns the slots
// row_ptr[i] .. row_ptr[i+1], those of the forward set A before row_fwd[i]; a slot's r*c values lie row by row.
// Kernels trust the index: whoever takes one from outside checks it first.
#pragma once
#include <stdint.h>

#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

// Runs body(context, i) for every i < count, on any threads, in any order; returns when all are done.
typedef void (*tk_body)(void* context, int64_t i);
typedef struct {
    void (*run)(void* pool, tk_body body, void* context, int64_t count);
    void* pool;
    int32_t threads;  // how many may work at once; only how finely work is cut depends on it
} tk_parallel;

typedef struct {
    const float* values;     // [slots * r * c]; not read by tk_sddmm
    const int64_t* row_ptr;  // [block rows + 1]
    const int64_t* row_fwd;  // [block rows]
    const void* cols;        // [slots] block columns, uint16 or int32
    int64_t rows, columns;   // of the matrix, not padded to whole blocks
    int64_t slots;
    int32_t r, c;
    int32_t col_bytes;  // 2: uint16, 4: int32
} tk_matrix;

// Activations [m, n]: rows with any strides, counted in floats; or, where width is not 0, tiles [m / width][n][width] as
// the kernels compute on: m is then a multiple of width, n of the block's, and width is tk_width's.
typedef struct {
    float* data;
    int64_t m, n, stride_m, stride_n;
    int64_t width;
} tk_view;

// Which code runs: 0 portable, 1 AVX2 with FMA, 2 AVX-512.
int32_t tk_isa_best(void);                 // the best this processor has
int32_t tk_isa(void);                      // the one in use
int32_t tk_set_isa(int32_t isa);           // use another; returns 0, or -1 if the processor lacks it

// Floats of scratch a product needs for m rows of activations; and what tk_spmm_t needs, which may transpose A first.
int64_t tk_workspace(const tk_matrix* w, int64_t m);
int64_t tk_spmm_t_workspace(const tk_matrix* w, int64_t m);

// The width of the tiles that a product with this weight takes and gives, for the instruction set in use.
int64_t tk_width(const tk_matrix* w);
// Rows to tiles and back; one of the two has a width.
void tk_pack(const tk_parallel* p, const tk_view* from, tk_view* to);

enum { TK_NONE, TK_RELU, TK_GELU, TK_GELU_TANH, TK_SILU, TK_RELU6 };

// Y = act(X W_A^T + bias) (bias may be null).
void tk_spmm(const tk_parallel* p, const tk_matrix* w, const tk_view* x, const float* bias, int32_t act, tk_view* y,
             float* work);
// dX = dY W_A.
void tk_spmm_t(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, tk_view* dx, float* work);
// dW = dY^T X at B, into grad [slots * r * c]; unused slots get zero.
void tk_sddmm(const tk_parallel* p, const tk_matrix* w, const tk_view* dy, const tk_view* x, float* grad, float* work);

// A product whose layout is known before its tensors: no pointer in it is read. `first` and `second` are x and y (of
// TK_FORWARD), dy and dx (TK_TRANSPOSED), dy and x (TK_GRADIENT).
enum { TK_FORWARD, TK_TRANSPOSED, TK_GRADIENT };
typedef struct {
    tk_matrix w;
    tk_view first, second;
    int32_t kind, act;
} tk_prepared;

// Floats of scratch, whatever the index says. And the product at these addresses: of TK_GRADIENT `values` is the
// gradient; `bias` may be null. Nothing is written unless the answer is TK_DONE. TK_WRONG_INDEX: row_ptr ends after the
// slots; TK_WRONG_WIDTH: the instruction set in use takes other tiles.
enum { TK_DONE, TK_WRONG_INDEX, TK_WRONG_WIDTH, TK_WRONG_KIND };
int64_t tk_prepared_workspace(const tk_prepared* product);
int32_t tk_run_prepared(const tk_parallel* p, const tk_prepared* product, float* values, const int64_t* row_ptr,
                        const int64_t* row_fwd, const void* cols, float* first, float* second, const float* bias,
                        float* work);

// A convolution's images. 0: [batch][channels][positions] and 1: [batch][positions][channels], each image dense, `stride`
// floats from one to the next; 2: [positions][channels][batch], `stride` from position to position.
typedef struct {
    float* data;
    int64_t stride;
    int32_t order;
} tk_image;

// The arguments of a convolution of three dims (1 in front where it has fewer): x [batch, channels, in],
// y [batch, groups' rows, out]. The matrix's rows are output channels (of one group where transposed, else of all),
// its columns input channels (of all groups where transposed, else of one) times the kernel's taps.
typedef struct {
    int64_t batch, channels;
    int64_t in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
    int32_t groups, transposed;
} tk_conv;

// Floats of scratch for any product of a convolution; and the products, as above.
int64_t tk_conv_workspace(const tk_matrix* w, const tk_conv* conv);
void tk_conv_forward(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const tk_image* x,
                     const float* bias, const tk_image* y, float* work);
void tk_conv_input_grad(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const tk_image* dy,
                        const tk_image* dx, float* work);
void tk_conv_weight_grad(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const tk_image* dy,
                         const tk_image* x, float* grad, float* work);
// Y = act(X * W_A + bias) for few images, as inference has them: not transposed, x and y [batch][channels][positions],
// contiguous, y not empty; with groups, a block lies in one of them. `padding` is what lies before an image; what lies
// behind follows from `out`. The floats of scratch must be less than 2^31.
int64_t tk_conv_positions_workspace(const tk_matrix* w, const tk_conv* conv);
void tk_conv_positions(const tk_parallel* p, const tk_matrix* w, const tk_conv* conv, const float* x, const float* bias,
                       int32_t act, float* y, float* work);

// W_A as a dense matrix [rows, columns], contiguous; and a dense gradient, in any strides, sampled at B.
void tk_dense(const tk_parallel* p, const tk_matrix* w, float* dense);
void tk_gather(const tk_parallel* p, const tk_matrix* w, const tk_view* dense, float* grad);
// The sum of squares of A's values in each row of blocks, into rows [block rows]; and values *= factor[0] on B \ A, after
// which factor[0] is 1, so that a second call changes nothing: after an interrupt Python cannot know if a call was made.
void tk_squares(const tk_parallel* p, const tk_matrix* w, const float* values, double* rows);
void tk_scale_explored_once(const tk_parallel* p, const tk_matrix* w, float* factor, float* values);
// The same for `count` weights with their values: the sum of squares of each, by way of rows [most block rows of one]; and
// a factor for each.
void tk_squares_of_all(const tk_parallel* p, const tk_matrix* w, int64_t count, double* rows, double* sums);
void tk_scale_all_once(const tk_parallel* p, const tk_matrix* w, int64_t count, float* factors);

// All of θ as a dense matrix [rows, columns], contiguous, from B's values and the reservoir (the blocks outside B, whole,
// in the order of the grid); and back, into values [slots * r * c] and reservoir. And what belongs to B's values, from
// the slots of one index to those of another; what enters B gets zero.
void tk_assemble(const tk_parallel* p, const tk_matrix* w, const float* reservoir, float* dense);
void tk_store(const tk_parallel* p, const tk_matrix* w, const float* dense, float* values, float* reservoir);
void tk_follow(const tk_parallel* p, const tk_matrix* before, const tk_matrix* after, const float* from, float* to);

// mask[i] = 1 for the count largest of the n scores of each row (count <= n), none of them negative, NaN as infinite; of
// equal ones the lower index is taken.
void tk_largest(const tk_parallel* p, const float* score, int64_t rows, int64_t n, int64_t count, uint8_t* mask);
// The index of two nested sets, bytes of 0 and 1 [rows, columns]; cols holds at least as many slots as bwd has members.
void tk_build_index(const tk_parallel* p, const uint8_t* fwd, const uint8_t* bwd, int64_t rows, int64_t columns,
                    int64_t* row_ptr, int64_t* row_fwd, void* cols, int32_t col_bytes);

// A parallel_for on an OpenMP runtime that is already loaded: its GOMP_parallel, found by the caller.
typedef struct {
    void (*gomp_parallel)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);
    int32_t threads;
} tk_gomp_pool;
void tk_run_gomp(void* pool, tk_body body, void* context, int64_t count);
void tk_run_serial(void* pool, tk_body body, void* context, int64_t count);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
