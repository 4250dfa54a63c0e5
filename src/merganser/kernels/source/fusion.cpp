// arcee_fusion: the divergences of rows, the quartiles of what they make of changes, and the step that chooses.
#include "elementwise.hpp"

// e**x of numbers up to zero: 2**n times a polynomial, by multiplications and additions alone, so that it has the
// same bits everywhere.
INLINE Vec<double> power(Vec<double> x) {
  const double shift = 0x1.8p52;  // its last bits hold a whole number
  const Vec<double> t = x * 0x1.71547652b82fep0 + shift, n = t - shift;
  const Vec<double> r = (x - n * 0x1.62e42fefa38p-1) - n * 0x1.ef35793c7673p-45;
  constexpr double terms[] = {0x1.289185613a3d6p-22, 0x1.71de0dae63bb3p-19, 0x1.a019b90d2ae7ap-16,
                              0x1.a01a01a7c41d5p-13, 0x1.6c16c1788bd90p-10, 0x1.11111111109b3p-7,
                              0x1.5555555553d63p-5,  0x1.5555555555556p-3,  0x1.0000000000001p-1, 1.0, 1.0};
  Vec<double> sum = Vec<double>{} + 0x1.af38a9b0ec855p-26;
#pragma clang loop unroll(full)
  for (double term : terms) sum = sum * r + term;
  const Vec<double> made = (Vec<double>)((Vec<u64>)sum + ((Vec<u64>)t << 52));
  return x < -708.0 ? Vec<double>{} : made;
}
// log(p / q) of numbers that are neither zero nor subnormal: by atanh((p - q) / (p + q)) after p is brought near q.
INLINE Vec<double> log_ratio(Vec<double> p, Vec<double> q) {
  const Vec<i64> n = ((Vec<i64>)p - (Vec<i64>)q + (1ll << 51)) >> 52;
  const Vec<double> near = (Vec<double>)((Vec<i64>)p - (n << 52)), f = (near - q) / (near + q), s = f * f;
  constexpr double terms[] = {0x1.38ffd7ff2ea9cp-4, 0x1.746bd7ec3f49dp-4, 0x1.c71c3c49cff06p-4, 0x1.249249529dd5cp-3,
                              0x1.999999997bed9p-3, 0x1.555555555556ep-2};
  Vec<double> sum = Vec<double>{} + 0x1.35b99f3a4cd26p-4;
#pragma clang loop unroll(full)
  for (double term : terms) sum = sum * s + term;
  const Vec<double> k = convert<double>(n), twice = f + f;
  return k * 0x1.62e42fefa38p-1 + (k * 0x1.ef35793c7673p-45 + (twice + twice * (sum * s)));
}

// The least number of the softmax of a row, and all of it in `row`: as powers, of which the share is to be taken.
struct Shares { double share; bool finite; };
template <class In> static Shares powers_of(const Inputs& in, i64 i, i64 length, Padded<LANES>& padded, double* row) {
  const i64 full = length / LANES * LANES;
  const double least = -__builtin_inf();
  for (i64 at = 0; at < full; at += LANES) store(row + at, read<double, In>(in, i, at));
  if (full < length) {
    store(row + full, read<double, In>(padded(in, full, (int)(length - full)), i, 0));
    for (i64 at = length; at < full + LANES; ++at) row[at] = least;
  }
  Vec<double> most = Vec<double>{} + least, sum = {};
  for (i64 at = 0; at < length; at += LANES) most = load<double>(row + at) > most ? load<double>(row + at) : most;
  double top = least;
  for (int l = 0; l < LANES; ++l) top = most[l] > top ? most[l] : top;
  Vec<i64> wrong = {};
  for (i64 at = 0; at < length; at += LANES) {
    const Vec<double> x = load<double>(row + at) - top, e = power(x);
    wrong |= ~(x <= 0);
    store(row + at, e);
    sum += e;
  }
  return {1.0 / total<double>(sum), !__builtin_reduce_or(wrong)};
}
template <class In> static double divergence_of(const Inputs& in, i64 length, Padded<LANES>& padded, double* rows[2]) {
  const Shares base = powers_of<In>(in, 0, length, padded, rows[0]), other = powers_of<In>(in, 1, length, padded, rows[1]);
  Vec<double> sum = {};
  for (i64 at = 0; at < length; at += LANES) {
    const Vec<double> p = load<double>(rows[1] + at) * other.share + 1e-8, q = load<double>(rows[0] + at) * base.share + 1e-8;
    sum += p * log_ratio(p, q);
  }
  const double divergence = total<double>(sum);
  return !base.finite || !other.finite ? __builtin_nan("") : divergence > 0 ? divergence : 0.0;
}

// The importance of changes: their size times the divergence of their row, rounded to float32.
template <class W> INLINE Vec<float> importance(Vec<W> change, Vec<double> divergence) {
  return convert<float>(convert<double>(magnitude(change)) * divergence);
}

constexpr int LOW = 15;  // bits of a key that the first count leaves to the second

// Divergences of whole rows, and how often the upper bits of their importances' keys occur, [2][1 << 16].
template <class W, class In> static void diverge_in(const Inputs& in, i64 rows, i64 length, double* into, i64* counts) {
  Room room;
  Shifted shifted(in.k, room);
  Chunk<W> chunk(in.k, in.k, room);
  double* powers[2] = {room.take<double>(length + LANES), room.take<double>(length + LANES)};
  for (i64 row = 0; row < rows; ++row) {
    const Inputs here = shifted(in, row * length);
    const Vec<double> divergence = Vec<double>{} + (into[row] = divergence_of<In>(here, length, chunk.padded, powers));
    chunk.over(here, 0, length, [&](i64, int live) {
      u32 upper[CHUNK];
      for (int at = 0; at < chunk.n; at += LANES)
        store(upper + at, key_of(importance<W>(load<W>(chunk.apart[0] + at), divergence)) >> LOW);
      for (int at = 0; at < live; ++at) counts[(at & 1) << 16 | upper[at]] += 1;  // equal ones in turn
    });
  }
}
EXPORT void diverge(const Inputs* in, i64 wide, i64 rows, i64 length, double* into, i64* counts) {
  if (wide) diverge_in<double, Mixed>(*in, rows, length, into, counts);
  else if (all_are(*in, BFLOAT16)) diverge_in<float, bf16>(*in, rows, length, into, counts);
  else diverge_in<float, Mixed>(*in, rows, length, into, counts);
}

// Of every row its divergence, as often as it has elements in a block.
struct Spread {
  const double* divergences;
  i64 length;
  double* each;
  Spread(const double* divergences, i64 length, Room& room)
      : divergences(divergences), length(length), each(room.take<double>(BLOCK)) {}
  void fill(i64 index, int n) {
    for (int at = 0; at < n;) {
      const i64 row = (index + at) / length, stop = (row + 1) * length - index;
      for (const int end = stop < n ? (int)stop : n; at < end; ++at) each[at] = divergences[row];
    }
  }
};

// Of importances other than zero whose keys have these upper bits, how often their lower bits occur, [3][1 << LOW].
template <class W> static void count_in(const Inputs& in, i64 count, i64 start, Spread spread, const u32* upper, i64* counts) {
  Room room;
  Chunk<W> chunk(in.k, in.k, room);
  chunk.over(in, 0, count, [&](i64 place, int live) {
    if (place % BLOCK == 0) spread.fill(start + place, (int)(count - place < BLOCK ? count - place : BLOCK));
    const double* each = spread.each + place % BLOCK;
    for (int at = 0; at < chunk.n; at += LANES) {
      const Vec<u32> key = key_of(importance<W>(load<W>(chunk.apart[0] + at), load<double>(each + at))), top = key >> LOW;
      const Vec<i32> marked = ((top == upper[0]) | (top == upper[1]) | (top == upper[2])) & (key != 0);
      if (!__builtin_reduce_or(marked)) continue;
      for (int l = 0; l < LANES && at + l < live; ++l)
        for (int u = 0; u < 3; ++u)
          if (key[l] && top[l] == upper[u]) counts[u << LOW | (key[l] & ((1u << LOW) - 1))] += 1;
    }
  });
}
EXPORT void count_keys(const Inputs* in, i64 count, i64 wide, i64 start, const double* divergences, i64 length,
                       const u32* upper, i64* counts) {
  Room room;
  const Spread spread(divergences, length, room);
  if (wide) count_in<double>(*in, count, start, spread, upper, counts);
  else count_in<float>(*in, count, start, spread, upper, counts);
}

// The other model's element where the importance of its change reaches a bound, else the base's.
struct FusionHow { const double* divergences; i64 length; double bound; };

template <class W> struct Fusion : Plain {
  static constexpr bool CHANGES = true;
  Spread spread;
  float bound;
  Fusion(const void* how, i64, Room& room) : Fusion(*(const FusionHow*)how, room) {}
  Fusion(const FusionHow& how, Room& room) : spread(how.divergences, how.length, room), bound((float)how.bound) {}
  void prepare(int n, i64 index) { spread.fill(index, n); }
  const W* fill(const Chunk<W>& c, int place, W* exact) {
    for (int at = 0; at < c.n; at += LANES) {
      const Vec<float> weight = importance<W>(load<W>(c.apart[0] + at), load<double>(spread.each + place + at));
      store(exact + at, mask_for<W>(weight >= bound) ? load<W>(c.x[1] + at) : load<W>(c.x[0] + at));
    }
    return exact;
  }
};
EXPORT int fusion(const Tile* tile) { return run<Fusion>(tile); }
