// Selecting changes: counts for a search by magnitude, and masks by rank in a row.
#include "rules.hpp"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Put those keys of sixteen that are marked one after the other; `into` has room for all sixteen.
INLINE i64 pick(Vec<u32> key, Vec<i32> marked, u32* into) {
  u32 bits = bits_of(marked);
  if (!bits) return 0;
  const i64 count = __builtin_popcount(bits);
#if defined(__AVX512F__)
  store(into, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)key));
#else
  u32 keys[LANES];
  store(keys, key);
  for (; bits; bits &= bits - 1) *into++ = keys[__builtin_ctz(bits)];
#endif
  return count;
}

struct Bracket { i32 low, high; u32 guess, other; };
struct Counts { i64 equal[2], above; };

// Counts keys, `n` of them: how many equal each guess, how many lie above the bracket; stores the others that lie in it.
template <class KeyAt> INLINE i64 scan(int n, const Bracket& bracket, Counts& counts, u32* into, KeyAt key_at) {
  Vec<i32> equal = {}, other = {}, above = {};
  i64 fill = 0;
  for (int at = 0; at < n; at += LANES) {
    const Vec<u32> key = key_at(at);
    const Vec<i32> is_guess = key == bracket.guess, is_other = key == bracket.other;
    const Vec<i32> is_above = (Vec<i32>)key > bracket.high, is_below = (Vec<i32>)key < bracket.low;
    equal -= is_guess;
    other -= is_other;
    above -= is_above;
    fill += pick(key, is_guess + is_other + is_above + is_below == 0, into + fill);
  }
  counts.equal[0] += __builtin_reduce_add(equal);
  counts.equal[1] += __builtin_reduce_add(other);
  counts.above += __builtin_reduce_add(above);
  return fill;
}

struct Tally {
  i64 selections;
  const i64* what;       // of which model, or -1 for the variance between all
  const u32 *lows, *highs, *guesses;  // guesses: [selections][2]
  i64 *above, *equal;    // equal: [selections][2][cells]
  i64 cells;
  u32* found;            // [selections][room]
  i64 room;
  i64* fill;
};

// A key as a bound of signed comparisons: none is greater than the largest.
INLINE i32 bound(u32 key) { return key < (u32)LARGEST ? (i32)key : LARGEST; }

template <class W> struct Tallying {
  const Tally& t;
  Room room;
  Chunk<W> chunk;
  u32* keys = room.take<u32>(CHUNK);
  Tallying(const Inputs& in, const Tally& t) : t(t), chunk(in.k, in.k, room) {}

  void run(const Inputs& in, i64 count) {
    chunk.over(in, 0, count, [&](i64 at, int live) { add(at / CELL, live); });
  }
  void add(i64 cell, int live) {
    for (i64 s = 0; s < t.selections; ++s) {
      const Bracket bracket = {bound(t.lows[s]), bound(t.highs[s]), t.guesses[2 * s], t.guesses[2 * s + 1]};
      const i64 model = t.what[s];
      u32* into = t.found + s * t.room + t.fill[s];
      Counts counts = {};
      if (model < 0 || live < chunk.n) {
        write_keys(keys, chunk, model);
        for (int l = live; l < chunk.n; ++l) keys[l] = bracket.guess;  // counted, and taken away again
        t.fill[s] += scan(chunk.n, bracket, counts, into, [&](int at) { return load<u32>(keys + at); });
        counts.equal[0] -= chunk.n - live;
      } else {
        const W* apart = chunk.apart[model];
        t.fill[s] += scan(chunk.n, bracket, counts, into, [=](int at) { return key_of(load<W>(apart + at)); });
      }
      for (int c = 0; c < 2; ++c) t.equal[(2 * s + c) * t.cells + cell] += counts.equal[c];
      t.above[s] += counts.above;
    }
  }
};
EXPORT void tally(const Inputs* in, i64 count, i64 wide, const Tally* t) {
  if (wide) Tallying<double>(*in, *t).run(*in, count);
  else Tallying<float>(*in, *t).run(*in, count);
}

// The keys of elements in a row, of a model's changes or, for -1, of the variance between all.
template <class W> struct Keys {
  const i64 model;
  Room room;
  const void* rows[2];
  i64 codes[2];
  Inputs taken;  // a model and the base, or all
  Chunk<W> chunk;
  Keys(const Inputs& in, i64 model)
      : model(model), taken(model < 0 ? in : Inputs{2, rows, codes}), chunk(taken.k, taken.k, room) {
    for (int i = 0; i < 2 && model >= 0; ++i) {
      rows[i] = in.rows[i * (model + 1)];
      codes[i] = in.codes[i * (model + 1)];
    }
  }
  // Elements from `from` on; `into` has room for whole vectors.
  void write(i64 from, i64 count, u32* into) {
    chunk.over(taken, from, count, [&](i64 at, int) { write_keys(into + at, chunk, model < 0 ? -1 : 0); });
  }
};
template <class W> static void keys_of(const Inputs& in, i64 count, i64 model, u32* into) {
  Keys<W> keys(in, model);
  u32* whole = keys.room.template take<u32>(count + LANES);
  keys.write(0, count, whole);
  memcpy(into, whole, count * sizeof(u32));
}
EXPORT void sample_keys(const Inputs* in, i64 count, i64 wide, i64 model, u32* into) {
  if (wide) keys_of<double>(*in, count, model, into);
  else keys_of<float>(*in, count, model, into);
}

// For every model in how many elements its change is larger than epsilon beside others', and alone: [2][models].
template <class W> static void count_active(const Inputs& in, i64 count, W epsilon, i64* counts) {
  Room room;
  Chunk<W> chunk(in.k, in.k, room);
  const i64 m = in.k - 1;
  chunk.over(in, 0, count, [&](i64, int) {
    for (int at = 0; at < chunk.n; at += LANES) {
      Mask<W> active[MOST], models = {};
      for (i64 i = 0; i < m; ++i) {
        active[i] = ~(magnitude(load<W>(chunk.apart[i] + at)) <= epsilon);  // zeros behind the end are not
        models -= active[i];
      }
      for (i64 i = 0; i < m; ++i) {
        const int all = __builtin_popcount(bits_of(active[i]));
        const int alone = __builtin_popcount(bits_of(active[i] & (models == 1)));
        counts[i] += all - alone;
        counts[m + i] += alone;
      }
    }
  });
}
EXPORT void count_shared(const Inputs* in, i64 count, i64 wide, double epsilon, i64* counts) {
  if (wide) count_active<double>(*in, count, epsilon, counts);
  else count_active<float>(*in, count, (float)epsilon, counts);
}

// -- ranks in a row -----------------------------------------------------------------------------------

constexpr int SHIFT = 19, BINS = 256;  // of a row's keys: 32 octaves below its greatest, by three bits of the mantissa
constexpr int FEW = 16;  // keys that are not like the others of their bin are few if they are this part of a row

INLINE u64 threshold(double chance) {  // draws below it come with this probability
  if (chance >= 1.0) return ~0ull;
  return (u64)((chance > 0.0 ? chance : 0.0) * 18446744073709551616.0);
}

// How many of `n` words are less than a word, and how many equal it; there is room for whole vectors.
struct Relations { i64 less, equal; };
static Relations relate(const u32* words, i64 n, u32 word) {
  Vec<u32> lane;
  for (int l = 0; l < LANES; ++l) lane[l] = (u32)l;
  Vec<i32> less = {}, equal = {};
  for (i64 at = 0; at < n; at += LANES) {
    const Vec<u32> found = load<u32>(words + at);
    const Vec<i32> live = lane < (u32)(n - at < LANES ? n - at : LANES);
    less -= (found < word) & live;
    equal -= (found == word) & live;
  }
  return {__builtin_reduce_add(less), __builtin_reduce_add(equal)};
}

struct Ranks { i64 rows, length; double density, epsilon; u64 seed; i64 start; u8* mask; };

// A row whose changes are ranked. A histogram tells the ranks where the keys of a bin are all the same, or nearly
// all; elsewhere it narrows them down, and only where the draw falls between is the rank counted out.
struct Row {
  i64 length;
  double lowest, step;
  u64 seed;
  u32 *keys, *drawn, *ordered;
  u8 *bins, *kept, *near;
  i32* places;               // of keys that are not alone in their bin
  i32 counts[4][BINS];       // in the first, how many keys there are in each bin
  i64 begins[BINS], ends[BINS];
  u32 sole[BINS];            // one of a bin's keys
  i32 differing[BINS], less[BINS];  // how many differ from it, and how many of these are less, if these are few
  u64 surely[BINS], hardly[BINS];   // draws below are kept, or are not, whatever the key in the bin
  u32 upper[BINS];           // the upper halves of `surely`

  void open(const Ranks& r, Room& room) {
    length = r.length;
    step = length > 1 ? 2.0 * r.epsilon / (double)(length - 1) : 0.0;
    lowest = length > 1 ? r.density - r.epsilon : r.density;
    seed = r.seed;
    const i64 n = length + 2 * LANES;
    keys = room.take<u32>(n), drawn = room.take<u32>(n), ordered = room.take<u32>(n);
    bins = room.take<u8>(n), kept = room.take<u8>(n), near = room.take<u8>(n);
    places = room.take<i32>(n);
  }
  double chance(double rank) const { return lowest + step * rank; }

  // Sorts keys into bins; returns how many differ from the sole key of their bin.
  i64 sort() {
    Vec<u32> most = {};
    for (i64 n = length; n < length + LANES; ++n) keys[n] = 0;
    for (i64 n = 0; n < length; n += LANES) most = __builtin_elementwise_max(most, load<u32>(keys + n));
    const i32 top = (i32)(__builtin_reduce_max(most) >> SHIFT), floor = top > BINS - 1 ? top - (BINS - 1) : 0;
    for (i64 n = 0; n < length; n += LANES) {
      const Vec<i32> bin = (Vec<i32>)(load<u32>(keys + n) >> SHIFT) - floor;
      store(bins + n, convert<u8>(__builtin_elementwise_max(bin, Vec<i32>{})));
    }
    memset(counts, 0, sizeof counts), memset(differing, 0, sizeof differing), memset(less, 0, sizeof less);
    const u32* __restrict key = keys;
    const u8* __restrict bin_of = bins;
    i32* __restrict place = places;
    i64 others = 0;
    const i64 end = length;
    for (i64 n = 0; n < end; ++n) {  // in four histograms, as most changes may be of one bin
      const u8 b = bin_of[n];
      counts[n & 3][b] += 1;
      sole[b] = key[n];
    }
    for (i64 n = 0; n < end; ++n) {
      place[others] = (i32)n;
      others += key[n] != sole[bin_of[n]];
    }
    const bool few = others <= length / FEW;
    for (i64 o = 0; o < others; ++o) {
      const i64 n = places[o];
      const int b = bins[n];
      if (few) differing[b] += 1, less[b] += keys[n] < sole[b];
      else differing[b] = 1;
    }
    for (int b = 0; b < BINS; ++b) counts[0][b] += counts[1][b] + counts[2][b] + counts[3][b];
    return others;
  }

  // The chances of each bin's keys; of its sole key if there are few others, which are then looked at one by one.
  // Returns the greatest distance between the two, in upper halves.
  u32 set_thresholds(bool few) {
    i64 below = 0;
    u64 widest = 0;
    for (int b = 0; b < BINS; ++b) {
      const i64 count = counts[0][b];
      begins[b] = below;
      if (!count) continue;
      if (few || !differing[b]) {
        const i64 alike = count - differing[b];
        surely[b] = hardly[b] = threshold(chance((double)(below + less[b]) + 0.5 * (double)(alike - 1)));
      } else {
        surely[b] = threshold(chance((double)below));
        hardly[b] = threshold(chance((double)(below + count - 1)));
        if (hardly[b] - surely[b] > widest) widest = hardly[b] - surely[b];
      }
      below += count;
    }
    for (int b = 0; b < BINS; ++b) upper[b] = (u32)(surely[b] >> 32);
    const u64 span = (widest >> 32) + !few;
    return span < 0xFFFFFFFF ? (u32)span : 0xFFFFFFFF;
  }

  // Decides where a draw may lie between the thresholds of its bin.
  void keep_near(i64 place) {
    bool sorted = false;
    for (i64 word = 0; word < length; word += 8) {
      u64 any;
      memcpy(&any, near + word, 8);
      if (!any) continue;
      for (i64 n = word; n < word + 8 && n < length; ++n) {
        if (!near[n]) continue;
        const int b = bins[n];
        const u64 number = draw(seed, place + n);
        kept[n] = number < surely[b];
        if (kept[n] || number >= hardly[b]) continue;
        if (!sorted) {
          memcpy(ends, begins, sizeof ends);
          for (i64 o = 0; o < length; ++o) ordered[ends[bins[o]]++] = keys[o];
          sorted = true;
        }
        const Relations found = relate(ordered + begins[b], ends[b] - begins[b], keys[n]);
        kept[n] = number < threshold(chance((double)(begins[b] + found.less) + 0.5 * (double)(found.equal - 1)));
      }
    }
  }

  // Decides on the few keys that differ from the sole one of their bin.
  void keep_others(i64 others, i64 place) {
    i32 before[BINS], sum = 0;
    for (i64 o = 0; o < others; ++o) ordered[o] = keys[places[o]];
    for (int b = 0; b < BINS; ++b) before[b] = sum, sum += differing[b];
    for (i64 o = 0; o < others; ++o) {
      const i64 n = places[o];
      const int b = bins[n];
      const Relations found = relate(ordered, others, keys[n]);
      i64 rank = begins[b] + found.less - before[b];
      if (sole[b] < keys[n]) rank += counts[0][b] - differing[b];
      kept[n] = draw(seed, place + n) < threshold(chance((double)rank + 0.5 * (double)(found.equal - 1)));
    }
  }

  void decide(i64 place) {
    const u64 own = seed;
    for (i64 n = 0; n < length; n += LANES) store(drawn + n, convert<u32>(draws(own, place + n) >> 32));
    const i64 others = sort();
    const bool few = others <= length / FEW;
    const u32 span = set_thresholds(few);
    const u32 *__restrict from = drawn, *__restrict sure_of = upper;
    const u8* __restrict bin_of = bins;
    u8 *__restrict keep = kept, *__restrict close = near;
    for (i64 n = 0, end = length; n < end; ++n) {
      const u32 sure = sure_of[bin_of[n]];
      keep[n] = from[n] < sure;
      close[n] = from[n] - sure <= span;
    }
    memset(near + length, 0, 8);
    keep_near(place);
    if (few) keep_others(others, place);
  }

  void set_bits(u8* mask, i64 place) const {
    i64 n = 0;
    for (; n < length && (place + n) & 7; ++n) mask[(place + n) >> 3] |= (u8)(kept[n] << ((place + n) & 7));
    for (; n + 8 <= length; n += 8) {
      u64 word;
      memcpy(&word, kept + n, 8);
      mask[(place + n) >> 3] = (u8)((word * 0x0102040810204080) >> 56);
    }
    for (; n < length; ++n) mask[(place + n) >> 3] |= (u8)(kept[n] << ((place + n) & 7));
  }
};

// Sets the bits of those of a model's changes that are kept by their rank r in their row, by ascending magnitude
// (equal ones share the mean of their ranks): with the probability density + epsilon (2 r / (length - 1) - 1).
template <class W> static void rank_rows(const Inputs& in, i64 model, const Ranks& ranks) {
  Keys<W> keys(in, model);
  Row& row = *keys.room.template take<Row>(1);
  row.open(ranks, keys.room);
  for (i64 n = 0; n < ranks.rows; ++n) {
    keys.write(n * row.length, row.length, row.keys);
    row.decide(ranks.start + n * row.length);
    row.set_bits(ranks.mask, ranks.start + n * row.length);
  }
}
EXPORT void draw_by_rank(const Inputs* in, i64 wide, i64 model, const Ranks* ranks) {
  if (wide) rank_rows<double>(*in, model, *ranks);
  else rank_rows<float>(*in, model, *ranks);
}
