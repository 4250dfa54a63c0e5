// Which changes of a model are kept: all, none, those between two cuts, those drawn, those whose bit is set.
#pragma once
#include "vectors.hpp"

enum Rule : i64 { ALL, NOTHING, BETWEEN, DRAWN, MASKED };

// Rules of a tensor; see kernels/rules.py. There is one for each model, or one more, which is then for all
// of them, by the variance between them.
struct Rules {
  i64 count;
  const i64* kinds;
  const u32* cuts;               // [count][2]: keys of the upper and the lower cut
  const i64 *allowed, *present;  // [count][2][cells]: ties that are above the cut, and all
  i64 cells;
  const u64 *chances, *seeds;
  u8* masks;  // [models][room]
  i64 room;
};

// Variance of the changes between the models.
template <class W> INLINE Vec<W> variance_at(const Chunk<W>& c, int at) {
  const i64 m = c.models - 1;
  const W count = (W)m, share = m & (m - 1) ? 0 : 1 / count;  // of a power of two: a product is as exact, and faster
  const auto divided = [=](Vec<W> sum) { return share != 0 ? sum * share : sum / count; };
  Vec<W> mean = load<W>(c.apart[0] + at), sum = {};
  for (i64 i = 1; i < m; ++i) mean += load<W>(c.apart[i] + at);
  mean = divided(mean);
  for (i64 i = 0; i < m; ++i) {
    const Vec<W> off = load<W>(c.apart[i] + at) - mean;
    sum += off * off;
  }
  return divided(sum);
}

// Keys of a chunk's changes of a model, or of the variance between all for the model -1.
template <class W> static void write_keys(u32* into, const Chunk<W>& c, i64 model) {
  if (model >= 0)
    for (int at = 0; at < c.n; at += LANES) store(into + at, key_of(load<W>(c.apart[model] + at)));
  else
    for (int at = 0; at < c.n; at += LANES) store(into + at, key_of(variance_at(c, at)));
}

// What is kept of a block: keys that are greater than `over` but not than `most`, or those whose bit is set.
struct Cut {
  i32 over, most;
  u32 shift;  // one signed comparison does for both: to the least number moves the least key that is kept
  i32 beyond;
  const u8* bits;
  bool tied[2];  // at either cut there are ties of which some are kept

  void close() {
    shift = 0x7FFFFFFFu - (u32)over;
    beyond = (i32)(0x80000000u + (most > over ? (u32)most - (u32)over : 0));
  }
};
constexpr i32 LARGEST = 0x7FFFFFFF;

INLINE Vec<i32> lies_in(const Cut& cut, Vec<u32> key) { return (Vec<i32>)(key + cut.shift) < cut.beyond; }
INLINE Vec<i32> is_set(const u8* bits, int at) {
  u16 word;
  memcpy(&word, bits + (at >> 3), 2);
  return -__builtin_convertvector(__builtin_bit_cast(Truth, word), Vec<i32>);
}

template <class W> struct Keeper {
  Rules rules;
  Cut* cuts;
  u8* own;      // bits of a block, for each rule
  i64* seen;    // ties so far in the cell, at both cuts of each rule
  u32* keys;    // of a chunk
  i64 cell = 0;
  static constexpr int ROW = BLOCK / 8 + 2;

  Keeper(const Rules& rules, i64, Room& room) : rules(rules) {
    i64 n = rules.count ? rules.count : 1;
    cuts = room.take<Cut>(n);
    own = room.take<u8>(n * ROW);
    seen = room.take<i64>(2 * n);
    keys = room.take<u32>(CHUNK);
  }

  bool varied(i64 models) const { return rules.count == models; }

  // A block begins, of `n` elements.
  void prepare(int n, i64 index) {
    cell = index / CELL;
    if (index % CELL == 0) memset(seen, 0, 16 * rules.count);
    for (i64 m = 0; m < rules.count; ++m) {
      Cut& cut = cuts[m];
      cut = {-1, LARGEST, 0, 0, nullptr, {}};
      switch (rules.kinds[m]) {
        case NOTHING: cut.over = LARGEST; break;
        case MASKED: cut.bits = rules.masks + m * rules.room + (index >> 3); break;
        case DRAWN: cut.bits = draw_bits(m, n, index); break;
        case BETWEEN:
          cut.most = limit(m, 0, cut.tied[0]);
          cut.over = limit(m, 1, cut.tied[1]);
          if (cut.tied[0] || cut.tied[1]) cut.bits = own + m * ROW;
      }
      cut.close();
    }
  }
  // A chunk begins, at a place in the block: where there are ties, they are counted.
  void settle(const Chunk<W>& c, int at) {
    for (i64 m = 0; m < rules.count; ++m)
      if (cuts[m].tied[0] || cuts[m].tied[1]) count_ties(c, at, m);
  }

 private:
  const u8* draw_bits(i64 m, int n, i64 index) {
    u8* bits = own + m * ROW;
    const u64 seed = rules.seeds[m], chance = rules.chances[m];
    const u32 least = (u32)(chance >> 32);
    Draws draws(seed, index);
    for (int at = 0; at < n; at += LANES) {
      const Drawn drawn = draws.next();
      u16 word = bits_of(drawn.upper() < least);
      if (bits_of(drawn.upper() == least)) word = bits_of(drawn.all() < chance);  // hardly ever
      if (n - at < LANES) word &= (u16)((1u << (n - at)) - 1);
      memcpy(bits + (at >> 3), &word, 2);
    }
    if (rules.room) memcpy(rules.masks + m * rules.room + (index >> 3), bits, (n + LANES - 1) / LANES * 2);
    return bits;
  }

  // The greatest key that does not lie above a cut in the cell; where some of its ties do, it is the cut's.
  i32 limit(i64 m, int c, bool& tied) const {
    const u32 cut = rules.cuts[2 * m + c];
    const i64 place = (2 * m + c) * rules.cells + cell, allowed = rules.allowed[place];
    if (cut == ABSENT) return LARGEST;
    if (allowed >= rules.present[place]) return (i32)cut - 1;
    tied = allowed > 0;
    return (i32)cut;
  }

  void count_ties(const Chunk<W>& c, int from, i64 m) {
    write_keys(keys, c, varied(c.models) ? -1 : m);
    const Cut& cut = cuts[m];
    u8* bits = own + m * ROW + (from >> 3);
    memset(bits, 0, c.n / 8);
    for (int j = 0; j < c.n; ++j) {
      bool above[2];
      for (int e = 0; e < 2; ++e) {
        const i32 key = (i32)keys[j], limit = e ? cut.over : cut.most;
        above[e] = key > limit;
        if (cut.tied[e] && key == limit)
          above[e] = seen[2 * m + e]++ < rules.allowed[(2 * m + e) * rules.cells + cell];
      }
      bits[j >> 3] |= (u8)((above[1] && !above[0]) << (j & 7));
    }
  }
};
