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

template <class W, class In> INLINE Vec<W> change_of(const Inputs& in, i64 model, i64 at) {
  return read<W, In>(in, model + 1, at) - read<W, In>(in, 0, at);
}

// Variance of the changes between the models.
template <class W, class A> INLINE Vec<W> variance(A& apart, i64 models) {
  const W count = (W)models;
  Vec<W> mean = apart[0], sum = {};
  for (i64 m = 1; m < models; ++m) mean += apart[m];
  mean /= count;
  for (i64 m = 0; m < models; ++m) sum += (apart[m] - mean) * (apart[m] - mean);
  return sum / count;
}

// Keys of a model's changes, or of the variance between all for the model -1; `into` has room for whole vectors.
template <class W, class In> INLINE Vec<u32> key_at(const Inputs& in, i64 model, i64 at) {
  if (model >= 0) return key_of(change_of<W, In>(in, model, at));
  Vec<W> apart[MOST];
  for (i64 m = 0; m < in.k - 1; ++m) apart[m] = change_of<W, In>(in, m, at);
  return key_of(variance<W>(apart, in.k - 1));
}
template <class W, class In> static void write_keys(const Inputs& in, i64 n, i64 model, Padded<LANES>& padded, u32* into) {
  const i64 full = n / LANES * LANES;
  for (i64 at = 0; at < full; at += LANES) store(into + at, key_at<W, In>(in, model, at));
  if (full < n) store(into + full, key_at<W, In>(padded(in, full, (int)(n - full)), model, 0));
}

// What is kept of a block, made ready by `prepare`: keys from `low` to below `high` whose bit is set.
struct Cut { u32 low, high; const u8* bits; };

INLINE Vec<i32> keeps(const Cut& cut, Vec<u32> key, i64 at) {
  Vec<i32> kept = (key >= cut.low) & (key < cut.high);
  if (cut.bits) {
    u16 bits;
    memcpy(&bits, cut.bits + (at >> 3), 2);
    Vec<i32> lane;
    for (int l = 0; l < LANES; ++l) lane[l] = 1 << l;
    kept &= (lane & (i32)bits) != 0;
  }
  return kept;
}

template <class W> struct Keeper {
  Rules rules;
  Cut* cuts;
  u8* own;      // bits of a block, for each rule
  i64* seen;    // ties so far in the cell, at both cuts of each rule
  u32* keys;
  Padded<LANES> padded;
  static constexpr int ROW = BLOCK / 8 + 2;

  Keeper(const Rules& rules, i64 models, Room& room) : rules(rules), padded(models + 1, room) {
    i64 n = rules.count ? rules.count : 1;
    cuts = room.take<Cut>(n);
    own = room.take<u8>(n * ROW);
    seen = room.take<i64>(2 * n);
    keys = room.take<u32>(BLOCK);
  }

  bool varied(i64 models) const { return rules.count == models + 1; }

  template <class In> void prepare(const Inputs& in, int n, i64 index) {
    const i64 cell = index / CELL;
    if (index % CELL == 0) memset(seen, 0, 16 * rules.count);
    for (i64 m = 0; m < rules.count; ++m) {
      Cut& cut = cuts[m];
      u8* bits = own + m * ROW;
      cut = {0, ABSENT, nullptr};
      switch (rules.kinds[m]) {
        case NOTHING: cut.low = ABSENT; break;
        case MASKED: cut.bits = rules.masks + m * rules.room + (index >> 3); break;
        case DRAWN: {
          const u64 seed = rules.seeds[m], chance = rules.chances[m];
          for (int at = 0; at < n; at += LANES) {
            u16 word = bits_of(draws(seed, index + at) < chance);
            if (n - at < LANES) word &= (u16)((1u << (n - at)) - 1);
            memcpy(bits + (at >> 3), &word, 2);
          }
          if (rules.room) memcpy(rules.masks + m * rules.room + (index >> 3), bits, (n + LANES - 1) / LANES * 2);
          cut.bits = bits;
          break;
        }
        case BETWEEN: {
          const u32* at = rules.cuts + 2 * m;
          const i64 place = 2 * m * rules.cells + cell, other = place + rules.cells;
          cut.high = above(at[0], rules.allowed[place], rules.present[place]);
          cut.low = above(at[1], rules.allowed[other], rules.present[other]);
          bool tied[2] = {cut.high == ABSENT && at[0] != ABSENT, cut.low == ABSENT && at[1] != ABSENT};
          if (tied[0] || tied[1]) {
            i64 allowed[2] = {rules.allowed[place], rules.allowed[other]};
            count_ties<In>(in, n, m, at, cut, tied, allowed, bits);
            cut = {0, ABSENT, bits};
          }
        }
      }
    }
  }

 private:
  // The least key above a cut in a cell; ABSENT if its ties must be counted one by one.
  static u32 above(u32 cut, i64 allowed, i64 present) {
    return allowed >= present ? cut : allowed == 0 ? cut + 1 : ABSENT;
  }

  template <class In> void count_ties(const Inputs& in, int n, i64 rule, const u32* at, const Cut& cut,
                                      const bool* tied, const i64* allowed, u8* bits) {
    write_keys<W, In>(in, n, varied(in.k - 1) ? -1 : rule, padded, keys);
    const u32 bounds[2] = {cut.high, cut.low};
    memset(bits, 0, ROW);
    for (int j = 0; j < n; ++j) {
      bool over[2];
      for (int c = 0; c < 2; ++c) {
        over[c] = keys[j] >= bounds[c];
        if (!tied[c]) continue;
        over[c] = keys[j] > at[c];
        if (keys[j] == at[c]) over[c] = seen[2 * rule + c]++ < allowed[c];
      }
      bits[j >> 3] |= (u8)((over[1] && !over[0]) << (j & 7));
    }
  }

};
