/* Adam and AdamW over flat fp32 master weights, in one pass over memory; called through ctypes by kernels.py.
 *
 * Every operation and its rounding is chosen so that the bits are those of torch.optim on CPU; which of them
 * torch fuses (fma) was found by comparing bits (tests/streaming/test_kernels.py) and is the reason for
 * -ffp-contract=off. Gradients may be bf16; moments may be bf16, rounded stochastically as in rounding.py. One call
 * runs on one thread, keeps no state and holds no lock; pointers need their element's alignment only.
 *
 * Formulas: Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101; AMSGrad: Reddi et al., ICLR 2018.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* Elements handled at a time: the conversion buffers of a block stay in the first-level cache. */
enum { BLOCK = 512 };

/* torch's fused CPU kernel takes this many elements at a time and rounds what is left over differently. */
enum { FUSED_VECTOR = 8 };

/* Mode of MKL's vector maths: high accuracy, denormals kept, errors ignored. */
enum { VML_HA_QUIET = 0x140102 };

typedef struct {
    /* torch.sqrt where torch has it from MKL, which does not round correctly there; NULL for the exact root. */
    void (*vml_sqrt)(int n, const float *from, float *to, int64_t mode);
    /* MKL's thread count of the calling thread: sets it and returns the former. Comes with vml_sqrt. */
    int (*vml_threads)(int count);
    uint64_t key[2];  /* streams of stochastic rounding: [0] for exp_avg and exp_avg_sq, [1] for max_exp_avg_sq */
    uint64_t element; /* global index of the first element */
    float clip_coef;
    float decay;     /* weights are multiplied by this first; 1 for none */
    float l2;        /* weight decay that is added to the gradient; used if has_l2 */
    float weight1;   /* 1 - beta1 */
    float beta2;
    float weight2;   /* 1 - beta2 */
    float correction2_sqrt;
    float eps;
    float step;      /* minus learning rate over bias correction 1 */
    int32_t has_clip;
    int32_t has_l2;
    int32_t maximize;
    int32_t grad_bf16;
    int32_t moments_bf16;
    int32_t fused;   /* round as AdamW(fused=True), else as the for-loop and foreach forms */
} adam_args;

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

CLONES static void widen(float *restrict to, const uint16_t *restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = float_of_bits((uint32_t)from[i] << 16);
}

CLONES static void multiply(float *x, float factor, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] *= factor;
}

CLONES static void add_scaled(float *restrict x, float factor, const float *restrict y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = fmaf(factor, y[i], x[i]);
}

/* The two forms of torch.lerp: the one nearer to the end that weighs more. */
CLONES static void lerp(float *restrict m, const float *restrict g, float weight, size_t n) {
    if (fabsf(weight) < 0.5f) {
        for (size_t i = 0; i < n; i++) m[i] = fmaf(weight, g[i] - m[i], m[i]);
    } else {
        const float rest = 1.0f - weight;
        for (size_t i = 0; i < n; i++) m[i] = fmaf(-(g[i] - m[i]), rest, g[i]);
    }
}

CLONES static void second_moment(float *restrict v, const float *restrict g, float beta2, float weight2, size_t n) {
    for (size_t i = 0; i < n; i++) v[i] = fmaf(weight2 * g[i], g[i], beta2 * v[i]);
}

/* What torch's fused kernel does with the elements after its last whole vector. */
static void second_moment_tail(float *v, const float *g, float beta2, float weight2, size_t n) {
    for (size_t i = 0; i < n; i++) v[i] = fmaf(beta2, v[i], weight2 * g[i] * g[i]);
}

CLONES static void keep_maximum(float *restrict top, const float *restrict v, size_t n) {
    for (size_t i = 0; i < n; i++) top[i] = (top[i] > v[i] || top[i] != top[i]) ? top[i] : v[i];
}

CLONES static void exact_sqrt(float *restrict to, const float *restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = sqrtf(from[i]);
}

CLONES static void descend(float *restrict p, const float *restrict m, const float *restrict root, float decay,
                           float correction2_sqrt, float eps, float step, size_t n) {
    for (size_t i = 0; i < n; i++) p[i] = p[i] * decay + (step * m[i]) / (root[i] / correction2_sqrt + eps);
}

static inline uint32_t lowbias32(uint32_t word) {
    word ^= word >> 16;
    word *= 0x7feb352dU;
    word ^= word >> 15;
    word *= 0x846ca68bU;
    word ^= word >> 16;
    return word;
}

CLONES static void make_noise(uint32_t *restrict noise, uint64_t key, uint64_t element, size_t n) {
    const uint32_t key_low = (uint32_t)key, key_high = (uint32_t)(key >> 32);
    const uint32_t first = (uint32_t)element, high = (uint32_t)(element >> 32);
    for (size_t i = 0; i < n; i++) {
        const uint32_t low = first + (uint32_t)i;
        noise[i] = lowbias32(lowbias32(low ^ key_low) ^ key_high ^ (high + (low < first)));
    }
}

/* rounding.py says what this does; `half` chooses the 16 bits of noise. */
CLONES static void narrow(uint16_t *restrict to, const float *restrict from, const uint32_t *restrict noise, int half,
                          size_t n) {
    const uint32_t full = 0x7f800000U;
    const int shift = 16 * half;
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = bits_of_float(from[i]);
        uint32_t rounded = bits + ((noise[i] >> shift) & 0xffffU);
        rounded = ((bits & full) == full || (rounded & full) == full) ? bits : rounded;
        to[i] = (uint16_t)((rounded >> 16) | ((bits & 0x7fffffffU) > full ? 0x40U : 0U));
    }
}

/* n gradients as the formula wants them: fp32, clipped, turned round for maximize, with the L2 term. */
static const float *prepare(float *room, const void *grad, const float *p, const adam_args *a, size_t n) {
    if (a->grad_bf16) {
        widen(room, grad, n);
    } else if (a->has_clip || a->maximize || a->has_l2) {
        memcpy(room, grad, n * sizeof *room);
    } else {
        return grad;
    }
    if (a->has_clip) multiply(room, a->clip_coef, n);
    if (a->maximize) multiply(room, -1.0f, n);
    if (a->has_l2) add_scaled(room, a->l2, p, n);
    return room;
}

/* One block of fp32 values; the last `tail` of them are rounded like torch's scalar loop. */
static void update(float *p, const float *g, float *m, float *v, float *top, const adam_args *a, size_t n,
                   size_t tail) {
    const size_t body = n - tail;
    lerp(m, g, a->weight1, n);
    second_moment(v, g, a->beta2, a->weight2, body);
    second_moment_tail(v + body, g + body, a->beta2, a->weight2, tail);
    if (top) keep_maximum(top, v, n);
    float root[BLOCK];
    if (a->vml_sqrt) {
        a->vml_sqrt((int)n, top ? top : v, root, VML_HA_QUIET);
    } else {
        exact_sqrt(root, top ? top : v, n);
    }
    descend(p, m, root, a->decay, a->correction2_sqrt, a->eps, a->step, n);
}

static void update_narrow(float *p, const float *g, uint16_t *m, uint16_t *v, uint16_t *top, const adam_args *a,
                          uint64_t element, size_t n, size_t tail) {
    float wide[3][BLOCK];
    uint32_t noise[BLOCK];
    widen(wide[0], m, n);
    widen(wide[1], v, n);
    if (top) widen(wide[2], top, n);
    update(p, g, wide[0], wide[1], top ? wide[2] : NULL, a, n, tail);
    make_noise(noise, a->key[0], element, n);
    narrow(m, wide[0], noise, 0, n);
    narrow(v, wide[1], noise, 1, n);
    if (top) {
        make_noise(noise, a->key[1], element, n);
        narrow(top, wide[2], noise, 0, n);
    }
}

/* Updates n elements in place. m, v and top (NULL without amsgrad) are fp32, or bf16 if moments_bf16. */
void openwafer_adam(float *p, const void *grad, void *m, void *v, void *top, size_t n, const adam_args *a) {
    const size_t grad_bytes = a->grad_bf16 ? 2 : 4;
    /* Else MKL starts a team of threads for every block, once torch has used more than one. */
    const int vml_threads = a->vml_sqrt ? a->vml_threads(1) : 0;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t count = n - at < BLOCK ? n - at : BLOCK;
        const size_t tail = a->fused && count == n - at ? n % FUSED_VECTOR : 0;
        float room[BLOCK];
        const float *g = prepare(room, (const char *)grad + at * grad_bytes, p + at, a, count);
        if (a->moments_bf16) {
            update_narrow(p + at, g, (uint16_t *)m + at, (uint16_t *)v + at, top ? (uint16_t *)top + at : NULL, a,
                          a->element + at, count, tail);
        } else {
            update(p + at, g, (float *)m + at, (float *)v + at, top ? (float *)top + at : NULL, a, count, tail);
        }
    }
    if (a->vml_sqrt) a->vml_threads(vml_threads);
}
