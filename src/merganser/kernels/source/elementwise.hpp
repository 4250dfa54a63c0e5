// One tile, element by element: read, step, round once, and add up what the report needs.
//
// Everything is an instance of one template over the dtype that is computed in (W), the number of models (K, or
// 0 for any), the dtype that they are stored in, that of the output, its rounding, and the step of a method.
#pragma once
#include "rounding.hpp"
#include "rules.hpp"

// A step has: how it is told its numbers (a struct that Python fills); FEW, up to which number of models each has
// an instance of its own; EXTRA rows behind the models; `prepare`, called before each block; and the call itself,
// which makes the result of sixteen elements from those of the models, the base first if there is one.
struct Plain {
  static constexpr int FEW = 5;
  static constexpr int EXTRA = 0;
  template <class In> void prepare(const Inputs&, int, i64) {}
};

// What an output adds up, by cells; null where it is not wanted.
struct Sums { double *gram, *differ, *ideal, *cross, *noise; };
struct Output { void* out; const void* how; u64 seed; double share; Sums sums; };
// `digests`: of each input, the digests of its cells of bytes, or null; null where none is wanted.
struct Tile {
  Inputs in; i64 count, start, wide, code, stochastic, outputs; const Output* output; u64* const* digests;
};

EXPORT void digest(const u8* data, i64 size, u64* sums, i64 cells);

// Digest the inputs' elements from the first of a cell on, while the cache has them.
static void digest_inputs(const Tile& tile, i64 from, i64 to) {
  for (i64 i = 0; i < tile.in.k; ++i) {
    if (!tile.digests[i]) continue;
    const i64 width = WIDTHS[tile.in.codes[i]], bytes = (to - from) * width;
    digest((const u8*)tile.in.rows[i] + from * width, bytes, tile.digests[i] + from * width / CELL,
           (bytes + CELL - 1) / CELL);
  }
}

template <class W, int K> struct Report {
  static constexpr int M = K ? (K > 1 ? K - 1 : 1) : 0;
  static constexpr int PAIRS = M * (M + 1) / 2;
  Array<Vec<W>, PAIRS> gram;
  Array<Vec<W>, M> differ, ideal, cross;
  Vec<W> noise = {};
  Report(i64 m, Room& room) : gram(m * (m + 1) / 2, room), differ(m, room), ideal(m, room), cross(m, room) {}

  void empty(i64 m) {
    for (i64 i = 0; i < m * (m + 1) / 2; ++i) gram[i] = Vec<W>{};
    for (i64 i = 0; i < m; ++i) differ[i] = ideal[i] = cross[i] = Vec<W>{};
    noise = Vec<W>{};
  }
  INLINE_MEMBER void add(i64 m, const Vec<W>* x, Vec<W> exact, Vec<W> stored, W share, const Sums& sums) {
    const Vec<W> one = Vec<W>{} + (W)1, moved = stored - share * x[0];
    noise = fma(stored - exact, stored - exact, noise);
    i64 n = 0;
    for (i64 i = 0; i < m; ++i) {
      const Vec<W> apart = x[i + 1] - x[0];
      if (sums.gram) {
        for (i64 j = 0; j <= i; ++j, ++n) gram[n] = fma(apart, x[j + 1] - x[0], gram[n]);
        differ[i] += apart != 0 ? one : Vec<W>{};
      }
      cross[i] = fma(moved, apart, cross[i]);
      if (sums.ideal) ideal[i] = fma(exact - x[0], apart, ideal[i]);
    }
  }
  void tell(i64 m, const Sums& sums, i64 cell) {
    i64 n = 0;
    for (i64 i = 0; i < m; ++i) {
      if (sums.gram) {
        for (i64 j = 0; j <= i; ++j, ++n) sums.gram[(cell * m + i) * m + j] += (double)total<W>(gram[n]);
        sums.differ[cell * m + i] += (double)total<W>(differ[i]);
      }
      sums.cross[cell * m + i] += (double)total<W>(cross[i]);
      if (sums.ideal) sums.ideal[cell * m + i] += (double)total<W>(ideal[i]);
    }
    sums.noise[cell] += (double)total<W>(noise);
  }
};

template <class W, int K, class In, class Out, bool STOCHASTIC, class Step>
static void block(const Inputs& given, int first, int n, i64 index, i64 cell, const Step& prepared,
                  const Output& output, Out* out, Report<W, K>& sums) {
  const i64 models = K ? K : given.k - Step::EXTRA;
  const void* rows[(K ? K : MOST) + Step::EXTRA];
  i64 codes[(K ? K : MOST) + Step::EXTRA];
  for (i64 i = 0; i < models + Step::EXTRA; ++i) {
    codes[i] = given.codes[i];
    rows[i] = given.rows[i];
  }
  const Inputs in = {models + Step::EXTRA, rows, codes};
  Step step = prepared;
  const W share = (W)output.share;
  const Sums told = output.sums;
  if (told.noise) sums.empty(models - 1);
  Report<W, K> local = sums;
  for (i64 at = 0; at < n; at += LANES) {
    Vec<W> x[(K ? K : MOST) + Step::EXTRA];
    for (i64 i = 0; i < models + Step::EXTRA; ++i) x[i] = read<W, In>(in, i, at);
    const Vec<W> exact = step(x, models, first + at);
    const Vec<W> stored = put<W, Out, STOCHASTIC>(out + at, exact, index + first + at, output.seed);
    if (told.noise) local.add(models - 1, x, exact, stored, share, told);
  }
  if (told.noise) local.tell(models - 1, told, cell);
}

template <class W, int K, class In, class Out, bool STOCHASTIC, template <class, int> class Step>
static void walk(const Tile& tile) {
  Room room;
  const i64 models = tile.in.k - Step<W, K>::EXTRA;
  Step<W, K>* steps = room.take<Step<W, K>>(tile.outputs);
  for (i64 p = 0; p < tile.outputs; ++p) new (steps + p) Step<W, K>(tile.output[p].how, models, tile.start, room);
  Report<W, K> sums(models - 1, room);
  Padded<LANES> padded(tile.in.k, room);
  Shifted shifted(tile.in.k, room);
  for (i64 low = 0; low < tile.count; low += BLOCK) {
    const i64 left = tile.count - low, cell = low / CELL, index = tile.start + low;
    const int n = left < BLOCK ? (int)left : BLOCK, full = n / LANES * LANES;
    const Inputs in = shifted(tile.in, low);
    for (i64 p = 0; p < tile.outputs; ++p) {
      const Output& output = tile.output[p];
      Out* out = (Out*)output.out + low;
      steps[p].template prepare<In>(in, n, index);
      if (full) block<W, K, In, Out, STOCHASTIC>(in, 0, full, index, cell, steps[p], output, out, sums);
      if (full < n) {
        Out last[LANES];
        const Inputs rest = padded(in, full, n - full);
        block<W, K, In, Out, STOCHASTIC>(rest, full, LANES, index, cell, steps[p], output, last, sums);
        memcpy(out + full, last, (n - full) * sizeof(Out));
      }
    }
    const i64 end = low + n;
    if (tile.digests && (end % CELL == 0 || end == tile.count)) digest_inputs(tile, low / CELL * CELL, end);
  }
}

// -- which instance ---------------------------------------------------------------------------------

// Common outputs have instances for few models, all have one for any number.
template <template <class, int> class Step, class W, int K, class In> static bool with_output(const Tile& tile) {
  const bool s = tile.stochastic;
  if (tile.code == BFLOAT16) {
    s ? walk<W, K, In, bf16, true, Step>(tile) : walk<W, K, In, bf16, false, Step>(tile);
    return true;
  }
  if (tile.code == FLOAT32 && (same<W, float> || !s)) {
    walk<W, K, In, float, false, Step>(tile);
    return true;
  }
  if constexpr (K) return with_output<Step, W, 0, Mixed>(tile);
  else {
    switch (tile.code) {
      case FLOAT16: s ? walk<W, K, In, f16, true, Step>(tile) : walk<W, K, In, f16, false, Step>(tile); return true;
      case FLOAT32: walk<W, K, In, float, true, Step>(tile); return true;
      case FLOAT64: walk<W, K, In, double, false, Step>(tile); return true;
      default: return false;
    }
  }
}
template <template <class, int> class Step, class In> static bool with_few(const Tile& tile) {
  const i64 models = tile.in.k - Step<float, 0>::EXTRA;
  if (models == 2) return with_output<Step, float, 2, In>(tile);
  if constexpr (Step<float, 0>::FEW > 2) {
    switch (models) {
      case 3: return with_output<Step, float, 3, In>(tile);
      case 4: return with_output<Step, float, 4, In>(tile);
      case 5: return with_output<Step, float, 5, In>(tile);
    }
  }
  return with_output<Step, float, 0, Mixed>(tile);
}
// Most merges: float32 arithmetic on models that are stored alike have an instance for their number.
template <template <class, int> class Step> static int run(const Tile* tile) {
  if (tile->in.k - Step<float, 0>::EXTRA > MOST) return 1;
  if (tile->wide) return !with_output<Step, double, 0, Mixed>(*tile);
  if constexpr (Step<float, 0>::FEW) {
    if (all_are(tile->in, BFLOAT16)) return !with_few<Step, bf16>(*tile);
    if (all_are(tile->in, FLOAT32)) return !with_few<Step, float>(*tile);
  }
  return !with_output<Step, float, 0, Mixed>(*tile);
}
