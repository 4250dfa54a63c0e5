// One digest of all kernels' results, for any processor: built and run by tests/laws/test_levels.py.
#include <stdio.h>

#include "bytes.cpp"
#include "elementwise.cpp"
#include "fusion.cpp"
#include "measures.cpp"
#include "selection.cpp"

static u64 state = 0xCBF29CE484222325;
static void take(const void* data, i64 size) {
  for (i64 i = 0; i < size; ++i) state = (state ^ ((const u8*)data)[i]) * 0x100000001B3;
}
// Numbers near each other, some equal, zero, infinite, subnormal or none at all.
static float number(i64 row, i64 i) {
  const u64 own = draw(11 + (u64)row, i), common = draw(3, i);
  if (common % 61 == 0) {
    const u32 odd[] = {0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x80000001, 0x7F7FFFFF};
    float x;
    memcpy(&x, odd + own % 8, 4);
    return x;
  }
  const float base = (float)(common >> 40) / 16777216.0f - 0.5f;
  return own % 3 ? base + (float)(own >> 40) / 838860800.0f - 0.01f : base;
}
template <class T> static void fill(u8* row, i64 r, i64 count) {
  for (i64 i = 0; i < count; ++i) {
    const float x = number(r, i);
    if constexpr (same<T, bf16>) {
      const u32 bits = float_bits(x) >> 16;
      memcpy(row + 2 * i, &bits, 2);
    } else {
      const T y = (T)x;
      memcpy(row + (i64)sizeof(T) * i, &y, sizeof(T));
    }
  }
}

constexpr i64 COUNT = CELL + BLOCK + 37, MODELS = 7;
static u8 rows[4][MODELS][COUNT * 8], masks[MODELS][COUNT / 8 + 16], out[COUNT * 8];
static u32 found[COUNT + 16];

int main() {
  for (i64 r = 0; r < MODELS; ++r) {
    fill<bf16>(rows[0][r], r, COUNT), fill<f16>(rows[1][r], r, COUNT);
    fill<float>(rows[2][r], r, COUNT), fill<double>(rows[3][r], r, COUNT);
  }
  // Sums that are no numbers are left out: their bits depend on the processor, and nothing on them.
  for (i64 k = 1; k <= MODELS; ++k) {
    for (i64 kind = 0; kind < 5; ++kind) {  // 4: mixed
      const void* places[MODELS];
      i64 codes[MODELS];
      for (i64 r = 0; r < k; ++r) codes[r] = kind < 4 ? kind : r % 4, places[r] = rows[codes[r]][r];
      const Inputs in = {k, places, codes};
      const i64 m = k - 1;
      float singles[MODELS];
      double doubles[MODELS];
      for (i64 r = 0; r < k; ++r) doubles[r] = singles[r] = 0.75f / (float)(r + 1);
      for (i64 wide = 0; wide < 2; ++wide) {
        const void* numbers = wide ? (const void*)doubles : (const void*)singles;
        i64 kinds[MODELS], ties[MODELS * 4] = {}, present[MODELS * 4];
        u32 cuts[MODELS * 2];
        u64 chances[MODELS], seeds[MODELS];
        for (i64 r = 0; r < k; ++r) {
          kinds[r] = (r + kind) % 5, chances[r] = 1ull << 63, seeds[r] = (u64)r + 5;
          cuts[2 * r] = 0x3C800000, cuts[2 * r + 1] = 0x3B800000;
        }
        for (i64 t = 0; t < MODELS * 4; ++t) present[t] = t % 3, ties[t] = t % 2;
        memset(masks, 0x5A, sizeof masks);
        const Rules rules = {m, kinds, cuts, ties, present, 2, chances, seeds, masks[0], sizeof masks[0]};
        const Rules varied = {k, kinds, cuts, ties, present, 2, chances, seeds, masks[0], 0};
        const LinearHow linear_how = {numbers, 0.85, kind == 1 ? 0.0 : -0.0};
        const SparseHow sparse_how = {rules, numbers, numbers, numbers, 1.3, 0.8, 1, 0, 1, 0};
        const SparseHow varied_how = {varied, numbers, numbers, numbers, 1.3, 0.8, 0, 1, 0, 2};
        const NearSwapHow near_how = {0.002};
        const RamHow ram_how = {0.003, m ? numbers : nullptr};
        for (i64 step = 0; step < 6; ++step) {
          if ((step == 1 || step == 2) && k == 1) continue;
          if (step == 3 && k != 2) continue;
          for (i64 code = 0; code < 4; ++code) {
            for (i64 stochastic = 0; stochastic < 2; ++stochastic) {
              double gram[2 * MODELS * MODELS] = {}, vectors[3][2 * MODELS] = {}, noise[2] = {};
              const void* hows[] = {&linear_how, &sparse_how, &varied_how, &near_how, &ram_how, nullptr};
              const bool report = kind != 4 && code == 2;
              Sums sums = {};
              if (report) sums = {gram, vectors[0], vectors[1], vectors[2], noise};
              const Output output = {out, hows[step], 9, 0.9, sums};
              const Tile tile = {in, COUNT, 0, wide, code, stochastic, 1, &output};
              int (*const calls[])(const Tile*) = {linear, sparse, sparse, nearswap, ram, given};
              if (step == 5 && k < 2) continue;
              if (calls[step](&tile)) return 1;
              take(out, COUNT * WIDTHS[code]);
            }
          }
        }
        take(masks, sizeof masks);
        if (!m) continue;
        double norm[2 * MODELS * 2] = {};
        norms(&in, COUNT, wide, &rules, kind % 3, 0, norm);
        for (i64 i = 0; i < 2 * m * 2; ++i) if (norm[i] == norm[i]) take(norm + i, 8);
        u8 drawn[COUNT / 8 + 16] = {};
        const Ranks ranks = {16, COUNT / 16, 0.5, 0.3, 77, 0, drawn};
        draw_by_rank(&in, wide, 0, &ranks);
        take(drawn, sizeof drawn);
        sample_keys(&in, COUNT, wide, m > 1 ? -1 : 0, found);
        for (i64 i = 0; i < COUNT; ++i) if (found[i] <= 0x7F800000) take(found + i, 4);
        i64 above = 0, equal[4] = {}, what = 0, fill_of = 0;
        const u32 low = 0x3B000000, high = 0x3C000000, guesses[2] = {0x3B800000, 0x3BC00000};
        const Tally t = {1, &what, &low, &high, guesses, &above, equal, 2, found, COUNT + 16, &fill_of};
        tally(&in, COUNT, wide, &t);
        take(found, fill_of * 4), take(&above, 8), take(equal, sizeof equal);
        i64 counts[2 * MODELS] = {};
        count_shared(&in, COUNT, wide, 0.003, counts);
        take(counts, sizeof counts);
        if (k != 2) continue;
        const i64 length = 1000, all = (COUNT + length - 1) / length;
        static i64 upper[2][1 << 16], lower[3 << LOW];
        static double divergences[all];
        const u32 sought[3] = {0, 0x3700, 0x3780};
        memset(upper, 0, sizeof upper), memset(lower, 0, sizeof lower), memset(divergences, 0, sizeof divergences);
        diverge(&in, wide, COUNT / length, length, divergences, upper[0]);
        count_keys(&in, COUNT, wide, 0, divergences, length, sought, lower);
        for (const double each : divergences) if (each == each) take(&each, 8);
        take(lower, sizeof lower);
        const FusionHow fusion_how = {divergences, length, 1e-6};
        const Output chosen = {out, &fusion_how, 9, 0.9, {}};
        const Tile tile = {in, COUNT, 0, wide, FLOAT32, 0, 1, &chosen};
        if (fusion(&tile)) return 1;
        take(out, COUNT * 4);
      }
      u64 digests[12] = {};
      digest(rows[kind % 4][0], COUNT * WIDTHS[kind % 4], digests, (COUNT * WIDTHS[kind % 4] + CELL - 1) / CELL);
      take(digests, sizeof digests);
      const i64 few = 1000;
      double gram[MODELS * MODELS] = {}, lines[40 * MODELS * MODELS] = {}, heads[MODELS * MODELS] = {};
      measure(&in, few, 0, gram);
      measure_rows(&in, few, 0, 25, 0, lines, heads);
      for (i64 i = 0; i < k * k; ++i) if (gram[i] == gram[i]) take(gram + i, 8);
      for (i64 i = 0; i < 40 * k * k; ++i) if (lines[i] == lines[i]) take(lines + i, 8);
      if (k >= 2) {
        i64 histogram[2 * BUCKETS] = {};
        double figures[2 * FIGURES] = {};
        const Inputs pair = {k < 3 ? k : 3, places, codes};
        compare(&pair, COUNT, figures, histogram);
        take(histogram, sizeof histogram);
      }
    }
  }
  printf("%016llx\n", (unsigned long long)state);
}
