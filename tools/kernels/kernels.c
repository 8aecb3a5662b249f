// Kernels for channels-last float32 maps on a CPU: depthwise convolution, and BatchNorm with a clamp.
//
// Maps are (images, height, width, channels) in memory. Work is cut into parts that do not depend on the
// number of threads, and partial sums are added in the order of the parts, so neither do the bits.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef long long whole;
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));

enum { LANES = 16, BLOCK = 64, GROUP = BLOCK / LANES, ROWS = 64, IMAGES = 8 };

static inline whole least(whole a, whole b) { return a < b ? a : b; }
static inline whole most(whole a, whole b) { return a > b ? a : b; }
// The quotient rounded down, or up, for a positive divisor.
static inline whole below(whole a, whole b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
static inline whole above(whole a, whole b) { return -below(-a, b); }

// Sum `count` parts of `size` values in double precision.
static void add_parts(const float *restrict parts, whole count, whole size, float *restrict to) {
  for (whole first = 0; first < size; first += BLOCK) {
    whole some = least(BLOCK, size - first);
    double sum[BLOCK] = {0};
    for (whole part = 0; part < count; part++)
      for (whole i = 0; i < some; i++) sum[i] += parts[part * size + first + i];
    for (whole i = 0; i < some; i++) to[first + i] = (float)sum[i];
  }
}

// ---- depthwise convolution -------------------------------------------------------------------------------
// Weights are (side, side, channels) in memory.

typedef struct {
  whole images, height, width, chs, out_height, out_width, side, stride, padding;
} Shape;

// One output pixel: the sum over the taps (first row, last row, first column, last column).
#define SUM_OF_TAPS(COUNT)                                                                                    \
  {                                                                                                           \
    wide sum[COUNT];                                                                                          \
    for (int i = 0; i < COUNT; i++) sum[i] = (wide){0};                                                       \
    for (whole r = r0; r < r1; r++)                                                                           \
      for (whole c = c0; c < c1; c++) {                                                                       \
        const float *a = pixel + (r * row_step + c * column_step) + ch;                                       \
        const float *b = taps + (r * r_tap + c * c_tap) + ch;                                                 \
        for (int i = 0; i < COUNT; i++) sum[i] += ((const wide *)a)[i] * ((const wide *)b)[i];                \
      }                                                                                                       \
    for (int i = 0; i < COUNT; i++) ((wide *)(to + ch))[i] = sum[i];                                          \
  }

static inline void pixel_of(const float *restrict pixel, whole row_step, whole column_step,
                            const float *restrict taps, whole r_tap, whole c_tap, whole r0, whole r1, whole c0,
                            whole c1, float *restrict to, whole chs) {
  whole ch = 0;
  for (; ch + BLOCK <= chs; ch += BLOCK) SUM_OF_TAPS(GROUP)
  for (; ch + LANES <= chs; ch += LANES) SUM_OF_TAPS(1)
  for (; ch < chs; ch++) {
    float sum = 0;
    for (whole r = r0; r < r1; r++)
      for (whole c = c0; c < c1; c++)
        sum += pixel[r * row_step + c * column_step + ch] * taps[r * r_tap + c * c_tap + ch];
    to[ch] = sum;
  }
}

// The gradient of the inputs. Input row y meets output row o through tap y + padding - stride * o.
void depthwise_backward_inputs(const float *restrict gradient, const float *restrict taps, float *restrict to,
                               const Shape *shape, int threads) {
  const Shape s = *shape;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (whole n = 0; n < s.images; n++)
    for (whole y = 0; y < s.height; y++) {
      const float *image = gradient + n * s.out_height * s.out_width * s.chs;
      whole down = y + s.padding, r0 = most(0, above(down - s.side + 1, s.stride));
      whole r1 = least(s.out_height, below(down, s.stride) + 1);
      for (whole x = 0; x < s.width; x++) {
        whole along = x + s.padding, c0 = most(0, above(along - s.side + 1, s.stride));
        whole c1 = least(s.out_width, below(along, s.stride) + 1);
        pixel_of(image, s.out_width * s.chs, s.chs, taps + (down * s.side + along) * s.chs,
                 -s.stride * s.side * s.chs, -s.stride * s.chs, r0, r1, c0, c1,
                 to + ((n * s.height + y) * s.width + x) * s.chs, s.chs);
      }
    }
}

#define ALONG_A_ROW(COUNT)                                                                                    \
  {                                                                                                           \
    wide sum[COUNT];                                                                                          \
    for (int i = 0; i < COUNT; i++) sum[i] = ((wide *)(to + ch))[i];                                          \
    for (whole x = x0; x < x1; x++)                                                                           \
      for (int i = 0; i < COUNT; i++)                                                                         \
        sum[i] += ((const wide *)(g + x * chs + ch))[i] * ((const wide *)(in + x * step + ch))[i];            \
    for (int i = 0; i < COUNT; i++) ((wide *)(to + ch))[i] = sum[i];                                          \
  }

// One tap, channels [ch, end): the sum over a row of outputs.
static inline void tap_of(const float *restrict g, const float *restrict in, whole step, whole chs, whole x0,
                          whole x1, float *restrict to, whole ch, whole end) {
  for (; ch + BLOCK <= end; ch += BLOCK) ALONG_A_ROW(GROUP)
  for (; ch + LANES <= end; ch += LANES) ALONG_A_ROW(1)
  for (; ch < end; ch++)
    for (whole x = x0; x < x1; x++) to[ch] += g[x * chs + ch] * in[x * step + ch];
}

// The gradient of the taps. `parts` holds one sum for each IMAGES images.
void depthwise_backward_taps(const float *restrict gradient, const float *restrict in, float *restrict to,
                             float *restrict parts, const Shape *shape, int threads) {
  const Shape s = *shape;
  whole count = (s.images + IMAGES - 1) / IMAGES, blocks = (s.chs + BLOCK - 1) / BLOCK;
  whole size = s.side * s.side * s.chs;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
  for (whole part = 0; part < count; part++)
    for (whole block = 0; block < blocks; block++) {
      float *sums = parts + part * size;
      whole ch = block * BLOCK, end = least(s.chs, ch + BLOCK);
      for (whole t = 0; t < s.side * s.side; t++) memset(sums + t * s.chs + ch, 0, (end - ch) * sizeof(float));
      for (whole n = part * IMAGES; n < least(s.images, (part + 1) * IMAGES); n++)
        for (whole y = 0; y < s.out_height; y++)
          for (whole r = 0; r < s.side; r++) {
            whole row = y * s.stride - s.padding + r;
            if (row < 0 || row >= s.height) continue;
            for (whole c = 0; c < s.side; c++) {
              whole off = c - s.padding, x0 = most(0, above(-off, s.stride));
              whole x1 = least(s.out_width, below(s.width - 1 - off, s.stride) + 1);
              tap_of(gradient + (n * s.out_height + y) * s.out_width * s.chs,
                     in + ((n * s.height + row) * s.width + off) * s.chs, s.stride * s.chs, s.chs, x0, x1,
                     sums + (r * s.side + c) * s.chs, ch, end);
            }
          }
    }
  add_parts(parts, count, size, to);
}

typedef int bits __attribute__((vector_size(64), aligned(4), may_alias));

static inline wide choose(bits which, wide yes, wide no) {
  return (wide)((which & (bits)yes) | (~which & (bits)no));
}

// Write to a map that is too large for the cache: what is there need not be read, nor what is written be kept.
static inline void stream(float *to, wide values) {
#ifdef __AVX512F__
  if ((uintptr_t)to % sizeof(wide) == 0) {
    _mm512_stream_ps(to, (__m512)values);
    return;
  }
#endif
  *(wide *)to = values;
}

// To be called by each thread after it has streamed.
static inline void streamed(void) {
#ifdef __AVX512F__
  _mm_sfence();
#endif
}

// ---- BatchNorm with a clamp --------------------------------------------------------------------------------
// A clamp from `low` to `high` is ReLU (0, inf), ReLU6 (0, 6) or nothing (-inf, inf).

// Mean and biased variance of each channel, from parts of `size` rows, each with its mean and its sum of squares
// about that.
static void join_statistics(const float *restrict parts, whole rows, whole size, whole chs, float *restrict mean,
                            float *restrict variance) {
  whole count = (rows + size - 1) / size;
  double *total = malloc(2 * chs * sizeof(double)), *square = total + chs;
  memset(total, 0, 2 * chs * sizeof(double));
  for (whole p = 0; p < count; p++) {
    double n = (double)least(size, rows - p * size);
    for (whole c = 0; c < chs; c++) total[c] += n * parts[2 * p * chs + c];
  }
  for (whole c = 0; c < chs; c++) total[c] /= (double)rows;
  for (whole p = 0; p < count; p++) {
    double n = (double)least(size, rows - p * size);
#pragma omp simd
    for (whole c = 0; c < chs; c++) {
      double d = parts[2 * p * chs + c] - total[c];
      square[c] += parts[(2 * p + 1) * chs + c] + n * d * d;
    }
  }
#pragma omp simd
  for (whole c = 0; c < chs; c++) {
    mean[c] = (float)total[c];
    variance[c] = (float)(square[c] / (double)rows);
  }
  free(total);
}

// Mean and biased variance of each channel. `parts` has two values for each part and channel.
void norm_statistics(const float *restrict in, whole rows, whole chs, float *restrict mean,
                     float *restrict variance, float *restrict parts, int threads) {
  whole count = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (whole p = 0; p < count; p++) {
    whole first = p * ROWS, n = least(ROWS, rows - first);
    const float *block = in + first * chs;
    float *level = parts + 2 * p * chs, *spread = level + chs;
    memset(level, 0, 2 * chs * sizeof(float));
    for (whole r = 0; r < n; r++)
      for (whole c = 0; c < chs; c++) level[c] += block[r * chs + c];
    for (whole c = 0; c < chs; c++) level[c] /= (float)n;
    for (whole r = 0; r < n; r++)
#pragma omp simd
      for (whole c = 0; c < chs; c++) {
        float d = block[r * chs + c] - level[c];
        spread[c] += d * d;
      }
  }
  join_statistics(parts, rows, ROWS, chs, mean, variance);
}

static inline wide clamp(wide y, float low, float high) {
  y = choose(y < low, low - (wide){0}, y);
  return choose(y > high, high - (wide){0}, y);
}

// out = clamp(in * scale + shift).
void norm_forward(const float *restrict in, float *restrict out, const float *restrict scale,
                  const float *restrict shift, float low, float high, whole rows, whole chs, int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (whole r = 0; r < rows; r++) {
      const float *from = in + r * chs;
      float *to = out + r * chs;
      whole c = 0;
      for (; c + LANES <= chs; c += LANES)
        stream(to + c, clamp(*(wide *)(from + c) * *(wide *)(scale + c) + *(wide *)(shift + c), low, high));
      for (; c < chs; c++) {
        float y = from[c] * scale[c] + shift[c];
        y = y < low ? low : y;
        to[c] = y > high ? high : y;
      }
    }
    streamed();
  }
}

// For each channel the sum of the gradient within the clamp, and that of it times (in - mean).
void norm_backward_sums(const float *restrict gradient, const float *restrict in, const float *restrict mean,
                        const float *restrict scale, const float *restrict shift, float low, float high, whole rows,
                        whole chs, float *restrict sums, float *restrict parts, int threads) {
  whole count = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (whole p = 0; p < count; p++) {
    float *plain = parts + 2 * p * chs, *with = plain + chs;
    memset(plain, 0, 2 * chs * sizeof(float));
    for (whole r = p * ROWS; r < least(rows, (p + 1) * ROWS); r++)
#pragma omp simd
      for (whole c = 0; c < chs; c++) {
        float x = in[r * chs + c], y = x * scale[c] + shift[c];
        float g = (y > low) & (y < high) ? gradient[r * chs + c] : 0.0f;
        plain[c] += g;
        with[c] += g * (x - mean[c]);
      }
  }
  add_parts(parts, count, 2 * chs, sums);
}

// to = scale * (gradient within the clamp) - level - slope * (in - mean). It may replace the gradient.
void norm_backward_inputs(const float *gradient, const float *restrict in,
                          const float *restrict mean, const float *restrict scale, const float *restrict shift,
                          const float *restrict level, const float *restrict slope, float low, float high,
                          whole rows, whole chs, float *to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (whole r = 0; r < rows; r++)
#pragma omp simd
    for (whole c = 0; c < chs; c++) {
      float x = in[r * chs + c], y = x * scale[c] + shift[c];
      float g = (y > low) & (y < high) ? gradient[r * chs + c] : 0.0f;
      to[r * chs + c] = g * scale[c] - level[c] - slope[c] * (x - mean[c]);
    }
}

// ---- BatchNorm with a clamp, depthwise convolution, BatchNorm with a clamp -----------------------------------
// An image's channels are worked on LANES at a time in planes with a border of zeros, which stay in the cache:
// the map between the first BatchNorm and the convolution is never in memory, neither are its gradient and
// that of the map after the convolution. Sides are 3, 5 or 7, strides 1 or 2, and paddings less than a side.

enum { TILE = 8 };

// A BatchNorm: clamp(x * scale + shift). Its gradient is scale * (what is within the clamp) - level -
// slope * (x - mean).
typedef struct {
  const float *mean, *scale, *shift, *level, *slope;
  float low, high;
} Norm;

typedef struct {
  wide mean, scale, shift, level, slope;
  float low, high;
} NormLanes;

static wide *zeros(whole count) {
  wide *found = aligned_alloc(sizeof(wide), count * sizeof(wide));
  memset(found, 0, count * sizeof(wide));
  return found;
}

static inline wide load(const float *from, whole lanes) {
  if (lanes == LANES) return *(const wide *)from;
  wide found = {0};
  memcpy(&found, from, lanes * sizeof(float));
  return found;
}

static inline void store(float *to, wide values, whole lanes) {
  if (lanes == LANES)
    stream(to, values);
  else
    memcpy(to, &values, lanes * sizeof(float));
}

static NormLanes lanes_of(const Norm *norm, whole ch, whole lanes) {
  NormLanes found = {.low = norm->low, .high = norm->high};
  found.mean = load(norm->mean + ch, lanes);
  found.scale = load(norm->scale + ch, lanes);
  found.shift = load(norm->shift + ch, lanes);
  if (norm->level) found.level = load(norm->level + ch, lanes), found.slope = load(norm->slope + ch, lanes);
  return found;
}

// What is within the clamp of what it let through, and zero elsewhere.
static inline wide within(const NormLanes *norm, wide outputs, wide gradient) {
  return (wide)((outputs > norm->low) & (outputs < norm->high) & (bits)gradient);
}

static inline wide normal(const NormLanes *norm, wide x) {
  return clamp(x * norm->scale + norm->shift, norm->low, norm->high);
}

// The planes of an image and of its convolution. A convolution's plane begins with `lead` rows and columns of
// zeros, so that every input meets all of its taps.
typedef struct {
  whole width, size, out_width, out_size, lead;
} Planes;

static Planes planes_of(const Shape *s) {
  Planes p = {.width = s->width + 2 * s->padding, .lead = (s->side - 1) / s->stride};
  p.size = (s->height + 2 * s->padding) * p.width;
  p.out_width = p.lead + (s->width - 1 + s->padding) / s->stride + 1;
  p.out_size = (p.lead + (s->height - 1 + s->padding) / s->stride + 1) * p.out_width;
  return p;
}

// Ask for a row of pixels long before it is read, so that memory works while the processor computes.
static inline void fetch(const float *from, whole width, whole chs) {
  for (whole x = 0; x < width; x++) __builtin_prefetch(from + x * chs, 0, 2);
}

// The first BatchNorm's outputs for one image.
static void fill(const float *restrict in, const NormLanes *norm, whole lanes, wide *restrict plane,
                 const Planes *p, const Shape *s) {
  for (whole y = 0; y < s->height; y++)
    for (whole x = 0; x < s->width; x++)
      plane[(y + s->padding) * p->width + x + s->padding] =
          normal(norm, load(in + (y * s->width + x) * s->chs, lanes));
}

// The gradient of the convolution's outputs, for one image, through the second BatchNorm.
static void fill_gradient(const float *restrict gradient, const float *restrict outputs, const NormLanes *norm,
                          whole lanes, wide *restrict plane, const Planes *p, const Shape *s) {
  for (whole y = 0; y < s->out_height; y++)
    for (whole x = 0; x < s->out_width; x++) {
      whole pixel = (y * s->out_width + x) * s->chs;
      wide z = load(outputs + pixel, lanes);
      wide g = within(norm, z * norm->scale + norm->shift, load(gradient + pixel, lanes));
      plane[(y + p->lead) * p->out_width + x + p->lead] =
          g * norm->scale - norm->level - norm->slope * (z - norm->mean);
    }
}

#define OUTPUTS_AT_ONCE(COUNT)                                                                                \
  for (; x + COUNT <= count; x += COUNT) {                                                                    \
    wide sum[COUNT];                                                                                          \
    for (int i = 0; i < COUNT; i++) sum[i] = (wide){0};                                                       \
    for (whole r = 0; r < rows; r++)                                                                          \
      for (whole c = 0; c < columns; c++) {                                                                   \
        wide tap = taps[r * r_tap + c * c_tap];                                                               \
        for (int i = 0; i < COUNT; i++) sum[i] += in[r * width + (x + i) * step + c] * tap;                   \
      }                                                                                                       \
    for (int i = 0; i < COUNT; i++) to[(x + i) * to_step] = sum[i];                                           \
  }

static inline __attribute__((always_inline)) void row_of(const wide *restrict in, whole width, whole rows,
                                                         whole columns, whole step, const wide *restrict taps,
                                                         whole r_tap, whole c_tap, wide *restrict to,
                                                         whole to_step, whole count) {
  whole x = 0;
  OUTPUTS_AT_ONCE(TILE)
  OUTPUTS_AT_ONCE(TILE / 2)
  OUTPUTS_AT_ONCE(1)
}

// A row of `count` outputs of a convolution, with the loops unrolled for the kernel at hand.
static void row(const wide *in, whole width, whole rows, whole columns, whole step, const wide *taps,
                whole r_tap, whole c_tap, wide *to, whole to_step, whole count) {
#define CASE(COLUMNS, STEP)                                                                                   \
  if (columns == COLUMNS && step == STEP)                                                                     \
    return row_of(in, width, rows, COLUMNS, STEP, taps, r_tap, c_tap, to, to_step, count);
  CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(7, 1) CASE(3, 2) CASE(5, 2) CASE(7, 2)
#undef CASE
}

// A row of the inputs' gradient. Input y meets output o through tap y + padding - stride * o.
static void row_of_gradient(const wide *gradient, const Planes *p, const wide *taps, whole y, wide *to,
                            const Shape *s) {
  whole down = y + s->padding, r = down % s->stride, rows = (s->side - r + s->stride - 1) / s->stride;
  const wide *from = gradient + (down / s->stride - (rows - 1) + p->lead) * p->out_width;
  for (whole x = 0; x < s->stride; x++) {
    whole along = x + s->padding, c = along % s->stride;
    whole columns = (s->side - c + s->stride - 1) / s->stride;
    const wide *last = taps + (r + s->stride * (rows - 1)) * s->side + c + s->stride * (columns - 1);
    row(from + along / s->stride - (columns - 1) + p->lead, p->out_width, rows, columns, 1, last,
        -s->stride * s->side, -s->stride, to + x, s->stride, (s->width - x + s->stride - 1) / s->stride);
  }
}

// Add one image's gradient of the taps, `group` rows of them at once.
static inline __attribute__((always_inline)) void taps_of(const wide *restrict gradient, const wide *restrict in,
                                                          const Planes *p, const Shape *s, whole side,
                                                          whole group, whole stride, wide *restrict to) {
  for (whole first = 0; first < side; first += group) {
    wide sum[group * side];
    for (whole t = 0; t < group * side; t++) sum[t] = (wide){0};
    for (whole y = 0; y < s->out_height; y++)
      for (whole x = 0; x < s->out_width; x++) {
        wide g = gradient[(y + p->lead) * p->out_width + x + p->lead];
        const wide *corner = in + (y * stride + first) * p->width + x * stride;
        for (whole r = 0; r < group; r++)
          for (whole c = 0; c < side; c++) sum[r * side + c] += g * corner[r * p->width + c];
      }
    for (whole t = 0; t < group * side; t++) to[first * side + t] += sum[t];
  }
}

static void add_taps(const wide *gradient, const wide *in, const Planes *p, const Shape *s, wide *to) {
  if (s->side == 3) return taps_of(gradient, in, p, s, 3, 3, s->stride, to);
  if (s->side == 5) return taps_of(gradient, in, p, s, 5, 5, s->stride, to);
  if (s->side == 7) return taps_of(gradient, in, p, s, 7, 1, s->stride, to);
}

// The first BatchNorm, its clamp and the convolution; and mean and biased variance of what comes out.
void chain_forward(const float *restrict in, const float *restrict taps, float *restrict to, const Norm *first,
                   float *restrict mean, float *restrict variance, float *restrict parts, const Shape *shape,
                   int threads) {
  const Shape s = *shape;
  const Planes p = planes_of(&s);
  whole squares = s.side * s.side, size = s.height * s.width * s.chs, out_size = s.out_height * s.out_width;
#pragma omp parallel num_threads(threads)
  {
    wide *plane = zeros(p.size + out_size + squares), *image = plane + p.size, *own = image + out_size;
#pragma omp for schedule(static) collapse(2)
    for (whole n = 0; n < s.images; n++)
      for (whole ch = 0; ch < s.chs; ch += LANES) {
        whole lanes = least(LANES, s.chs - ch);
        const float *from = in + n * size + ch;
        const float *next = ch + LANES < s.chs ? from + LANES : in + least(n + 1, s.images - 1) * size;
        NormLanes norm = lanes_of(first, ch, lanes);
        for (whole t = 0; t < squares; t++) own[t] = load(taps + t * s.chs + ch, lanes);
        fill(from, &norm, lanes, plane, &p, &s);
        wide level = {0}, spread = {0};
        for (whole y = 0; y < s.out_height; y++) {
          wide *line = image + y * s.out_width, sum = {0};
          for (whole r = y * s.stride; r < least(s.height, (y + 1) * s.stride); r++)
            fetch(next + r * s.width * s.chs, s.width, s.chs);
          row(plane + y * s.stride * p.width, p.width, s.side, s.side, s.stride, own, s.side, 1, line, 1,
              s.out_width);
          for (whole x = 0; x < s.out_width; x++) sum += line[x];
          level += sum;
        }
        level /= (float)out_size;
        for (whole i = 0; i < out_size; i++) {
          wide off = image[i] - level;
          spread += off * off;
          store(to + (n * out_size + i) * s.chs + ch, image[i], lanes);
        }
        store(parts + 2 * n * s.chs + ch, level, lanes);
        store(parts + (2 * n + 1) * s.chs + ch, spread, lanes);
      }
    streamed();
    free(plane);
  }
  join_statistics(parts, s.images * out_size, out_size, s.chs, mean, variance);
}

// From the gradient of the second BatchNorm's outputs to that of the first's, within its clamp; and the gradient
// of the taps, and the first's sums. `parts` has side * side + 2 values for each IMAGES images and channel.
void chain_backward(const float *restrict gradient, const float *restrict in, const float *restrict outputs,
                    const float *restrict taps, const Norm *first, const Norm *second, float *restrict to,
                    float *restrict sums, float *restrict parts, const Shape *shape, int threads) {
  const Shape s = *shape;
  const Planes p = planes_of(&s);
  whole count = (s.images + IMAGES - 1) / IMAGES, squares = s.side * s.side, values = squares + 2;
  whole line_size = s.width * s.chs, size = s.height * line_size;
  whole out_line_size = s.out_width * s.chs, out_size = s.out_height * out_line_size;
#pragma omp parallel num_threads(threads)
  {
    wide *plane = zeros(p.size + p.out_size + squares + values + s.width), *out_plane = plane + p.size;
    wide *own = out_plane + p.out_size, *found = own + squares, *line = found + values;
#pragma omp for schedule(static) collapse(2)
    for (whole part = 0; part < count; part++)
      for (whole ch = 0; ch < s.chs; ch += LANES) {
        whole lanes = least(LANES, s.chs - ch), start = part * IMAGES, end = least(s.images, start + IMAGES);
        NormLanes one = lanes_of(first, ch, lanes), two = lanes_of(second, ch, lanes);
        for (whole t = 0; t < squares; t++) own[t] = load(taps + t * s.chs + ch, lanes);
        memset(found, 0, values * sizeof(wide));
        for (whole n = start; n < end; n++) {
          whole next = n + 1 < end ? n + 1 : start, next_ch = n + 1 < end ? ch : least(ch + LANES, s.chs - 1);
          fill(in + n * size + ch, &one, lanes, plane, &p, &s);
          fill_gradient(gradient + n * out_size + ch, outputs + n * out_size + ch, &two, lanes, out_plane, &p, &s);
          add_taps(out_plane, plane, &p, &s, found);
          wide plain = {0}, with = {0};
          for (whole y = 0; y < s.height; y++) {
            fetch(in + next * size + y * line_size + next_ch, s.width, s.chs);
            if (y < s.out_height) {
              whole out_line = next * out_size + y * out_line_size + next_ch;
              fetch(gradient + out_line, s.out_width, s.chs);
              fetch(outputs + out_line, s.out_width, s.chs);
            }
            row_of_gradient(out_plane, &p, own, y, line, &s);
            wide sum = {0}, product = {0};
            for (whole x = 0; x < s.width; x++) {
              whole pixel = n * size + y * line_size + x * s.chs + ch;
              wide g = within(&one, plane[(y + s.padding) * p.width + x + s.padding], line[x]);
              store(to + pixel, g, lanes);
              sum += g;
              product += g * (load(in + pixel, lanes) - one.mean);
            }
            plain += sum, with += product;
          }
          found[squares] += plain, found[squares + 1] += with;
        }
        for (whole t = 0; t < values; t++) store(parts + (part * values + t) * s.chs + ch, found[t], lanes);
      }
    streamed();
    free(plane);
  }
  add_parts(parts, count, values * s.chs, sums);
}
