// Selecting changes: counts for a search by magnitude, and masks by rank in a row.
#include "rules.hpp"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Put those words of sixteen whose bits are set one after the other; `into` has room for all sixteen.
#if defined(__AVX512F__)
INLINE i64 pick(Vec<u32> words, u32 bits, u32* into) {
  store(into, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)words));
  return __builtin_popcount(bits);
}
#elif defined(__AVX2__)
struct Orders {  // for each eight bits the lanes that are set, in order
  u64 lanes[256] = {};
  constexpr Orders() {
    for (u32 bits = 0; bits < 256; ++bits)
      for (u32 lane = 0, n = 0; lane < 8; ++lane)
        if (bits >> lane & 1) lanes[bits] |= (u64)lane << 8 * n++;
  }
};
static constexpr Orders ORDERS;
INLINE i64 pick(Vec<u32> words, u32 bits, u32* into) {
  const u32 low = bits & 0xFF, high = bits >> 8;
  __m256i halves[2];
  memcpy(halves, &words, sizeof words);
  const auto in_order = [](__m256i half, u32 which) {
    return _mm256_permutevar8x32_epi32(half, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)&ORDERS.lanes[which])));
  };
  const i64 first = __builtin_popcount(low);
  _mm256_storeu_si256((__m256i*)into, in_order(halves[0], low));
  _mm256_storeu_si256((__m256i*)(into + first), in_order(halves[1], high));
  return first + __builtin_popcount(high);
}
#else
INLINE i64 pick(Vec<u32> words, u32 bits, u32* into) {
  const i64 count = __builtin_popcount(bits);
  u32 all[LANES];
  store(all, words);
  for (; bits; bits &= bits - 1) *into++ = all[__builtin_ctz(bits)];
  return count;
}
#endif

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
    const u32 rest = bits_of(is_guess + is_other + is_above + is_below == 0);
    if (rest) fill += pick(key, rest, into + fill);
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
constexpr int TURNS = 4;  // counts of a bin, in turn, as most keys may be of one bin
constexpr int SOME = 48;  // keys whose ranks are counted out one by one; for more of them all are sorted

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

// A row whose changes are ranked. Those that are zero share a rank. Of the others, most draws are so low or so high
// that they decide whatever the rank; where they do not, a histogram of the keys narrows the ranks down, and only where
// the draw falls between is the rank counted out.
struct Row {
  struct Bin {
    i64 begin;       // the rank of its least key
    u32 count;
    u32 known;       // one of its keys whose threshold has been found
    u64 sure, hard;  // draws below are kept, or are not from here on, whatever the key in the bin
    u64 limit;       // the threshold of the known one
  };
  i64 length;
  double lowest, step;
  u64 seed;
  u64 zero;        // draws below it are kept where nothing has changed
  u64 sure, hard;  // as in a bin, whatever the key that is not zero
  i64 filled;      // how many keys are not zero
  u32 greatest;    // of them
  u32 *keys, *others, *ordered, *high;  // others: those that are not zero; high: the upper halves of draws
  u32* open;                            // places where the rank decides
  u8* bits;                             // what is kept
  i32 floor;
  Bin bins[BINS];

  void begin(const Ranks& r, Room& room) {
    length = r.length;
    step = length > 1 ? 2.0 * r.epsilon / (double)(length - 1) : 0.0;
    lowest = length > 1 ? r.density - r.epsilon : r.density;
    seed = r.seed;
    const i64 n = length + 2 * LANES;
    keys = room.take<u32>(n), others = room.take<u32>(n), ordered = room.take<u32>(n), high = room.take<u32>(n);
    open = room.take<u32>(n), bits = room.take<u8>(n / 8 + 8);
  }
  double chance(double rank) const { return lowest + step * rank; }
  // The probability of a key, of whom so many are less and so many equal.
  u64 chance_of(i64 less, i64 equal) const { return threshold(chance((double)less + 0.5 * (double)(equal - 1))); }
  i32 bin_of(u32 key) const {
    const i32 bin = (i32)(key >> SHIFT) - floor;
    return bin > 0 ? bin : 0;
  }

  // Sets apart the keys that are not zero, and sets the thresholds that hold for all of them, and for zeros.
  void part() {
    Vec<u32> most = {};
    filled = 0;
    for (i64 n = length; n < length + LANES; ++n) keys[n] = 0;
    for (i64 n = 0; n < length; n += LANES) {
      const Vec<u32> key = load<u32>(keys + n);
      most = __builtin_elementwise_max(most, key);
      filled += pick(key, bits_of(key != 0), others + filled);
    }
    greatest = __builtin_reduce_max(most);
    zero = chance_of(0, length - filled);
    const u64 first = threshold(chance((double)(length - filled))), last = threshold(chance((double)(length - 1)));
    sure = first < last ? first : last, hard = first < last ? last : first;
  }

  // What the draws decide by these thresholds; returns in how many places they do not.
  i64 draw_all(i64 place) {
    const Vec<u32> none = {}, low = none + (u32)(sure >> 32), top = none + (u32)(hard >> 32);
    const Vec<u32> at_zero = none + (u32)(zero >> 32);
    u32* __restrict to = open;
    Vec<u32> lane;
    for (int l = 0; l < LANES; ++l) lane[l] = (u32)l;
    i64 count = 0;
    Draws draws(seed, place);
    for (i64 n = 0; n < length; n += LANES) {
      const Vec<u32> drawn = draws.next().upper(), key = load<u32>(keys + n);
      store(high + n, drawn);
      const u16 kept = bits_of(drawn < (key != 0 ? low : at_zero));
      memcpy(bits + n / 8, &kept, 2);
      u32 rest = (u16)~(kept | bits_of(drawn > (key != 0 ? top : at_zero)));
      if (length - n < LANES) rest &= (1u << (length - n)) - 1;
      count += pick(lane + (u32)n, rest, to + count);
    }
    return count;
  }

  // Counts the keys that are not zero by bins, and sets the bins' thresholds.
  void sort() {
    const i32 top = (i32)(greatest >> SHIFT);
    floor = top > BINS - 1 ? top - (BINS - 1) : 0;
    u32 counts[TURNS][BINS] = {};
    for (i64 n = 0; n < filled; ++n) counts[n % TURNS][bin_of(others[n])] += 1;
    i64 below = length - filled;
    for (int b = 0; b < BINS; ++b) {
      Bin& bin = bins[b];
      bin.begin = below, bin.count = bin.known = 0;
      for (const auto& turn : counts) bin.count += turn[b];
      if (!bin.count) continue;
      bin.sure = threshold(chance((double)below));
      below += bin.count;
      bin.hard = threshold(chance((double)(below - 1)));
    }
  }

  void decide(i64 place) {
    part();
    i64 left = draw_all(place), near = 0;
    if (!left) return;
    sort();
    for (i64 o = 0; o < left; ++o) {
      const u32 n = open[o];
      const u32 key = keys[n], drawn = high[n];
      const Bin& bin = bins[bin_of(key)];
      const u64 sure = key ? bin.sure : zero, hard = key ? bin.hard : zero;
      const u32 low = (u32)(sure >> 32);
      bits[n >> 3] |= (u8)((drawn < low) << (n & 7));
      open[near] = n;
      near += drawn - low <= (u32)(hard >> 32) - low;  // or its lower half decides
    }
    if (near) count_out(place, near);
  }

  // Decides where a draw lies between the thresholds of its bin, or all but equals one.
  void count_out(i64 place, i64 near) {
    i64 counted = 0;
    for (i64 o = 0; o < near; ++o) {
      const u32 n = open[o], key = keys[n];
      Bin& bin = bins[bin_of(key)];
      if (key && bin.known != key) {
        if (counted++ == SOME) order();
        bin.known = key;
        bin.limit = counted > SOME ? limit_of(key, ordered + bin.begin, bin.count, bin.begin)
                                   : limit_of(key, others, filled, length - filled);
      }
      const int bit = 1 << (n & 7);
      bits[n >> 3] = (u8)(draw(seed, place + n) < (key ? bin.limit : zero) ? bits[n >> 3] | bit : bits[n >> 3] & ~bit);
    }
  }
  // The threshold of a key, of which there are some among `n` keys that begin with a rank.
  u64 limit_of(u32 key, const u32* among, i64 n, i64 first) const {
    const Relations found = relate(among, n, key);
    return chance_of(first + found.less, found.equal);
  }
  // Puts the keys that are not zero in the order of their bins, from the places of their ranks on.
  void order() {
    i64 ends[BINS];
    for (int b = 0; b < BINS; ++b) ends[b] = bins[b].begin;
    for (i64 o = 0; o < filled; ++o) ordered[ends[bin_of(others[o])]++] = others[o];
  }

  // Puts the row's bits where they belong, from bit `place` on.
  void set_bits(u8* mask, i64 place) const {
    const int shift = (int)(place & 7);
    u8* into = mask + (place >> 3);
    const i64 bytes = (length + 7) / 8;
    if (shift == 0 && length % 8 == 0) {
      memcpy(into, bits, (size_t)bytes);
      return;
    }
    for (i64 n = 0; n < bytes; ++n) {
      const u32 live = length - 8 * n < 8 ? (1u << (length - 8 * n)) - 1 : 0xFF, word = (bits[n] & live) << shift;
      into[n] |= (u8)word;
      if (word >> 8) into[n + 1] |= (u8)(word >> 8);
    }
  }
};

// Sets the bits of those of a model's changes that are kept by their rank r in their row, by ascending magnitude
// (equal ones share the mean of their ranks): with the probability density + epsilon (2 r / (length - 1) - 1).
template <class W> static void rank_rows(const Inputs& in, i64 model, const Ranks& ranks) {
  Keys<W> keys(in, model);
  Row& row = *keys.room.template take<Row>(1);
  row.begin(ranks, keys.room);
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
