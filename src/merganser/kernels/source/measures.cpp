// Sums over a tensor that decide coefficients and norms: in float64, in one order on every processor.
#include "rules.hpp"

constexpr int MEASURED = 1024;  // elements whose sums are joined before they are added to a cell's

// A vector to be measured: an input, or its change to the first.
template <class In> INLINE Vec<double> vector_at(const Inputs& in, i64 i, bool changes, i64 at) {
  if (changes) return read<double, In>(in, i + 1, at) - read<double, In>(in, 0, at);
  return read<double, In>(in, i, at);
}

// Two vectors: their squares and their inner product, with every number read once.
template <class In> static void measure_pair(const Inputs& in, i64 count, bool changes, double* gram) {
  Room room;
  Padded<STEP> padded(in.k, room);
  for (i64 low = 0; low < count; low += MEASURED) {
    const i64 end = count - low < MEASURED ? count : low + MEASURED;
    Chains sums[3];
    for (i64 at = low; at < end; at += STEP) {
      const Inputs here = end - at < STEP ? padded(in, at, (int)(end - at)) : in;
      const i64 place = end - at < STEP ? 0 : at;
      const Vec<double> a = vector_at<In>(here, 0, changes, place), b = vector_at<In>(here, 0, changes, place + LANES);
      const Vec<double> c = vector_at<In>(here, 1, changes, place), d = vector_at<In>(here, 1, changes, place + LANES);
      sums[0].add(a * a, b * b);
      sums[1].add(a * c, b * d);
      sums[2].add(c * c, d * d);
    }
    double* into = gram + low / CELL * 4;
    into[0] += sums[0].joined();
    into[2] += sums[1].joined();
    into[3] += sums[2].joined();
  }
}

// The vectors of a block as float64, one after the other, [m][MEASURED], with zeros behind them.
template <class In> struct Doubles {
  double* rows;
  i64 m;
  Padded<LANES> padded;
  Doubles(const Inputs& in, bool changes, Room& room)
      : rows(room.take<double>(in.k * MEASURED)), m(in.k - changes), padded(in.k, room) {}
  void fill(const Inputs& in, bool changes, i64 low, int size) {
    const int full = size / LANES * LANES;
    if (size < MEASURED) memset(rows, 0, sizeof(double) * m * MEASURED);
    for (i64 i = 0; i < m; ++i)
      for (int at = 0; at < full; at += LANES)
        store(rows + i * MEASURED + at, vector_at<In>(in, i, changes, low + at));
    if (full == size) return;
    const Inputs rest = padded(in, low + full, size - full);
    for (i64 i = 0; i < m; ++i) store(rows + i * MEASURED + full, vector_at<In>(rest, i, changes, 0));
  }
};

// Inner products of a row with COUNT others of a block.
template <int COUNT> INLINE void products(const double* x, const double* others, int size, double* into) {
  Chains sums[COUNT];
  for (int at = 0; at < size; at += STEP) {
    const Vec<double> even = load<double>(x + at), odd = load<double>(x + at + LANES);
    for (int o = 0; o < COUNT; ++o) {
      const double* other = others + o * MEASURED + at;
      sums[o].add(even * load<double>(other), odd * load<double>(other + LANES));
    }
  }
  for (int o = 0; o < COUNT; ++o) into[o] += sums[o].joined();
}

template <class In> static void measure_all(const Inputs& in, i64 count, bool changes, double* gram) {
  if (in.k - changes == 2) return measure_pair<In>(in, count, changes, gram);
  Room room;
  Doubles<In> block(in, changes, room);
  const i64 m = block.m;
  for (i64 low = 0; low < count; low += MEASURED) {
    const int size = (int)(count - low < MEASURED ? count - low : MEASURED);
    block.fill(in, changes, low, size);
    for (i64 i = 0; i < m; ++i) {
      const double* row = block.rows + i * MEASURED;
      double* into = gram + (low / CELL * m + i) * m;
      i64 j = 0;
      for (; j + 3 <= i + 1; j += 3) products<3>(row, block.rows + j * MEASURED, size, into + j);
      for (; j <= i; ++j) products<1>(row, block.rows + j * MEASURED, size, into + j);
    }
  }
}

// Add a tile's inner products to `gram`, [cells][m][m], the lower triangle.
EXPORT void measure(const Inputs* in, i64 count, i64 changes, double* gram) {
  if (all_are(*in, BFLOAT16)) measure_all<bf16>(*in, count, changes, gram);
  else if (all_are(*in, FLOAT32)) measure_all<float>(*in, count, changes, gram);
  else measure_all<Mixed>(*in, count, changes, gram);
}

// The same row by row: into `rows`, [rows][m][m], where a row begins in the cell; into `heads`, [cells][m][m],
// where it began in an earlier one: no two tiles then ever add to the same place.
EXPORT void measure_rows(const Inputs* in, i64 count, i64 changes, i64 length, i64 start, double* rows, double* heads) {
  Room room;
  Doubles<Mixed> block(*in, changes, room);
  const i64 m = block.m;
  for (i64 low = 0; low < count; low += MEASURED) {
    const int size = (int)(count - low < MEASURED ? count - low : MEASURED);
    const i64 cell = low / CELL, begin = start + cell * CELL;
    block.fill(*in, changes, low, size);
    for (int n = 0; n < size;) {
      const i64 row = (start + low + n) / length, stop = (row + 1) * length - start - low;
      const int end = stop < size ? (int)stop : size;
      double* into = row * length >= begin ? rows + row * m * m : heads + cell * m * m;
      const double* x = block.rows + n;
      const int count = end - n;
      n = end;
      for (i64 i = 0; i < m; ++i) {  // each sum in order, up to three at a time
        for (i64 j = 0; j <= i; j += 3) {
          const double *a = x + i * MEASURED, *b = x + j * MEASURED;
          const double *c = j + 1 <= i ? b + MEASURED : b, *d = j + 2 <= i ? c + MEASURED : b;
          double first = 0, second = 0, third = 0;
          for (int e = 0; e < count; ++e) first += a[e] * b[e], second += a[e] * c[e], third += a[e] * d[e];
          into[i * m + j] += first;
          if (j + 1 <= i) into[i * m + j + 1] += second;
          if (j + 2 <= i) into[i * m + j + 2] += third;
        }
      }
    }
  }
}

// The same column by column, into [length][m][m].
EXPORT void measure_columns(const Inputs* in, i64 count, i64 changes, i64 length, i64 start, double* columns) {
  Room room;
  Doubles<Mixed> block(*in, changes, room);
  const i64 m = block.m;
  for (i64 low = 0; low < count; low += MEASURED) {
    const int size = (int)(count - low < MEASURED ? count - low : MEASURED);
    block.fill(*in, changes, low, size);
    i64 column = (start + low) % length;
    for (int n = 0; n < size; ++n) {
      for (i64 i = 0; i < m; ++i)
        for (i64 j = 0; j <= i; ++j)
          columns[(column * m + i) * m + j] += block.rows[i * MEASURED + n] * block.rows[j * MEASURED + n];
      column = column + 1 < length ? column + 1 : 0;
    }
  }
}

// A linear combination whose coefficients change from row to row, or from column to column: `coefficients` is
// [k][rows or columns], `exact` is filled.
template <class W>
static void combine_in(const Inputs& in, i64 count, const W* coefficients, i64 vectors, i64 length, bool by_rows,
                       i64 start, W* exact) {
  Room room;
  Padded<LANES> padded(in.k, room);
  i64 row = start / length, column = start % length;
  for (i64 at = 0; at < count;) {
    const i64 left = length - column < count - at ? length - column : count - at;
    const int live = left < LANES ? (int)left : LANES;
    const Inputs here = live < LANES ? padded(in, at, live) : in;
    const i64 place = live < LANES ? 0 : at, vector = by_rows ? row : column;
    Vec<W> sum = {};
    for (i64 i = 0; i < in.k; ++i) {
      Vec<W> factor = {};
      if (by_rows) factor += coefficients[i * vectors + vector];
      else memcpy(&factor, coefficients + i * vectors + vector, live * sizeof(W));
      const Vec<W> x = read<W, Mixed>(here, i, place);
      sum = i ? fma(factor, x, sum) : factor * x;
    }
    memcpy(exact + at, &sum, live * sizeof(W));
    at += live;
    column += live;
    if (column == length) column = 0, ++row;
  }
}
EXPORT void combine_each(const Inputs* in, i64 count, i64 wide, const void* coefficients, i64 vectors, i64 length,
                         i64 by_rows, i64 start, void* exact) {
  if (wide) combine_in(*in, count, (const double*)coefficients, vectors, length, by_rows, start, (double*)exact);
  else combine_in(*in, count, (const float*)coefficients, vectors, length, by_rows, start, (float*)exact);
}

// -- norms of changes -------------------------------------------------------------------------------

enum Norm : i64 { L1, L2, LINF };

template <class W, class In, Norm NORM> static void norms_in(const Inputs& in, i64 count, const Rules& rules, i64 start, double* sums) {
  Room room;
  const i64 m = in.k - 1;
  Keeper<W> keeper(rules, m, room);
  Padded<STEP> padded(in.k, room);
  Shifted shifted(in.k, room);
  const bool varied = keeper.varied(m);
  for (i64 low = 0; low < count; low += BLOCK) {
    const int size = (int)(count - low < BLOCK ? count - low : BLOCK), full = size / STEP * STEP;
    const Inputs here = shifted(in, low), rest = full < size ? padded(here, full, size - full) : here;
    keeper.template prepare<In>(here, size, start + low);
    for (i64 i = 0; i < m; ++i) {
      Chains all, kept;
      Vec<double> most = {}, most_kept = {};
      for (int at = 0; at < size; at += STEP) {
        const Inputs& from = at < full ? here : rest;
        const i64 place = at < full ? at : 0;
        Vec<double> term[2], chosen[2];
        for (int h = 0; h < 2; ++h) {
          const i64 n = place + h * LANES;
          Vec<W> apart[MOST], change = change_of<W, In>(from, i, n), ranked = change;
          if (varied) {
            for (i64 o = 0; o < m; ++o) apart[o] = change_of<W, In>(from, o, n);
            ranked = variance<W>(apart, m);
          }
          const Vec<double> wide = convert<double>(change);
          const Mask<double> mask = mask_for<double>(keeps(keeper.cuts[varied ? m : i], key_of(ranked), at + h * LANES));
          term[h] = NORM == L2 ? wide * wide : magnitude(wide);
          chosen[h] = mask ? term[h] : Vec<double>{};
        }
        if constexpr (NORM == LINF) {
          for (int h = 0; h < 2; ++h) {
            most = term[h] > most ? term[h] : most;
            most_kept = chosen[h] > most_kept ? chosen[h] : most_kept;
          }
        } else {
          all.add(term[0], term[1]);
          kept.add(chosen[0], chosen[1]);
        }
      }
      double* into = sums + (low / CELL * m + i) * 2;
      if constexpr (NORM == LINF) {
        for (int l = 0; l < LANES; ++l) {
          if (most[l] > into[0]) into[0] = most[l];
          if (most_kept[l] > into[1]) into[1] = most_kept[l];
        }
      } else {
        into[0] += all.joined();
        into[1] += kept.joined();
      }
    }
  }
}
template <class W, class In> static void norms_of(const Inputs& in, i64 count, const Rules& rules, i64 norm, i64 start, double* sums) {
  if (norm == L1) norms_in<W, In, L1>(in, count, rules, start, sums);
  else if (norm == L2) norms_in<W, In, L2>(in, count, rules, start, sums);
  else norms_in<W, In, LINF>(in, count, rules, start, sums);
}
// Sums (or the maximum) of all changes and of the kept ones, [cells][models][2].
EXPORT void norms(const Inputs* in, i64 count, i64 wide, const Rules* rules, i64 norm, i64 start, double* sums) {
  if (wide) norms_of<double, Mixed>(*in, count, *rules, norm, start, sums);
  else if (all_are(*in, BFLOAT16)) norms_of<float, bf16>(*in, count, *rules, norm, start, sums);
  else if (all_are(*in, FLOAT32)) norms_of<float, float>(*in, count, *rules, norm, start, sums);
  else norms_of<float, Mixed>(*in, count, *rules, norm, start, sums);
}
