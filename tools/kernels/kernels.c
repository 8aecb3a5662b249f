// Kernels for channels-last float32 maps on a CPU: depthwise convolution, and BatchNorm with a clamp.
//
// Maps are (images, height, width, channels) in memory. Work is cut into parts that do not depend on the
// number of threads, and partial sums are added in the order of the parts, so neither do the bits.

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef long long whole;
typedef float wide __attribute__((vector_size(64), aligned(4), may_alias));

enum { LANES = 16, BLOCK = 64, GROUP = BLOCK / LANES, ROWS = 64, IMAGES = 8 };

static inline whole least(whole a, whole b) { return a < b ? a : b; }
static inline whole most(whole a, whole b) { return a > b ? a : b; }
// The quotient rounded down, or up, for a positive divisor.
static inline whole below(whole a, whole b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
static inline whole above(whole a, whole b) { return -below(-a, b); }

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
  for (whole i = 0; i < size; i++) {
    double sum = 0;
    for (whole part = 0; part < count; part++) sum += parts[part * size + i];
    to[i] = (float)sum;
  }
}

// ---- BatchNorm with a clamp --------------------------------------------------------------------------------
// A clamp from `low` to `high` is ReLU (0, inf), ReLU6 (0, 6) or nothing (-inf, inf).

// Sum the parts, each of ROWS rows and two values for each channel, into doubles.
static void add_parts(const float *restrict parts, whole count, whole chs, whole which, double *to) {
  for (whole c = 0; c < chs; c++) to[c] = 0;
  for (whole p = 0; p < count; p++)
    for (whole c = 0; c < chs; c++) to[c] += parts[(2 * p + which) * chs + c];
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
  double *total = malloc(2 * chs * sizeof(double)), *square = total + chs;
  memset(total, 0, 2 * chs * sizeof(double));
  for (whole p = 0; p < count; p++) {
    double n = (double)least(ROWS, rows - p * ROWS);
    for (whole c = 0; c < chs; c++) total[c] += n * parts[2 * p * chs + c];
  }
  for (whole c = 0; c < chs; c++) total[c] /= (double)rows;
  for (whole p = 0; p < count; p++) {
    double n = (double)least(ROWS, rows - p * ROWS);
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

// out = clamp(in * scale + shift).
void norm_forward(const float *restrict in, float *restrict out, const float *restrict scale,
                  const float *restrict shift, float low, float high, whole rows, whole chs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (whole r = 0; r < rows; r++)
#pragma omp simd
    for (whole c = 0; c < chs; c++) {
      float y = in[r * chs + c] * scale[c] + shift[c];
      y = y < low ? low : y;
      out[r * chs + c] = y > high ? high : y;
    }
}

// For each channel the sum of the gradient within the clamp, and that of it times (in - mean).
void norm_backward_sums(const float *restrict gradient, const float *restrict in, const float *restrict mean,
                        const float *restrict scale, const float *restrict shift, float low, float high, whole rows,
                        whole chs, float *restrict sum, float *restrict product, float *restrict parts,
                        int threads) {
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
  double *total = malloc(chs * sizeof(double));
  add_parts(parts, count, chs, 0, total);
  for (whole c = 0; c < chs; c++) sum[c] = (float)total[c];
  add_parts(parts, count, chs, 1, total);
  for (whole c = 0; c < chs; c++) product[c] = (float)total[c];
  free(total);
}

// to = scale * (gradient within the clamp) - level - slope * (in - mean).
void norm_backward_inputs(const float *restrict gradient, const float *restrict in,
                          const float *restrict mean, const float *restrict scale, const float *restrict shift,
                          const float *restrict level, const float *restrict slope, float low, float high,
                          whole rows, whole chs, float *restrict to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (whole r = 0; r < rows; r++)
#pragma omp simd
    for (whole c = 0; c < chs; c++) {
      float x = in[r * chs + c], y = x * scale[c] + shift[c];
      float g = (y > low) & (y < high) ? gradient[r * chs + c] : 0.0f;
      to[r * chs + c] = g * scale[c] - level[c] - slope[c] * (x - mean[c]);
    }
}
