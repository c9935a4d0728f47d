// Native CPU kernels for depthwise convolutions: the fast training form of the ERoHPRF bag, and the weight gradient
// of one depthwise convolution. Plain C interface at the end of the file; no header of torch or Python.
//
// Maps are channels-last (B, H, W, C). Work goes by slabs of LANES channels, one vector register wide. The file
// includes itself once per instruction set (portable, AVX2, AVX-512), so that one library fits every processor.
//
// Letters: E reach of the kernel window, taps -E..E (K = 2E+1 a side); S stride; p output position, q = S p + i input
// position. "Classes" of an axis are the sums from which every tap pair (i, j) is made up, see make_axis.
#ifndef FORM
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

extern "C" {
// Mirrored by fedmed/native/__init__.py; raise ABI_VERSION with every change here.
struct Problem {
    int64_t batch, height, width, channels, stride, reach, branches, threads, is_double;
    double eps;
    const int32_t* sides;        // height and width of every branch's kernel
    const void* const* kernels;  // (C, kh, kw) each
    const void* const* scales;   // (C) each
    const void* const* shifts;   // (C) each
    const void* x;               // (B, H, W, C)
    void *merged, *bias;         // (C, K, K) and (C); output of the forward pass
    double *mean, *variance, *deviation;  // (branches, C); deviation = 1 / sqrt(variance + eps)
    void* products;              // S w_b on the taps of every branch; opaque layout, bag_sizes
    double* firsts;              // first moments; opaque layout, bag_sizes
    const void* gradient;        // (B, Ho, Wo, C)
    void *grad_x, *grad_kernels, *grad_scales, *grad_shift;  // (B,H,W,C) or null; branch after branch; (branches, C); (C)
};
}
constexpr int ABI_VERSION = 1;
constexpr int GRAM_PIXELS = 64;         // maps up to this size: products of all pixel pairs; larger: products by lag
constexpr int PIXELS_A_FLOAT_SUM = 1024;  // longer sums go on in double

struct Term { int cls, sign; };
// One axis: first[i] and pair[i*K + j] list the classes whose signed sum gives the first moment of tap i and the second
// moment of taps (i, j). exact: a class is a pixel, a pixel pair. Otherwise positions p run over all whole numbers, so
// that only lag and parity of the pair count, and the positions outside 0..Lo-1, which see only E pixels at either end,
// are subtracted. half: pairs q <= r only, for rows, since S is symmetric.
struct Axis {
    int classes = 0, firsts = 0, kinds = 0;
    std::vector<std::vector<Term>> first, pair;
    std::vector<int> kind;  // pixels with equal kind are treated alike by the adjoint
};
static inline int triangle(int q, int r) { return r * (r + 1) / 2 + q; }
static Axis make_axis(int length, int stride, int reach, bool half, bool exact) {
    const int K = 2 * reach + 1, outputs = (length + stride - 1) / stride, lags = half ? K : 4 * reach + 1;
    const int ends = half ? reach * (reach + 1) / 2 : reach * reach;
    Axis axis;
    axis.classes = exact ? (half ? length * (length + 1) / 2 : length * length) : stride * lags + 2 * ends;
    axis.firsts = exact ? length : stride + 2 * reach;
    axis.first.resize(K);
    axis.pair.resize(K * K);
    const auto add = [&](int i, int p, int origin, int size, int base, int first_base, int sign) {
        const int q = stride * p + i - reach - origin;
        if (q < 0 || q >= size) return;
        axis.first[i].push_back({first_base + q, sign});
        for (int j = half ? i : 0; j < K; j++) {
            const int r = stride * p + j - reach - origin;
            if (r >= 0 && r < size) axis.pair[i * K + j].push_back({base + (half ? triangle(q, r) : q * size + r), sign});
        }
    };
    for (int i = 0; i < K; i++) {
        if (exact) {
            for (int p = 0; p < outputs; p++) add(i, p, 0, length, 0, 0, 1);
            continue;
        }
        const int parity = ((i - reach) % stride + stride) % stride;
        axis.first[i].push_back({parity, 1});
        for (int j = half ? i : 0; j < K; j++)
            axis.pair[i * K + j].push_back({half ? (j - i) * stride + parity : parity * lags + j - i + 2 * reach, 1});
        for (int n = 0; n < K; n++) {
            add(i, -1 - n, 0, reach, stride * lags, stride, -1);
            add(i, outputs + n, length - reach, reach, stride * lags + ends, stride + reach, -1);
        }
    }
    axis.kind.resize(length);
    axis.kinds = exact ? length : stride + 2 * reach;
    for (int q = 0; q < length; q++)
        axis.kind[q] = exact ? q : q < reach ? stride + q : q >= length - reach ? stride + reach + q - length + reach : q % stride;
    return axis;
}
static bool is_gram(const Problem& p) { return p.height * p.width <= GRAM_PIXELS; }
// Taps beyond the map's size never meet a pixel. Reaches that are compiled: 1, 2, 3, 5; in double 3, 5.
static int window_reach(const Problem& p) {
    const int needed = (int)std::max<int64_t>(1, std::min<int64_t>(p.reach, std::max(p.height, p.width) - 1));
    return needed > 3 ? 5 : p.is_double ? 3 : needed;
}
static void run_tasks(int count, int threads, void (*task)(int, void*), void* context) {
    threads = std::max(1, std::min(threads, count));
    if (threads == 1) {
        for (int n = 0; n < count; n++) task(n, context);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int n = 0; n < count; n++) task(n, context);
#else
    std::atomic<int> next{0};
    const auto work = [&] { for (int n = next++; n < count; n = next++) task(n, context); };
    std::vector<std::thread> pool;
    for (int n = 1; n < threads; n++) pool.emplace_back(work);
    work();
    for (auto& thread : pool) thread.join();
#endif
}
// Batch parts, so that every thread has work where there are few slabs.
static int split_batch(int64_t batch, int slabs, int64_t threads) {
    return (int)std::max<int64_t>(1, std::min(batch, threads == 1 || slabs >= 8 * threads ? 1 : (4 * threads + slabs - 1) / slabs));
}
struct Memory {  // zeros, aligned for the widest vector
    void* at;
    explicit Memory(size_t bytes) {
        bytes = (bytes + 127) / 128 * 128 + 128;
        at = std::aligned_alloc(128, bytes);
        if (at) std::memset(at, 0, bytes);
    }
    ~Memory() { std::free(at); }
    Memory(const Memory&) = delete;
    template <typename T> T* as() { return (T*)at; }
};
static int count_taps(const Problem& p) {
    int taps = 0;
    for (int b = 0; b < p.branches; b++) taps += p.sides[2 * b] * p.sides[2 * b + 1];
    return taps;
}
// For every packed weight its tap in the window, or -1 outside it.
static std::vector<int> place_taps(const Problem& p, int reach) {
    std::vector<int> places;
    for (int b = 0; b < p.branches; b++)
        for (int i = 0; i < p.sides[2 * b]; i++)
            for (int j = 0; j < p.sides[2 * b + 1]; j++) {
                const int y = i - p.sides[2 * b] / 2, x = j - p.sides[2 * b + 1] / 2;
                const bool inside = std::abs(y) <= reach && std::abs(x) <= reach;
                places.push_back(inside ? (y + reach) * (2 * reach + 1) + x + reach : -1);
            }
    return places;
}

#define FORM portable
#define FORM_BYTES 16
#include "kernels.cpp"
#undef FORM
#undef FORM_BYTES
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86_FORMS 1
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FORM avx2
#define FORM_BYTES 32
#include "kernels.cpp"
#undef FORM
#undef FORM_BYTES
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,prefer-vector-width=512")
#endif
#define FORM avx512
#define FORM_BYTES 64
#include "kernels.cpp"
#undef FORM
#undef FORM_BYTES
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

static int lanes_of(int form, bool is_double) { return (form == 2 ? 64 : form == 1 ? 32 : 16) / (is_double ? 8 : 4); }
#ifdef HAS_X86_FORMS
#define IN_FORM(call) (form == 2 ? avx512::call : form == 1 ? avx2::call : portable::call)
#else
#define IN_FORM(call) (portable::call)
#endif
extern "C" {
int fedmed_abi_version() { return ABI_VERSION; }
// Widest form this processor has: 0 portable, 1 AVX2, 2 AVX-512.
int fedmed_best_form() {
#ifdef HAS_X86_FORMS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    return wide ? 2 : 1;
#else
    return 0;
#endif
}
int fedmed_window_reach(const Problem* p) { return window_reach(*p); }
// Numbers that `products` and `firsts` hold.
void fedmed_bag_sizes(int form, const Problem* p, int64_t* products, int64_t* firsts) {
    const int64_t lanes = lanes_of(form, p->is_double), slabs = (p->channels + lanes - 1) / lanes;
    const int64_t side = 2 * window_reach(*p) + 1;
    *products = slabs * lanes * count_taps(*p);
    *firsts = slabs * lanes * side * side;
}
// All return 0, or 1 where memory ran out.
int fedmed_bag_forward(int form, const Problem* p) { return IN_FORM(bag_forward(*p)); }
int fedmed_bag_backward(int form, const Problem* p) { return IN_FORM(bag_backward(*p)); }
// Weight gradient (C, K, K) of a depthwise convolution with padding K/2; needs x, gradient, grad_kernels.
int fedmed_weight_gradient(int form, const Problem* p) { return IN_FORM(weight_gradient(*p)); }
}

#else  // ------------------------------------------------------------------------- once per instruction set
namespace FORM {

template <typename T> struct VectorOf { typedef T type __attribute__((vector_size(FORM_BYTES))); };
template <typename T> using Vec = typename VectorOf<T>::type;
template <typename T> constexpr int LANES = FORM_BYTES / (int)sizeof(T);
typedef Vec<double> Wide;                      // a slab of floats is two of these, a slab of doubles one
constexpr int WIDE = LANES<double>;
constexpr bool MANY_REGISTERS = FORM_BYTES == 64;  // 32 vector registers, else 16
constexpr int UNROLL = MANY_REGISTERS ? 4 : 2;
constexpr int TILE = MANY_REGISTERS ? 4 : 2;   // pixels of a register tile of the Gram kernels
constexpr int GROUP = 4;                       // partner pixels, or images, of a register tile

// Everything that the tasks of one call share.
template <typename T, int E, int S> struct Shared {
    static constexpr int K = 2 * E + 1, KK = K * K, LAGS = 4 * E + 1, LEFT = 2 * E, RIGHT = 2 * E + 4 * S + 1;
    const Problem& p;
    const int B, H, W, C, Ho, Wo, slabs, parts;
    const bool gram;
    const Axis rows, columns;
    const std::vector<int> places;
    double *sums = nullptr, *first_sums = nullptr;            // per part and slab: [classes][lanes]
    T *coefficients = nullptr, *kernel = nullptr, *slope = nullptr;  // per slab: dL/d(sums), merged kernel, dL/d(firsts)
    std::atomic<bool> failed{false};
    explicit Shared(const Problem& problem)
        : p(problem), B((int)p.batch), H((int)p.height), W((int)p.width), C((int)p.channels), Ho((H + S - 1) / S),
          Wo((W + S - 1) / S), slabs((C + LANES<T> - 1) / LANES<T>), parts(split_batch(B, slabs, p.threads)),
          gram(is_gram(p)), rows(make_axis(H, S, E, true, gram)), columns(make_axis(W, S, E, false, gram)),
          places(place_taps(p, E)) {}
    int lanes(int slab) const { return std::min(LANES<T>, C - slab * LANES<T>); }
    int begin(int part) const { return (int)((int64_t)B * part / parts); }
    size_t classes() const { return (size_t)rows.classes * columns.classes; }
    size_t firsts() const { return (size_t)rows.firsts * columns.firsts; }
    int run(void (*task)(int, void*), int count) {
        run_tasks(count, (int)p.threads, task, this);
        return failed;
    }
};

template <typename T> static inline void copy_lanes(Vec<T>* to, const T* from, int lanes) {
    if (lanes == LANES<T>) std::memcpy((void*)to, from, sizeof(Vec<T>));
    else std::memcpy((void*)to, from, sizeof(T) * lanes);  // dead lanes stay zero
}
// One image of a slab into rows with zero margins.
template <typename T> static void pack_rows(const T* x, Vec<T>* to, int H, int W, int C, int lanes, int left, int pitch) {
    for (int y = 0; y < H; y++)
        for (int w = 0; w < W; w++) copy_lanes<T>(to + (size_t)y * pitch + left + w, x + ((size_t)y * W + w) * C, lanes);
}
// out[parity][lag] += sum over w = parity mod S of q[w] r[w + lag], lags -2E..2E.
template <typename T, int E, int S> static inline void add_lags(const Vec<T>* q, const Vec<T>* r, int W, Vec<T>* out) {
    constexpr int LAGS = 4 * E + 1, U = E < 3 ? 4 : UNROLL;
    for (int parity = 0; parity < S; parity++) {
        Vec<T> a[LAGS];
        for (int t = 0; t < LAGS; t++) a[t] = out[parity * LAGS + t];
        for (int w = parity; w < W; w += U * S) {
            Vec<T> base[U];
            for (int u = 0; u < U; u++) base[u] = q[w + u * S];
            const Vec<T>* partner = r + w - 2 * E;
#pragma GCC unroll 21
            for (int t = 0; t < LAGS; t++)
#pragma GCC unroll 4
                for (int u = 0; u < U; u++) a[t] += base[u] * partner[t + u * S];
        }
        for (int t = 0; t < LAGS; t++) out[parity * LAGS + t] = a[t];
    }
}
template <typename T> static void add_to(double* sums, const T* values, size_t count) {
    for (size_t n = 0; n < count; n++) sums[n] += values[n];
}
// First and second moments of one slab and batch part, larger maps. Row pairs at the ends collect in slots of their own,
// and count for their lag too when the image is done.
template <typename T, int E, int S> static bool sum_by_lag(const Shared<T, E, S>& k, int slab, int part, double* sums, double* firsts) {
    constexpr int LAGS = 4 * E + 1, NX = S * LAGS + 2 * E * E, NF = S + 2 * E, ENDS = E * (E + 1) / 2, ROW = S * (2 * E + 1), L = LANES<T>;
    const int H = k.H, W = k.W, pitch = W + k.LEFT + k.RIGHT, every = std::max(1, PIXELS_A_FLOAT_SUM / (H * W));
    const size_t size = (size_t)(ROW + 2 * ENDS) * NX, first_size = (size_t)NF * NF;
    Memory image(sizeof(Vec<T>) * H * pitch), slots(sizeof(Vec<T>) * size), flats(sizeof(Vec<T>) * first_size);
    if (!image.at || !slots.at || !flats.at) return false;
    Vec<T>*x = image.as<Vec<T>>(), *A = slots.as<Vec<T>>(), *F = flats.as<Vec<T>>();
    for (int b = k.begin(part); b < k.begin(part + 1); b++) {
        pack_rows<T>((const T*)k.p.x + (size_t)b * H * W * k.C + slab * L, x, H, W, k.C, k.lanes(slab), k.LEFT, pitch);
        for (int q = 0; q < H; q++) {
            const Vec<T>* Q = x + (size_t)q * pitch + k.LEFT;
            for (int dy = 0; dy <= 2 * E && q + dy < H; dy++) {
                const int r = q + dy;
                const Vec<T>* R = Q + (size_t)dy * pitch;
                const int slot = r < E ? ROW + triangle(q, r) : q >= H - E ? ROW + ENDS + triangle(q - H + E, r - H + E) : dy * S + q % S;
                Vec<T>* a = A + (size_t)slot * NX;
                add_lags<T, E, S>(Q, R, W, a);
                for (int i = 0; i < E; i++)
                    for (int j = 0; j < E; j++) {
                        a[S * LAGS + i * E + j] += Q[i] * R[j];
                        a[S * LAGS + E * E + i * E + j] += Q[W - E + i] * R[W - E + j];
                    }
            }
            Vec<T> f[NF] = {};
            for (int parity = 0; parity < S; parity++)
                for (int w = parity; w < W; w += S) f[parity] += Q[w];
            for (int i = 0; i < E; i++) { f[S + i] = Q[i]; f[S + E + i] = Q[W - E + i]; }
            for (int n = 0; n < NF; n++) {
                F[(q % S) * NF + n] += f[n];
                if (q < E) F[(S + q) * NF + n] += f[n];
                if (q >= H - E) F[(S + E + q - H + E) * NF + n] += f[n];
            }
        }
        if ((b + 1 - k.begin(part)) % every && b + 1 < k.begin(part + 1)) continue;
        for (int side = 1; side >= 0; side--)  // last rows first: those of the first rows may be last rows too
            for (int r = 0; r < E; r++)
                for (int q = 0; q <= r; q++) {
                    const int row = side ? q + H - E : q, partner = side ? r + H - E : r;
                    if (row < 0 || partner >= H) continue;
                    const Vec<T>* from = A + (size_t)(ROW + side * ENDS + triangle(q, r)) * NX;
                    Vec<T>* lag = A + (size_t)((r - q) * S + row % S) * NX;
                    for (int n = 0; n < NX; n++) lag[n] += from[n];
                    if (side == 0 && row >= H - E) {
                        Vec<T>* last = A + (size_t)(ROW + ENDS + triangle(row - H + E, partner - H + E)) * NX;
                        for (int n = 0; n < NX; n++) last[n] += from[n];
                    }
                }
        add_to(sums, (const T*)A, size * L);
        add_to(firsts, (const T*)F, first_size * L);
        std::memset((void*)A, 0, sizeof(Vec<T>) * size);
        std::memset((void*)F, 0, sizeof(Vec<T>) * first_size);
    }
    return true;
}
// All images of a slab and batch part as [pixel][image], for small maps; rows `width` wide.
template <typename T> static void pack_pixels(const T* x, Vec<T>* to, int b0, int b1, int H, int W, int C, int lanes, int width, int pitch) {
    for (int b = b0; b < b1; b++)
        for (int y = 0; y < H; y++)
            for (int w = 0; w < W; w++)
                copy_lanes<T>(to + (size_t)(y * width + w) * pitch + b - b0, x + (((size_t)b * H + y) * W + w) * C, lanes);
}
// First and second moments, small maps: products of all pixel pairs, a register tile at a time.
template <typename T, int E, int S> static bool sum_pairs(const Shared<T, E, S>& k, int slab, int part, double* sums, double* firsts) {
    constexpr int L = LANES<T>;
    const int H = k.H, W = k.W, b0 = k.begin(part), images = k.begin(part + 1) - b0, width = (W + GROUP - 1) / GROUP * GROUP;
    const int run = std::max(8, PIXELS_A_FLOAT_SUM / (H * W));
    Memory memory(sizeof(Vec<T>) * H * width * images);
    if (!memory.at) return false;
    Vec<T>* x = memory.as<Vec<T>>();
    pack_pixels<T>((const T*)k.p.x + slab * L, x, b0, b0 + images, H, W, k.C, k.lanes(slab), width, images);
    for (int start = 0; start < images; start += run) {
        const int stop = std::min(images, start + run);
        for (int r = 0; r < H; r++)
            for (int q = 0; q <= r; q++) {
                double* out = sums + (size_t)triangle(q, r) * W * W * L;
                for (int i = 0; i < W; i += TILE)
                    for (int j = 0; j < W; j += GROUP) {
                        Vec<T> a[TILE][GROUP] = {};
                        const Vec<T>*Q = x + (size_t)(q * width + i) * images, *R = x + (size_t)(r * width + j) * images;
                        for (int b = start; b < stop; b++)
#pragma GCC unroll 4
                            for (int m = 0; m < TILE; m++)
#pragma GCC unroll 4
                                for (int n = 0; n < GROUP; n++) a[m][n] += Q[m * images + b] * R[n * images + b];
                        for (int m = 0; m < TILE && i + m < W; m++)
                            for (int n = 0; n < GROUP && j + n < W; n++)
                                add_to(out + ((size_t)(i + m) * W + j + n) * L, (const T*)&a[m][n], L);
                    }
            }
        for (int q = 0; q < H * W; q++) {
            Vec<T> a = {};
            for (int b = start; b < stop; b++) a += x[(size_t)(q / W * width + q % W) * images + b];
            add_to(firsts + (size_t)q * L, (const T*)&a, L);
        }
    }
    return true;
}
template <typename T, int E, int S> static void moment_task(int task, void* context) {
    auto& k = *(Shared<T, E, S>*)context;
    const int slab = task % k.slabs, part = task / k.slabs;
    double *sums = k.sums + (size_t)task * k.classes() * LANES<T>, *firsts = k.first_sums + (size_t)task * k.firsts() * LANES<T>;
    if (!(k.gram ? sum_pairs<T, E, S>(k, slab, part, sums, firsts) : sum_by_lag<T, E, S>(k, slab, part, sums, firsts))) k.failed = true;
}

// ---- algebra of half a slab in double precision; `half` counts WIDE channels at a time
template <typename T> static Wide load_wide(const T* from, int64_t stride, int lanes) {
    Wide value = {};
    for (int n = 0; n < WIDE && n < lanes; n++) value[n] = from[n * stride];
    return value;
}
template <typename T> static void store_wide(T* to, int64_t stride, int lanes, Wide value) {
    for (int n = 0; n < WIDE && n < lanes; n++) to[n * stride] = (T)value[n];
}
template <typename T, int E, int S> static void load_weights(const Shared<T, E, S>& k, int channel, int lanes, Wide* weights) {
    for (int b = 0, at = 0; b < k.p.branches; b++) {
        const int taps = k.p.sides[2 * b] * k.p.sides[2 * b + 1];
        for (int t = 0; t < taps; t++) weights[at++] = load_wide((const T*)k.p.kernels[b] + (int64_t)channel * taps + t, taps, lanes);
    }
}
static inline Wide sum_terms(const std::vector<Term>& terms, const Wide* values, int64_t stride) {
    Wide sum = {};
    for (const Term& term : terms) sum += values[term.cls * stride] * (double)term.sign;
    return sum;
}
// S, (KK, KK), and first moments, (KK), from the class sums of all batch parts.
template <typename T, int E, int S> static void make_moments(const Shared<T, E, S>& k, int half, Wide* S_, Wide* m, Wide* classes, Wide* by_column) {
    constexpr int K = 2 * E + 1, KK = K * K, L = LANES<T>;
    const int slab = half * WIDE / L, offset = half * WIDE % L, ny = k.rows.classes, nx = k.columns.classes;
    const auto gather = [&](const double* from, size_t count) {
        for (size_t n = 0; n < count; n++) {
            Wide sum = {};
            for (int part = 0; part < k.parts; part++)
                sum += *(const Wide*)(from + (((size_t)part * k.slabs + slab) * count + n) * L + offset);
            classes[n] = sum;
        }
    };
    gather(k.first_sums, k.firsts());
    for (int i = 0; i < K; i++) {
        for (int c = 0; c < k.rows.firsts; c++) by_column[c] = sum_terms(k.columns.first[i], classes + (size_t)c * k.columns.firsts, 1);
        for (int j = 0; j < K; j++) m[j * K + i] = sum_terms(k.rows.first[j], by_column, 1);
    }
    gather(k.sums, k.classes());
    for (int c = 0; c < ny; c++)
        for (int n = 0; n < KK; n++) by_column[(size_t)c * KK + n] = sum_terms(k.columns.pair[n], classes + (size_t)c * nx, 1);
    for (int i = 0; i < K; i++)
        for (int j = i; j < K; j++)
            for (int n = 0; n < KK; n++) {
                const Wide value = sum_terms(k.rows.pair[i * K + j], by_column + n, KK);
                const int left = i * K + n / K, right = j * K + n % K;
                S_[left * KK + right] = value;
                S_[right * KK + left] = value;
            }
}
template <typename T, int E, int S> static void forward_task(int half, void* context) {
    constexpr int K = 2 * E + 1, KK = K * K, L = LANES<T>;
    auto& k = *(Shared<T, E, S>*)context;
    const Problem& p = k.p;
    const int channel = half * WIDE, lanes = std::min(WIDE, k.C - channel), taps = (int)k.places.size();
    if (lanes <= 0) return;
    const double count = (double)k.B * k.Ho * k.Wo;
    Memory memory(sizeof(Wide) * (KK * KK + KK + std::max(k.classes(), k.firsts()) + (size_t)std::max(k.rows.classes, k.rows.firsts) * KK + taps));
    if (!memory.at) { k.failed = true; return; }
    Wide *S_ = memory.as<Wide>(), *m = S_ + KK * KK, *w = m + KK, *classes = w + taps, *by_column = classes + std::max(k.classes(), k.firsts());
    make_moments<T, E, S>(k, half, S_, m, classes, by_column);
    load_weights<T, E, S>(k, channel, lanes, w);
    Wide merged[KK] = {}, bias = {};
    const int slab = channel / L, offset = channel % L;
    for (int n = 0; n < KK; n++) store_wide(p.firsts + ((size_t)slab * KK + n) * L + offset, 1, WIDE, m[n]);
    for (int b = 0, at = 0; b < p.branches; b++) {
        const int end = at + p.sides[2 * b] * p.sides[2 * b + 1];
        Wide mean = {}, square = {};
        for (int i = at; i < end; i++) {
            Wide product = {};
            if (k.places[i] >= 0) {
                const Wide* row = S_ + (size_t)k.places[i] * KK;
                for (int j = at; j < end; j++)
                    if (k.places[j] >= 0) product += row[k.places[j]] * w[j];
                mean += m[k.places[i]] * w[i];
                square += product * w[i];
            }
            store_wide((T*)p.products + ((size_t)slab * taps + i) * L + offset, 1, WIDE, product);
        }
        mean /= count;
        Wide variance = square / count - mean * mean, deviation, scale = load_wide((const T*)p.scales[b] + channel, 1, lanes);
        for (int n = 0; n < WIDE; n++) {
            variance[n] = std::max(0.0, variance[n]);
            deviation[n] = 1 / std::sqrt(variance[n] + p.eps);
        }
        scale *= deviation;
        for (int i = at; i < end; i++)
            if (k.places[i] >= 0) merged[k.places[i]] += scale * w[i];
        bias += load_wide((const T*)p.shifts[b] + channel, 1, lanes) - scale * mean;
        store_wide(p.mean + b * p.channels + channel, 1, lanes, mean);
        store_wide(p.variance + b * p.channels + channel, 1, lanes, variance);
        store_wide(p.deviation + b * p.channels + channel, 1, lanes, deviation);
        at = end;
    }
    for (int n = 0; n < KK; n++) store_wide((T*)p.merged + (int64_t)channel * KK + n, KK, lanes, merged[n]);
    store_wide((T*)p.bias + channel, 1, lanes, bias);
}

// ---- backward
// Sum over images and positions of x(S p + i) g(p), KK taps, then the sum of g.
template <typename T, int E, int S> static void gradient_task(int task, void* context) {
    constexpr int K = 2 * E + 1, KK = K * K, L = LANES<T>, COPIES = E == 1 ? 4 : E == 2 ? 2 : 1;  // enough sums in flight
    auto& k = *(Shared<T, E, S>*)context;
    const int slab = task % k.slabs, part = task / k.slabs, H = k.H, W = k.W, pitch = W + k.LEFT + k.RIGHT, g_pitch = k.Wo + 4;
    Memory image(sizeof(Vec<T>) * H * pitch), gradient(sizeof(Vec<T>) * k.Ho * g_pitch);
    if (!image.at || !gradient.at) { k.failed = true; return; }
    Vec<T>*x = image.as<Vec<T>>(), *g = gradient.as<Vec<T>>(), sum[KK + 1] = {};
    double* out = k.sums + (size_t)task * (KK + 1) * L;
    const int every = std::max(1, PIXELS_A_FLOAT_SUM / (H * W));
    for (int b = k.begin(part); b < k.begin(part + 1); b++) {
        pack_rows<T>((const T*)k.p.x + (size_t)b * H * W * k.C + slab * L, x, H, W, k.C, k.lanes(slab), k.LEFT, pitch);
        pack_rows<T>((const T*)k.p.gradient + (size_t)b * k.Ho * k.Wo * k.C + slab * L, g, k.Ho, k.Wo, k.C, k.lanes(slab), 0, g_pitch);
        for (int p = 0; p < k.Ho; p++) {
            const Vec<T>* G = g + (size_t)p * g_pitch;
            for (int i = std::max(-E, -S * p); i <= E && S * p + i < H; i++) {
                const Vec<T>* row = x + (size_t)(S * p + i) * pitch + k.LEFT - E;
                Vec<T> a[K][COPIES] = {};
                for (int t = 0; t < K; t++) a[t][0] = sum[(i + E) * K + t];
                for (int w = 0; w < k.Wo; w += 4) {
                    const Vec<T> g4[4] = {G[w], G[w + 1], G[w + 2], G[w + 3]};
                    const Vec<T>* r = row + S * w;
#pragma GCC unroll 11
                    for (int t = 0; t < K; t++)
#pragma GCC unroll 4
                        for (int u = 0; u < 4; u++) a[t][u % COPIES] += g4[u] * r[t + u * S];
                }
                for (int t = 0; t < K; t++) {
                    for (int u = 1; u < COPIES; u++) a[t][0] += a[t][u];
                    sum[(i + E) * K + t] = a[t][0];
                }
            }
            for (int w = 0; w < k.Wo; w++) sum[KK] += G[w];
        }
        if ((b + 1 - k.begin(part)) % every && b + 1 < k.begin(part + 1)) continue;
        add_to(out, (const T*)sum, (KK + 1) * L);
        std::memset((void*)sum, 0, sizeof(sum));
    }
}
// dL/d(class sums) of half a slab, from dL/dS.
template <typename T, int E, int S> static void store_coefficients(const Shared<T, E, S>& k, int half, const Wide* dS, Wide* by_column, Wide* classes) {
    constexpr int K = 2 * E + 1, KK = K * K, L = LANES<T>;
    const int ny = k.rows.classes, nx = k.columns.classes, slab = half * WIDE / L, offset = half * WIDE % L;
    for (int i = 0; i < K; i++)
        for (int j = i; j < K; j++)
            for (int n = 0; n < KK; n++) {
                const Wide value = dS[(i * K + n / K) * KK + j * K + n % K] * (i == j ? 1.0 : 2.0);
                for (const Term& term : k.rows.pair[i * K + j]) by_column[(size_t)term.cls * KK + n] += value * (double)term.sign;
            }
    for (int c = 0; c < ny; c++)
        for (int n = 0; n < KK; n++)
            for (const Term& term : k.columns.pair[n]) classes[(size_t)c * nx + term.cls] += by_column[(size_t)c * KK + n] * (double)term.sign;
    for (size_t n = 0; n < k.classes(); n++) store_wide(k.coefficients + (slab * k.classes() + n) * L + offset, 1, WIDE, classes[n]);
}
template <typename T, int E, int S> static void backward_task(int half, void* context) {
    constexpr int K = 2 * E + 1, KK = K * K, L = LANES<T>;
    auto& k = *(Shared<T, E, S>*)context;
    const Problem& p = k.p;
    const int channel = half * WIDE, lanes = std::min(WIDE, k.C - channel), taps = (int)k.places.size();
    if (lanes <= 0) return;
    const double count = (double)k.B * k.Ho * k.Wo;
    Memory memory(sizeof(Wide) * (KK * KK + taps + (size_t)k.rows.classes * KK + k.classes()));
    if (!memory.at) { k.failed = true; return; }
    Wide *dS = memory.as<Wide>(), *w = dS + KK * KK, *by_column = w + taps, *classes = by_column + (size_t)k.rows.classes * KK;
    Wide G[KK + 1] = {}, m[KK], merged[KK] = {}, slope[KK] = {};
    const int slab = channel / L, offset = channel % L;
    for (int n = 0; n <= KK; n++)
        for (int part = 0; part < k.parts; part++)
            G[n] += *(const Wide*)(k.sums + (((size_t)part * k.slabs + slab) * (KK + 1) + n) * L + offset);
    for (int n = 0; n < KK; n++) m[n] = load_wide(p.firsts + ((size_t)slab * KK + n) * L + offset, 1, WIDE);
    load_weights<T, E, S>(k, channel, lanes, w);
    store_wide((T*)p.grad_shift + channel, 1, lanes, G[KK]);
    for (int b = 0, at = 0; b < p.branches; b++) {
        const int size = p.sides[2 * b] * p.sides[2 * b + 1], end = at + size;
        const Wide mean = load_wide(p.mean + b * p.channels + channel, 1, lanes);
        const Wide deviation = load_wide(p.deviation + b * p.channels + channel, 1, lanes);
        const Wide scale = load_wide((const T*)p.scales[b] + channel, 1, lanes) * deviation;
        Wide to_scale = -mean * G[KK];
        for (int i = at; i < end; i++)
            if (k.places[i] >= 0) to_scale += w[i] * G[k.places[i]];
        store_wide((T*)p.grad_scales + b * p.channels + channel, 1, lanes, to_scale * deviation);
        const Wide to_square = -0.5 * scale * deviation * deviation * to_scale / count;
        const Wide to_mean = -scale * G[KK] / count - 2.0 * mean * to_square;
        T* grad = (T*)p.grad_kernels + p.channels * at + (int64_t)channel * size;
        for (int i = at; i < end; i++) {
            const int tap = k.places[i];
            if (tap < 0) { store_wide(grad + i - at, size, lanes, Wide{}); continue; }
            const Wide product = load_wide((const T*)p.products + ((size_t)slab * taps + i) * L + offset, 1, WIDE);
            store_wide(grad + i - at, size, lanes, scale * G[tap] + 2.0 * to_square * product + to_mean * m[tap]);
            merged[tap] += scale * w[i];
            slope[tap] += to_mean * w[i];
            const Wide weight = to_square * w[i];
            if (p.grad_x)
                for (int j = at; j < end; j++)
                    if (k.places[j] >= 0) dS[tap * KK + k.places[j]] += weight * w[j];
        }
        at = end;
    }
    if (!p.grad_x) return;
    for (int n = 0; n < KK; n++) {
        store_wide(k.kernel + ((size_t)slab * KK + n) * L + offset, 1, WIDE, merged[n]);
        store_wide(k.slope + ((size_t)slab * KK + n) * L + offset, 1, WIDE, slope[n]);
    }
    store_coefficients<T, E, S>(k, half, dS, by_column, classes);
}
// The part of dx that all images share: slopes of the first moments, one row per kind of row.
template <typename T, int E, int S> static void make_constant(const Shared<T, E, S>& k, const Vec<T>* slope, Vec<T>* out) {
    constexpr int K = 2 * E + 1;
    for (int q = 0; q < k.H; q++) {
        Vec<T> row[K] = {}, *to = out + (size_t)k.rows.kind[q] * k.W;
        for (int i = 0; i < K; i++) {
            const int at = q - i + E;
            if (at < 0 || at % S || at / S >= k.Ho) continue;
            for (int j = 0; j < K; j++) row[j] += slope[i * K + j];
        }
        for (int w = 0; w < k.W; w++) {
            to[w] = Vec<T>{};
            for (int j = 0; j < K; j++) {
                const int at = w - j + E;
                if (at >= 0 && at % S == 0 && at / S < k.Wo) to[w] += row[j];
            }
        }
    }
}
// Coefficients of the row at q + dy in the gradient of row q: lags by column parity, then the column ends.
template <typename T, int E, int S> static void make_row_coefficients(const Shared<T, E, S>& k, const Vec<T>* D, Vec<T>* out) {
    constexpr int LAGS = 4 * E + 1, ENDS = E * (E + 1) / 2, ROW = S * (2 * E + 1), NX = S * LAGS + 2 * E * E;
    const int H = k.H;
    for (int q = 0; q < H; q++) {
        if (q >= E + S && q < H - E) continue;  // one row of every parity stands for the inner rows
        const bool inner = q >= E && q < H - E;  // then any distance, also those that this row itself has no partner at
        for (int r = inner ? q - 2 * E : std::max(0, q - 2 * E); r <= (inner ? q + 2 * E : std::min(H - 1, q + 2 * E)); r++) {
            const int low = std::min(q, r), high = std::max(q, r);
            Vec<T> c[NX], *to = out + ((size_t)k.rows.kind[q] * LAGS + r - q + 2 * E) * NX;
            std::memcpy((void*)c, D + (size_t)((high - low) * S + (low + 2 * E * S) % S) * NX, sizeof(c));
            if (high < E && !inner) for (int n = 0; n < NX; n++) c[n] += D[(size_t)(ROW + triangle(low, high)) * NX + n];
            if (low >= H - E && !inner) for (int n = 0; n < NX; n++) c[n] += D[(size_t)(ROW + ENDS + triangle(low - H + E, high - H + E)) * NX + n];
            for (int n = 0; n < NX; n++) to[n] = Vec<T>{};
            for (int parity = 0; parity < S; parity++)
                for (int t = 0; t < LAGS; t++) {
                    if (r >= q) to[parity * LAGS + t] += c[parity * LAGS + t];                       // q is the base
                    if (r <= q) to[parity * LAGS + t] += c[(parity + t) % S * LAGS + LAGS - 1 - t];  // q is the partner
                }
            for (int end = S * LAGS; end < NX; end += E * E)
                for (int i = 0; i < E; i++)
                    for (int j = 0; j < E; j++) {
                        if (r >= q) to[end + i * E + j] += c[end + i * E + j];
                        if (r <= q) to[end + j * E + i] += c[end + i * E + j];
                    }
        }
    }
}
// out[n] += sum over t of c[t] row[STEP n + t], n = 0..count-1 (up to three more are overwritten), U outputs at a time.
template <typename T, int N, int STEP> static inline void correlate(const Vec<T>* c, const Vec<T>* row, int count, Vec<T>* out) {
    constexpr int U = MANY_REGISTERS ? 4 : (N > 7 ? 2 : 4);
    Vec<T> k[N];
    for (int t = 0; t < N; t++) k[t] = c[t];
    for (int n = 0; n < count; n += U) {
        Vec<T> s[U];
        for (int u = 0; u < U; u++) s[u] = out[n + u];
        const Vec<T>* r = row + (size_t)n * STEP;
#pragma GCC unroll 21
        for (int t = 0; t < N; t++)
#pragma GCC unroll 4
            for (int u = 0; u < U; u++) s[u] += k[t] * r[t + u * STEP];
        for (int u = 0; u < U; u++) out[n + u] = s[u];
    }
}
template <typename T, int E, int S> static bool input_by_lag(const Shared<T, E, S>& k, int slab, int part) {
    constexpr int K = 2 * E + 1, LAGS = 4 * E + 1, NX = S * LAGS + 2 * E * E, L = LANES<T>, REACH = E / S, NT = S == 1 ? K : E + 1;
    const int H = k.H, W = k.W, C = k.C, lanes = k.lanes(slab), pitch = W + k.LEFT + k.RIGHT, g_pitch = k.Wo + 2 * E + 8, half = (W + S - 1) / S + 8;
    const size_t kinds = k.rows.kinds;
    Memory image(sizeof(Vec<T>) * H * pitch), gradient(sizeof(Vec<T>) * k.Ho * g_pitch), memory(sizeof(Vec<T>) * (kinds * LAGS * NX + kinds * W + S * half));
    if (!image.at || !gradient.at || !memory.at) return false;
    Vec<T>*x = image.as<Vec<T>>(), *g = gradient.as<Vec<T>>(), *c = memory.as<Vec<T>>(), *constant = c + kinds * LAGS * NX, *line = constant + kinds * W;
    const Vec<T>* kernel = (const Vec<T>*)k.kernel + (size_t)slab * K * K;
    make_row_coefficients<T, E, S>(k, (const Vec<T>*)k.coefficients + slab * k.classes(), c);
    make_constant<T, E, S>(k, (const Vec<T>*)k.slope + (size_t)slab * K * K, constant);
    for (int b = k.begin(part); b < k.begin(part + 1); b++) {
        pack_rows<T>((const T*)k.p.x + (size_t)b * H * W * C + slab * L, x, H, W, C, lanes, k.LEFT, pitch);
        pack_rows<T>((const T*)k.p.gradient + (size_t)b * k.Ho * k.Wo * C + slab * L, g, k.Ho, k.Wo, C, lanes, E, g_pitch);
        for (int q = 0; q < H; q++) {
            const int kind = k.rows.kind[q];
            // line holds the columns of each parity side by side: column w at [w % S][w / S]
            for (int w = 0; w < W; w++) line[w % S * half + w / S] = constant[(size_t)kind * W + w];
            for (int r = std::max(0, q - 2 * E); r <= std::min(H - 1, q + 2 * E); r++) {
                const Vec<T>*R = x + (size_t)r * pitch + k.LEFT, *d = c + ((size_t)kind * LAGS + r - q + 2 * E) * NX;
                for (int parity = 0; parity < S; parity++)
                    correlate<T, LAGS, S>(d + parity * LAGS, R + parity - 2 * E, (W - parity + S - 1) / S, line + parity * half);
                const auto end = [&](const Vec<T>* e, int origin) {
                    for (int i = std::max(0, -origin); i < E && origin + i < W; i++) {
                        Vec<T> sum = {};
                        for (int j = 0; j < E; j++) sum += e[i * E + j] * R[origin + j];
                        line[(origin + i) % S * half + (origin + i) / S] += sum;
                    }
                };
                end(d + S * LAGS, 0);
                end(d + S * LAGS + E * E, W - E);
            }
            for (int i = -E; i <= E; i++) {
                const int p = q - i;
                if (p < 0 || p % S || p / S >= k.Ho) continue;
                const Vec<T>* G = g + (size_t)(p / S) * g_pitch + E;
                for (int parity = 0; parity < S; parity++) {
                    // columns w = S u + parity take g at u + n - REACH with tap w - S (u + n - REACH)
                    Vec<T> taps[NT];
                    for (int n = 0; n < NT; n++) {
                        const int j = S == 1 ? E - n : parity + S * (REACH - n);
                        taps[n] = j >= -E && j <= E ? kernel[(i + E) * K + j + E] : Vec<T>{};
                    }
                    correlate<T, NT, 1>(taps, G - REACH, (W - parity + S - 1) / S, line + parity * half);
                }
            }
            T* to = (T*)k.p.grad_x + ((size_t)b * H + q) * W * C + slab * L;
            for (int w = 0; w < W; w++) std::memcpy(to + (size_t)w * C, line + w % S * half + w / S, sizeof(T) * lanes);
        }
    }
    return true;
}
// Small maps: dx = constant + (n x n matrix per channel) x + (n x outputs matrix per channel) g.
template <typename T, int E, int S> static bool input_by_matrix(const Shared<T, E, S>& k, int slab, int part) {
    constexpr int K = 2 * E + 1, L = LANES<T>;
    const int H = k.H, W = k.W, C = k.C, n = H * W, outputs = k.Ho * k.Wo, lanes = k.lanes(slab), all = n + outputs;
    const int b0 = k.begin(part), images = k.begin(part + 1) - b0, pitch = (images + GROUP - 1) / GROUP * GROUP, padded = (n + TILE - 1) / TILE * TILE;
    Memory maps(sizeof(Vec<T>) * all * pitch), memory(sizeof(Vec<T>) * ((size_t)padded * all + padded));
    if (!maps.at || !memory.at) return false;
    Vec<T>*x = maps.as<Vec<T>>(), *M = memory.as<Vec<T>>(), *constant = M + (size_t)padded * all;
    const Vec<T>*D = (const Vec<T>*)k.coefficients + slab * k.classes(), *kernel = (const Vec<T>*)k.kernel + (size_t)slab * K * K;
    pack_pixels<T>((const T*)k.p.x + slab * L, x, b0, b0 + images, H, W, C, lanes, W, pitch);
    pack_pixels<T>((const T*)k.p.gradient + slab * L, x + (size_t)n * pitch, b0, b0 + images, k.Ho, k.Wo, C, lanes, k.Wo, pitch);
    make_constant<T, E, S>(k, (const Vec<T>*)k.slope + (size_t)slab * K * K, constant);
    for (int q = 0; q < n; q++) {
        for (int r = 0; r < n; r++) {
            Vec<T> value = {};
            if (q / W <= r / W) value += D[(size_t)triangle(q / W, r / W) * W * W + q % W * W + r % W];
            if (q / W >= r / W) value += D[(size_t)triangle(r / W, q / W) * W * W + r % W * W + q % W];
            M[(size_t)q * all + r] = value;
        }
        for (int p = 0; p < outputs; p++) {
            const int i = q / W - S * (p / k.Wo), j = q % W - S * (p % k.Wo);
            if (std::abs(i) <= E && std::abs(j) <= E) M[(size_t)q * all + n + p] = kernel[(i + E) * K + j + E];
        }
    }
    for (int q = 0; q < n; q += TILE)
        for (int b = 0; b < images; b += GROUP) {
            Vec<T> a[TILE][GROUP];
            for (int i = 0; i < TILE; i++)
                for (int j = 0; j < GROUP; j++) a[i][j] = constant[q + i];
            const Vec<T>*m = M + (size_t)q * all, *v = x + b;
            for (int r = 0; r < all; r++)
#pragma GCC unroll 4
                for (int i = 0; i < TILE; i++)
#pragma GCC unroll 4
                    for (int j = 0; j < GROUP; j++) a[i][j] += m[(size_t)i * all + r] * v[(size_t)r * pitch + j];
            for (int i = 0; i < TILE && q + i < n; i++)
                for (int j = 0; j < GROUP && b + j < images; j++)
                    std::memcpy((T*)k.p.grad_x + ((size_t)(b0 + b + j) * n + q + i) * C + slab * L, &a[i][j], sizeof(T) * lanes);
        }
    return true;
}
template <typename T, int E, int S> static void input_task(int task, void* context) {
    auto& k = *(Shared<T, E, S>*)context;
    const int slab = task % k.slabs, part = task / k.slabs;
    if (!(k.gram ? input_by_matrix<T, E, S>(k, slab, part) : input_by_lag<T, E, S>(k, slab, part))) k.failed = true;
}

// ---- entries
struct Forward {
    template <typename T, int E, int S> static int call(const Problem& p) {
        Shared<T, E, S> k(p);
        const size_t tasks = (size_t)k.slabs * k.parts * LANES<T>;
        Memory sums(sizeof(double) * tasks * k.classes()), firsts(sizeof(double) * tasks * k.firsts());
        if (!sums.at || !firsts.at) return 1;
        k.sums = sums.as<double>();
        k.first_sums = firsts.as<double>();
        return k.run(moment_task<T, E, S>, k.slabs * k.parts) || k.run(forward_task<T, E, S>, k.slabs * (LANES<T> / WIDE));
    }
};
struct Backward {
    template <typename T, int E, int S> static int call(const Problem& p) {
        Shared<T, E, S> k(p);
        constexpr size_t KK = k.KK, L = LANES<T>;
        Memory sums(sizeof(double) * k.slabs * k.parts * (KK + 1) * L), slabs(sizeof(T) * k.slabs * L * (k.classes() + 2 * KK));
        if (!sums.at || !slabs.at) return 1;
        k.sums = sums.as<double>();
        k.coefficients = slabs.as<T>();
        k.kernel = k.coefficients + k.slabs * L * k.classes();
        k.slope = k.kernel + k.slabs * L * KK;
        if (k.run(gradient_task<T, E, S>, k.slabs * k.parts) || k.run(backward_task<T, E, S>, k.slabs * (int)(L / WIDE))) return 1;
        return p.grad_x ? k.run(input_task<T, E, S>, k.slabs * k.parts) : 0;
    }
};
struct WeightGradient {
    template <typename T, int E, int S> static int call(const Problem& p) {
        Shared<T, E, S> k(p);
        constexpr int KK = k.KK, L = LANES<T>;
        const int side = 2 * (int)p.reach + 1;
        Memory sums(sizeof(double) * k.slabs * k.parts * (KK + 1) * L);
        if (!sums.at) return 1;
        k.sums = sums.as<double>();
        if (k.run(gradient_task<T, E, S>, k.slabs * k.parts)) return 1;
        for (int c = 0; c < k.C; c++)
            for (int n = 0; n < side * side; n++) {
                const int i = n / side - (int)p.reach, j = n % side - (int)p.reach;
                double sum = 0;
                if (std::abs(i) <= E && std::abs(j) <= E)
                    for (int part = 0; part < k.parts; part++)
                        sum += k.sums[(((size_t)part * k.slabs + c / L) * (KK + 1) + (i + E) * k.K + j + E) * L + c % L];
                ((T*)p.grad_kernels)[(int64_t)c * side * side + n] = (T)sum;
            }
        return 0;
    }
};
template <typename Entry, typename T, int E> static int by_stride(const Problem& p) {
    return p.stride == 1 ? Entry::template call<T, E, 1>(p) : Entry::template call<T, E, 2>(p);
}
template <typename Entry, typename T> static int by_reach(const Problem& p) {
    const int reach = window_reach(p);
    if constexpr (sizeof(T) == 4)
        if (reach < 3) return reach == 1 ? by_stride<Entry, T, 1>(p) : by_stride<Entry, T, 2>(p);
    return reach == 3 ? by_stride<Entry, T, 3>(p) : by_stride<Entry, T, 5>(p);
}
template <typename Entry> static int by_type(const Problem& p) { return p.is_double ? by_reach<Entry, double>(p) : by_reach<Entry, float>(p); }
static int bag_forward(const Problem& p) { return by_type<Forward>(p); }
static int bag_backward(const Problem& p) { return by_type<Backward>(p); }
static int weight_gradient(const Problem& p) { return by_type<WeightGradient>(p); }

}  // namespace FORM
#endif
