/* The physical limit: a loop with M-SVAG's reads and writes, and a memory copy.
 *
 *     limit PARAMETERS WITH_GRADIENT
 *
 * Serves the requests of serving.py. Row "limit" reads theta, m~, v~ and, if
 * WITH_GRADIENT is 1, g, and writes theta, m~, v~. Row "copy" copies m~ to g.
 */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long n;
static int with_gradient;
static float *theta, *m, *v, *g;
static long t = 1;

/* Below this many elements, starting the threads costs more than they save. */
#define WORTH_THREADS 20000

static float *array(void) {
  size_t size = (n * sizeof(float) + 4095) / 4096 * 4096;
  float *memory = aligned_alloc(4096, size);
  if (!memory) {
    fprintf(stderr, "No memory for %ld parameters\n", n);
    exit(1);
  }
  return memory;
}

static void update(void) {
  const float beta = 0.9f, learning_rate = 0.1f;
  const float power = powf(beta, ++t), correction = 1 / (1 - power);
  const float k = (1 - beta) * (1 + power) / (2 * (beta - power));
  /* Locals that do not alias, or the compiler does not vectorize. Without a gradient
     the loop takes a constant: m~, which is loaded anyway, times 0, plus `rest`. */
  float *restrict x = theta, *restrict a = m, *restrict b = v;
  const float *gradient = with_gradient ? g : m;
  const float weight = with_gradient ? 1 : 0, rest = with_gradient ? 0 : 5e-2f;
#pragma omp parallel for simd if (parallel : n > WORTH_THREADS)
  for (long i = 0; i < n; i++) {
    const float y = weight * gradient[i] + rest;
    const float m_new = a[i] + (1 - beta) * (y - a[i]);
    const float v_new = b[i] + (1 - beta) * (y * y - b[i]);
    const float mean = m_new * correction, square = mean * mean;
    const float difference = v_new * correction - square;
    const float noise = k * (difference > 0 ? difference : 0);
    const float gamma = square / (square + noise + 1e-30f);
    a[i] = m_new;
    b[i] = v_new;
    x[i] -= learning_rate * gamma * mean;
  }
}

static void copy(void) {
#pragma omp parallel if (n > WORTH_THREADS)
  {
    const long parts = omp_get_num_threads(), part = omp_get_thread_num();
    const long start = n * part / parts, end = n * (part + 1) / parts;
    memcpy(g + start, m + start, (end - start) * sizeof(float));
  }
}

static double timed(void (*step)(void)) {
  const double start = omp_get_wtime();
  step();
  return omp_get_wtime() - start;
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  n = atol(arguments[1]);
  with_gradient = atoi(arguments[2]);
  theta = array(), m = array(), v = array(), g = array();
#pragma omp parallel for simd if (parallel : n > WORTH_THREADS)
  for (long i = 0; i < n; i++) {
    theta[i] = 0;
    m[i] = 1e-3f * (i % 17);
    v[i] = 1e-3f;
    g[i] = 1e-2f * (i % 13) - 5.5e-2f;
  }
  char line[256], verb[16], row[64];
  while (fgets(line, sizeof line, stdin)) {
    double seconds = 0;
    if (sscanf(line, "%15s %63s %lf", verb, row, &seconds) < 2) return 2;
    void (*step)(void) = strcmp(row, "copy") ? update : copy;
    const double end = omp_get_wtime() + seconds;
    printf("{\"seconds\": [%.9g", timed(step));
    while (omp_get_wtime() < end) printf(", %.9g", timed(step));
    printf("]}\n");
    fflush(stdout);
  }
  return 0;
}
