// One tile, chunk by chunk: widen the inputs, step, round once, and add up what the report needs.
//
// A chunk's numbers lie in the first cache as float32 or float64 (W), whatever their inputs are stored as. Every
// phase is a loop of its own over them, so that its numbers fit the registers of every processor.
#pragma once
#include "rounding.hpp"
#include "rules.hpp"

// A step has: how it is told its numbers (a struct that Python fills); EXTRA rows behind the models; whether it takes
// the NUMBERS of the models behind the first, and the CHANGES to those of the first; `prepare`, called before each
// block; and `fill`, which makes a chunk's results, and returns where they lie.
struct Plain {
  static constexpr int EXTRA = 0;
  static constexpr bool NUMBERS = true, CHANGES = false;
  void prepare(int, i64) {}
};

// What an output adds up, by cells; null where it is not wanted.
struct Sums { double *gram, *differ, *ideal, *cross, *noise; };
// `digests`: of the cells of an output's bytes; of each input's in a tile. Null where none is wanted.
struct Output { void* out; const void* how; u64 seed; double share; Sums sums; u64* digests; };
struct Tile {
  Inputs in; i64 count, start, wide, code, stochastic, outputs; const Output* output; u64* const* digests;
};

EXPORT void digest(const u8* data, i64 size, u64* sums, i64 cells);

// Digest elements from the first of a cell on, inputs' and outputs', while the cache has them.
static void digest_range(const void* row, i64 width, u64* digests, i64 from, i64 to) {
  const i64 bytes = (to - from) * width;
  if (digests) digest((const u8*)row + from * width, bytes, digests + from * width / CELL, (bytes + CELL - 1) / CELL);
}
static void digest_all(const Tile& tile, i64 from, i64 to) {
  for (i64 i = 0; tile.digests && i < tile.in.k; ++i)
    digest_range(tile.in.rows[i], WIDTHS[tile.in.codes[i]], tile.digests[i], from, to);
  for (i64 p = 0; p < tile.outputs; ++p)
    digest_range(tile.output[p].out, WIDTHS[tile.code], tile.output[p].digests, from, to);
}

// What an output of a tile adds up in W, until it is told to the cell's sums in float64.
template <class W> struct Report {
  i64 m;
  Vec<W> *gram, *differ, *ideal, *cross, noise;
  W *moved, *gained;  // of a chunk: what was stored, and was to be, less the base
  Report(i64 m, Room& room) : m(m) {
    gram = room.take<Vec<W>>(m * m + 1), differ = room.take<Vec<W>>(m + 1);
    ideal = room.take<Vec<W>>(m + 1), cross = room.take<Vec<W>>(m + 1);
    moved = room.take<W>(CHUNK), gained = room.take<W>(CHUNK);
    noise = Vec<W>{};
  }

  // After its results are rounded.
  void add(const Chunk<W>& c, const Sums& sums) {
    const bool wants_ideal = sums.ideal;
    for (i64 i = 0; i < m; ++i) {
      if (!sums.gram) add_model<0, false>(c, i, wants_ideal);
      else if (i % 3 == 0) add_model<0, true>(c, i, wants_ideal);
      else if (i % 3 == 1) add_model<1, true>(c, i, wants_ideal);
      else add_model<2, true>(c, i, wants_ideal);
      for (i64 j = i % 3; sums.gram && j < i; j += 3) add_products(c, i, j);
    }
  }
  // All that a model's difference is multiplied with, but for the differences of those before it: of COUNT of them alone.
  template <int COUNT, bool INPUTS> void add_model(const Chunk<W>& c, i64 i, bool wants_ideal) {
    const W* apart = c.apart[i];
    Vec<W> reached = cross[i], meant = ideal[i], square = gram[i * m + i], products[COUNT + 1] = {};
    for (int o = 0; o < COUNT; ++o) products[o] = gram[i * m + o];
    Mask<W> count = {};
    for (int at = 0; at < c.n; at += LANES) {
      const Vec<W> x = load<W>(apart + at);
      reached = fma(load<W>(moved + at), x, reached);
      if (wants_ideal) meant = fma(load<W>(gained + at), x, meant);
      if constexpr (!INPUTS) continue;
      square = fma(x, x, square);
      count -= x != 0;
      for (int o = 0; o < COUNT; ++o) products[o] = fma(x, load<W>(c.apart[o] + at), products[o]);
    }
    cross[i] = reached, ideal[i] = meant;
    if constexpr (!INPUTS) return;
    gram[i * m + i] = square;
    differ[i] += convert<W>(count);
    for (int o = 0; o < COUNT; ++o) gram[i * m + o] = products[o];
  }
  void add_products(const Chunk<W>& c, i64 i, i64 j) {
    Vec<W> sums[3];
    for (int o = 0; o < 3; ++o) sums[o] = gram[i * m + j + o];
    for (int at = 0; at < c.n; at += LANES) {
      const Vec<W> x = load<W>(c.apart[i] + at);
      for (int o = 0; o < 3; ++o) sums[o] = fma(x, load<W>(c.apart[j + o] + at), sums[o]);
    }
    for (int o = 0; o < 3; ++o) gram[i * m + j + o] = sums[o];
  }

  void tell(const Sums& sums, i64 cell) {
    for (i64 i = 0; i < m; ++i) {
      for (i64 j = 0; sums.gram && j <= i; ++j) pour(gram[i * m + j], sums.gram[(cell * m + i) * m + j]);
      if (sums.gram) pour(differ[i], sums.differ[cell * m + i]);
      if (sums.ideal) pour(ideal[i], sums.ideal[cell * m + i]);
      pour(cross[i], sums.cross[cell * m + i]);
    }
    pour(noise, sums.noise[cell]);
  }
  static void pour(Vec<W>& from, double& into) {
    into += (double)total<W>(from);
    from = Vec<W>{};
  }
};

// Rounds a chunk's results into an output's dtype; for the report how far the output and the results are from the base.
template <class W, class Out, bool STOCHASTIC>
static void round_to(void* out, const W* exact, int n, i64 index, const Output& output, const W* base, Report<W>* report) {
  const W share = (W)output.share;
  const bool wants_ideal = output.sums.ideal;
  Vec<W> noise = report ? report->noise : Vec<W>{};
  Draws draws(output.seed, index);
  for (int at = 0; at < n; at += LANES) {
    const Vec<W> x = load<W>(exact + at);
    const Vec<W> stored = put<W, Out, STOCHASTIC>((Out*)out + at, x, draws);
    if (!report) continue;
    noise = fma(stored - x, stored - x, noise);
    store(report->moved + at, stored - share * load<W>(base + at));
    if (wants_ideal) store(report->gained + at, x - load<W>(base + at));
  }
  if (report) report->noise = noise;
}
template <class W> using Round = void (*)(void*, const W*, int, i64, const Output&, const W*, Report<W>*);
template <class W> static Round<W> rounding(i64 code, bool stochastic) {
  switch (code) {
    case BFLOAT16: return stochastic ? round_to<W, bf16, true> : round_to<W, bf16, false>;
    case FLOAT16: return stochastic ? round_to<W, f16, true> : round_to<W, f16, false>;
    case FLOAT32: return stochastic ? round_to<W, float, true> : round_to<W, float, false>;
    default: return round_to<W, double, false>;
  }
}

template <class W, template <class> class Step> struct Walk {
  const Tile& tile;
  Room room;
  const i64 models = tile.in.k - Step<W>::EXTRA;
  const int width = WIDTHS[tile.code];
  const Round<W> round = rounding<W>(tile.code, tile.stochastic);
  Step<W>* steps = room.take<Step<W>>(tile.outputs);
  Report<W>** reports = room.take<Report<W>*>(tile.outputs);
  Chunk<W> chunk{tile.in.k, models, room};
  W* exact = room.take<W>(CHUNK);
  bool reported = false;

  explicit Walk(const Tile& given) : tile(given) {
    for (i64 p = 0; p < tile.outputs; ++p) {
      new (steps + p) Step<W>(tile.output[p].how, models, room);
      if (!tile.output[p].sums.noise) continue;
      reported = true;
      reports[p] = room.take<Report<W>>(1);
      new (reports[p]) Report<W>(models - 1, room);
    }
  }

  void run() {
    Shifted shifted(tile.in.k, room);
    for (i64 low = 0; low < tile.count; low += BLOCK) {
      const i64 left = tile.count - low;
      const int n = left < BLOCK ? (int)left : BLOCK, full = n / LANES * LANES;
      const Inputs in = shifted(tile.in, low);
      for (i64 p = 0; p < tile.outputs; ++p) steps[p].prepare(n, tile.start + low);
      for (int at = 0; at < full; at += CHUNK)
        walk(in, at, at, full - at < CHUNK ? full - at : CHUNK, low, CHUNK);
      tell(low / CELL);
      if (full < n) {
        walk(chunk.padded(in, full, n - full), 0, full, LANES, low, n - full);
        tell(low / CELL);
      }
      const i64 end = low + n;
      if (end % CELL == 0 || end == tile.count) digest_all(tile, low / CELL * CELL, end);
    }
  }

  // Elements from `from` on of some inputs, which are those from `at` on of the block at `low`; at most `live`
  // of them are there.
  void walk(const Inputs& in, int from, int at, int n, i64 low, int live) {
    chunk.fill(in, from, n, Step<W>::NUMBERS, Step<W>::CHANGES || reported);
    for (i64 p = 0; p < tile.outputs; ++p) {
      const Output& output = tile.output[p];
      u8 last[LANES * sizeof(double)], *out = (u8*)output.out + (low + at) * width;
      const W* made = steps[p].fill(chunk, at, exact);
      round(live < n ? last : out, made, n, tile.start + low + at, output, chunk.x[0], reports[p]);
      if (live < n) memcpy(out, last, live * width);
      if (reports[p]) reports[p]->add(chunk, output.sums);
    }
  }
  void tell(i64 cell) {
    for (i64 p = 0; p < tile.outputs; ++p)
      if (reports[p]) reports[p]->tell(tile.output[p].sums, cell);
  }
};

template <template <class> class Step> static int run(const Tile* tile) {
  if (tile->in.k - Step<float>::EXTRA > MOST) return 1;
  if (tile->wide) Walk<double, Step>(*tile).run();
  else Walk<float, Step>(*tile).run();
  return 0;
}
