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

template <class W, Norm NORM> struct Norms {
  const Inputs& in;
  Room room;
  const i64 m = in.k - 1;
  Keeper<W> keeper;
  Chunk<W> chunk{in.k, in.k, room};
  Chains *all = room.take<Chains>(m + 1), *kept = room.take<Chains>(m + 1);  // or for LINF the greatest
  Norms(const Inputs& in, const Rules& rules) : in(in), keeper(rules, m, room) {}

  void run(i64 count, i64 start, double* sums) {
    Padded<STEP> padded(in.k, room);
    Shifted shifted(in.k, room);
    for (i64 low = 0; low < count; low += BLOCK) {
      const int n = (int)(count - low < BLOCK ? count - low : BLOCK), full = n / STEP * STEP;
      const Inputs here = shifted(in, low);
      keeper.prepare(n, start + low);
      for (int at = 0; at < full; at += CHUNK) add(here, at, at, full - at < CHUNK ? full - at : CHUNK);
      if (full < n) add(padded(here, full, n - full), 0, full, STEP);
      for (i64 i = 0; i < m; ++i) {
        pour(all[i], sums[(low / CELL * m + i) * 2]);
        pour(kept[i], sums[(low / CELL * m + i) * 2 + 1]);
      }
    }
  }
  void add(const Inputs& from, int place, int at, int n) {
    chunk.fill(from, place, n, false, true);
    keeper.settle(chunk, at);
    const bool varied = keeper.varied(m + 1);
    if (varied) write_keys(keeper.keys, chunk, -1);
    for (i64 i = 0; i < m; ++i) {
      const Cut& cut = keeper.cuts[varied ? m : i];
      if (cut.bits) add_kept(i, [&](int j) { return is_set(cut.bits, at + j); });
      else if (varied) add_kept(i, [&](int j) { return lies_in(cut, load<u32>(keeper.keys + j)); });
      else add_kept(i, [&](int j) { return lies_in(cut, key_of(load<W>(chunk.apart[i] + j))); });
    }
  }
  INLINE_MEMBER static Vec<double> term_of(Vec<W> x) {
    const Vec<double> wide = convert<double>(x);
    return NORM == L2 ? wide * wide : magnitude(wide);
  }
  template <class Keeps> INLINE_MEMBER void add_kept(i64 i, Keeps keeps) {
    Chains every = all[i], some = kept[i];
    for (int at = 0; at < chunk.n; at += STEP) {
      for (int h = 0; h < 2; ++h) {
        const int j = at + h * LANES;
        const Vec<W> x = load<W>(chunk.apart[i] + j);
        const Vec<double> term = term_of(x), chosen = term_of(only(mask_for<W>(keeps(j)), x));
        if (NORM == LINF) {
          every.part[h] = term > every.part[h] ? term : every.part[h];
          some.part[h] = chosen > some.part[h] ? chosen : some.part[h];
        } else {
          every.part[h] += term;
          some.part[h] += chosen;
        }
      }
    }
    all[i] = every, kept[i] = some;
  }
  static void pour(Chains& from, double& into) {
    if (NORM != LINF) into += from.joined();
    for (int l = 0; l < 2 * LANES && NORM == LINF; ++l)
      if (from.part[l / LANES][l % LANES] > into) into = from.part[l / LANES][l % LANES];
    from = Chains{};
  }
};
template <class W> static void norms_of(const Inputs& in, i64 count, const Rules& rules, i64 norm, i64 start, double* sums) {
  if (norm == L1) Norms<W, L1>(in, rules).run(count, start, sums);
  else if (norm == L2) Norms<W, L2>(in, rules).run(count, start, sums);
  else Norms<W, LINF>(in, rules).run(count, start, sums);
}
// Sums (or the maximum) of all changes and of the kept ones, [cells][models][2].
EXPORT void norms(const Inputs* in, i64 count, i64 wide, const Rules* rules, i64 norm, i64 start, double* sums) {
  if (wide) norms_of<double>(*in, count, *rules, norm, start, sums);
  else norms_of<float>(*in, count, *rules, norm, start, sums);
}
