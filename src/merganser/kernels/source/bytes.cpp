// What is done with a tensor's stored numbers as they are: digests, counts, widening, comparisons, adapters.
#include "vectors.hpp"

// A 64-bit digest of every CELL bytes: each 8-byte word is mixed with its place, and all are added up. Any single
// changed word changes the sum; it guards against damage, not against forgery.
template <class V> INLINE V mix_word(V word) {
  word = (word ^ (word >> 32)) * MIX1;
  return word ^ (word >> 29);
}
EXPORT void digest(const u8* data, i64 size, u64* sums, i64 cells) {
  for (i64 low = 0, cell = 0; cell < cells; low += CELL, ++cell) {
    const i64 bytes = size - low < CELL ? size - low : CELL, words = bytes / 8, full = words / LANES * LANES;
    const u8* from = data + low;
    Vec<u64> sum = {}, place = counted(GOLDEN, GOLDEN);
    for (i64 n = 0; n < full; n += LANES, place += LANES * GOLDEN) sum += mix_word(load<u64>(from + 8 * n) + place);
    u64 all = (u64)bytes + __builtin_reduce_add(sum), at = (u64)full * GOLDEN;
    for (i64 n = full; n < words; ++n) {
      u64 word;
      memcpy(&word, from + 8 * n, 8);
      all += mix_word(word + (at += GOLDEN));
    }
    if (8 * words < bytes) {
      u64 last = 0;
      for (i64 n = 8 * words; n < bytes; ++n) last = last << 8 | from[n];
      all += mix_word(last + at + GOLDEN);
    }
    sums[cell] = all;
  }
}

// How many numbers are infinite or not a number, by their bits.
template <class T> static i64 nonfinite_in(const T* words, i64 count, T exponent) {
  i64 found = 0;
  for (i64 n = 0; n < count; ++n) found += (words[n] & exponent) == exponent;
  return found;
}
EXPORT i64 count_nonfinite(const void* data, i64 code, i64 count) {
  switch (code) {
    case BFLOAT16: return nonfinite_in((const u16*)data, count, (u16)0x7F80);
    case FLOAT16: return nonfinite_in((const u16*)data, count, (u16)0x7C00);
    case FLOAT32: return nonfinite_in((const u32*)data, count, 0x7F800000u);
    default: return nonfinite_in((const u64*)data, count, (u64)0x7FF0000000000000);
  }
}

// Stored numbers as float32, or as float64.
template <class W> static void widen_to(const Inputs& in, i64 count, W* into) {
  Room room;
  Padded<LANES> padded(1, room);
  const i64 full = count / LANES * LANES;
  for (i64 at = 0; at < full; at += LANES) store(into + at, read<W, Mixed>(in, 0, at));
  if (full == count) return;
  const Vec<W> rest = read<W, Mixed>(padded(in, full, (int)(count - full)), 0, 0);
  memcpy(into + full, &rest, (count - full) * sizeof(W));
}
EXPORT void widen_all(const Inputs* in, i64 count, i64 wide, void* into) {
  if (wide) widen_to(*in, count, (double*)into);
  else widen_to(*in, count, (float*)into);
}

// -- comparing two models ---------------------------------------------------------------------------

constexpr int FIGURES = 10, BUCKETS = 18;
constexpr i64 FAR = 0xFFFF;  // distances from here on are one: all lie in the last bucket

// Numbers as whole numbers in their order: neighbours are one apart, both zeros are 0.
INLINE Vec<i64> order(Vec<i64> bits, i64 magnitudes) {
  const Vec<i64> sign = bits < 0;
  return ((bits & magnitudes) ^ sign) - sign;
}
// Distances in units in the last place: how many numbers of the dtype lie between two.
template <class In> INLINE Vec<i32> apart_of(const Inputs& in, i64 at) {
  Vec<i64> distance;
  if constexpr (same<In, double>) {
    const Vec<i64> x = order((Vec<i64>)read<double, Mixed>(in, 0, at), 0x7FFFFFFFFFFFFFFF);
    const Vec<i64> y = order((Vec<i64>)read<double, Mixed>(in, 1, at), 0x7FFFFFFFFFFFFFFF);
    const Vec<i64> near = magnitude(convert<double>(x) - convert<double>(y)) < 1e15;  // of two signs it may not fit
    const Vec<u64> difference = (Vec<u64>)x - (Vec<u64>)y;
    distance = near ? magnitude((Vec<i64>)difference) : Vec<i64>{} + FAR;
  } else if constexpr (same<In, float>) {
    const Vec<i64> x = order(convert<i64>((Vec<i32>)read<float, Mixed>(in, 0, at)), 0x7FFFFFFF);
    const Vec<i64> y = order(convert<i64>((Vec<i32>)read<float, Mixed>(in, 1, at)), 0x7FFFFFFF);
    distance = magnitude(x - y);
  } else {
    Vec<i32> place[2];
    for (int i = 0; i < 2; ++i) {
      const Vec<i32> bits = convert<i32>(load<int16_t>((const u16*)in.rows[i] + at)), sign = bits >> 31;
      place[i] = ((bits & 0x7FFF) ^ sign) - sign;
    }
    return magnitude(place[0] - place[1]);
  }
  return convert<i32>(__builtin_elementwise_min(distance, Vec<i64>{} + FAR));
}
// Buckets 0, 1, 2, 3-4, 5-8 and so on to 2**15, and all beyond: the exponent of the distance less a half.
INLINE Vec<i32> bucket_of(Vec<i32> distance) {
  const Vec<i32> exponent = (Vec<i32>)(convert<float>(distance) - 0.5f) >> 23;
  return distance == 0 ? Vec<i32>{} : __builtin_elementwise_min(exponent - 125, Vec<i32>{} + (BUCKETS - 1));
}

template <class In> INLINE void compare_at(const Inputs& in, bool based, i64 at, int live, Vec<double>* sums, i64* bins) {
  const Vec<double> x = read<double, Mixed>(in, 0, at), y = read<double, Mixed>(in, 1, at);
  const Vec<double> one = Vec<double>{} + 1.0, none = {};
  sums[0] = fma(x - y, x - y, sums[0]);
  sums[1] = fma(x, x, sums[1]);
  if (based) {
    const Vec<double> z = read<double, Mixed>(in, 2, at), a = x - z, b = y - z;
    sums[2] = fma(a, a, sums[2]);
    sums[3] = fma(b, b, sums[3]);
    sums[4] = fma(a, b, sums[4]);
    sums[5] += a * b > 0 ? one : none;
    sums[6] += a * b != 0 ? one : none;
    sums[7] += magnitude(a + b);
    sums[8] += magnitude(a) + magnitude(b);
    sums[9] = fma(z, z, sums[9]);
  }
  const Vec<i32> bucket = bucket_of(apart_of<In>(in, at));
  for (int l = 0; l < live; ++l) bins[(l & 3) * 32 + bucket[l]] += 1;
}
template <class In> static void compare_all(const Inputs& in, bool based, i64 count, double* sums, i64* histogram) {
  Room room;
  Padded<LANES> padded(in.k, room);
  for (i64 low = 0; low < count; low += BLOCK) {
    const i64 cell = low / CELL, end = count - low < BLOCK ? count : low + BLOCK;
    Vec<double> here[FIGURES] = {};
    i64 bins[4 * 32] = {};
    i64 at = low;
    for (; at + LANES <= end; at += LANES) compare_at<In>(in, based, at, LANES, here, bins);
    if (at < end) compare_at<In>(padded(in, at, (int)(end - at)), based, 0, (int)(end - at), here, bins);
    for (int f = 0; f < FIGURES; ++f) sums[cell * FIGURES + f] += total<double>(here[f]);
    for (int b = 0; b < BUCKETS; ++b) histogram[cell * BUCKETS + b] += bins[b] + bins[32 + b] + bins[64 + b] + bins[96 + b];
  }
}
// Adds a tile of two tensors, and of their base if there is a third input, to sums [cells][FIGURES] and histograms
// [cells][BUCKETS].
EXPORT void compare(const Inputs* in, i64 count, double* sums, i64* histogram) {
  const bool based = in->k == 3;
  const i64 a = in->codes[0], b = in->codes[1];
  if (a == b && a <= FLOAT16) compare_all<bf16>(*in, based, count, sums, histogram);
  else if (a == FLOAT64 || b == FLOAT64) compare_all<double>(*in, based, count, sums, histogram);
  else compare_all<float>(*in, based, count, sums, histogram);
}

// -- adapters: a weight plus a product of two thin matrices -------------------------------------------

struct Product {
  Inputs in;                       // the weights of the range, in row-major order
  i64 count, skipped;              // its elements, and those of its first row that lie before it
  const double *left, *right;      // [rows][rank] and [rank][columns]
  i64 rows, rank, columns;
  double scale;
  const double *by_row, *by_column;
  i64 wide;
  void* out;
};

constexpr int COLUMNS = 2 * LANES;  // that are summed at once, in registers
constexpr int STRIP = 256;          // columns whose part of the right factor stays in the second-level cache

// Finishes sixteen sums of a row, as far as they belong to the range: those from `at` on, `live` of them.
template <class W> INLINE void finish(const Product& p, Padded<LANES>& padded, i64 row, i64 column, Vec<double> sums, W* out) {
  const i64 here = row * p.columns + column - p.skipped;
  const i64 begin = here > 0 ? here : 0, stop = column + LANES < p.columns ? here + LANES : here + p.columns - column;
  const i64 end = stop < p.count ? stop : p.count, live = end - begin, first = begin - here;
  if (live <= 0) return;
  if (live == LANES) {
    const Vec<double> number = read<double, Mixed>(p.in, 0, begin) + p.scale * sums;
    store(out + begin, convert<W>(number * p.by_row[row] * load<double>(p.by_column + column)));
    return;
  }
  double factors[LANES] = {}, shifted[LANES] = {};
  memcpy(factors, p.by_column + column + first, live * sizeof(double));
  for (i64 l = 0; l < live; ++l) shifted[l] = sums[l + first];
  const Vec<double> number = read<double, Mixed>(padded(p.in, begin, (int)live), 0, 0) + p.scale * load<double>(shifted);
  const Vec<W> made = convert<W>(number * p.by_row[row] * load<double>(factors));
  memcpy(out + begin, &made, live * sizeof(W));
}

// out = (weights + scale * left @ right) * by_row * by_column. Each element's sum runs over the ranks in order, in
// float64; products of float32 numbers are exact there, so that fusing them with the additions changes nothing.
template <class W> static void add_product_to(const Product& p, W* out) {
  Room room;
  double* packed = room.take<double>(p.rank * STRIP + 1);
  Padded<LANES> padded(1, room);
  for (i64 strip = 0; strip < p.columns; strip += STRIP) {
    const i64 width = p.columns - strip < STRIP ? p.columns - strip : STRIP;
    for (i64 r = 0; r < p.rank; ++r) memcpy(packed + r * STRIP, p.right + r * p.columns + strip, width * 8);
    for (i64 row = 0; row < p.rows; row += 2) {
      const bool two = row + 1 < p.rows;
      const double *left = p.left + row * p.rank, *next = two ? left + p.rank : left;
      for (i64 low = 0; low < width; low += COLUMNS) {
        Vec<double> sums[2][2] = {};
        for (i64 r = 0; r < p.rank; ++r) {
          const double* from = packed + r * STRIP + low;
          const Vec<double> x = load<double>(from), y = load<double>(from + LANES);
          const Vec<double> a = Vec<double>{} + left[r], b = Vec<double>{} + next[r];
          sums[0][0] = fma(a, x, sums[0][0]), sums[0][1] = fma(a, y, sums[0][1]);
          sums[1][0] = fma(b, x, sums[1][0]), sums[1][1] = fma(b, y, sums[1][1]);
        }
        for (int o = 0; o < 1 + two; ++o)
          for (int h = 0; h < 2; ++h)
            if (low + h * LANES < width) finish(p, padded, row + o, strip + low + h * LANES, sums[o][h], out);
      }
    }
  }
}
EXPORT void add_product(const Product* p) {
  if (p->wide) add_product_to(*p, (double*)p->out);
  else add_product_to(*p, (float*)p->out);
}

// Adds the squares of [rows][columns] to sums of rows, or of columns, in order.
EXPORT void add_squares(const double* values, i64 rows, i64 columns, i64 by_column, double* squares) {
  for (i64 i = 0; i < rows; ++i)
    for (i64 j = 0; j < columns; ++j) squares[by_column ? j : i] += values[i * columns + j] * values[i * columns + j];
}

// Codes of eight bits as the numbers of a table, times scales [..][across]: each is for `width` columns of the rows
// whose `line` it is in. The first code is the element `skipped` of the first row.
EXPORT void look_up(const u8* codes, i64 count, const float* table, const float* scales, const i64* lines, i64 across,
                    i64 width, i64 columns, i64 skipped, float* into) {
  for (i64 done = 0; done < count;) {
    const i64 row = (skipped + done) / columns, column = (skipped + done) % columns, block = column / width;
    const i64 end = (block + 1) * width < columns ? (block + 1) * width : columns, left = count - done;
    const i64 n = end - column < left ? end - column : left;
    const float scale = scales[lines[row] * across + block];
    for (i64 i = done; i < done + n; ++i) into[i] = table[codes[i]] * scale;
    done += n;
  }
}

// What the library was made of: Python loads only that of its own sources.
EXPORT const char* stamp() { return STAMP; }
