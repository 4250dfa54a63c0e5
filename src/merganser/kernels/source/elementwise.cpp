// The steps of the methods that work element by element: what is added to the table below is a kernel.
#include "elementwise.hpp"

// Calls a function with a number that the compiler knows, if it is small, and else with 0.
template <int N> struct Known { constexpr int operator()() const { return N; } };
template <class Function> INLINE void for_few(i64 n, Function function) {
  switch (n) {
    case 1: return function(Known<1>{});
    case 2: return function(Known<2>{});
    case 3: return function(Known<3>{});
    case 4: return function(Known<4>{});
    default: return function(Known<0>{});
  }
}

// A linear combination by fused multiply-adds in the order of the inputs: (sum + plus) / divisor.
struct LinearHow { const void* coefficients; double divisor, plus; };

template <class W> struct Linear : Plain {
  const W* coefficients;
  W divisor, plus;
  Linear(const void* how, i64, Room&)
      : coefficients((const W*)((const LinearHow*)how)->coefficients), divisor((W)((const LinearHow*)how)->divisor),
        plus((W)((const LinearHow*)how)->plus) {}
  const W* fill(const Chunk<W>& c, int, W* exact) {
    for_few(c.models, [&](auto few) { add_up<few()>(c, exact); });
    return exact;
  }
  template <int K> void add_up(const Chunk<W>& c, W* exact) {
    const i64 k = K ? K : c.models;
    for (int at = 0; at < c.n; at += LANES) {
      Vec<W> sum = coefficients[0] * load<W>(c.x[0] + at);
      for (i64 i = 1; i < k; ++i) sum = fma(Vec<W>{} + coefficients[i], load<W>(c.x[i] + at), sum);
      sum += plus;  // a zero
      store(exact + at, divisor == 1 ? sum : sum / divisor);
    }
  }
};

// Changes to the base, made sparse; signs elected; added up: ties, dare, della, breadcrumbs, sce, consensus.
struct SparseHow {
  Rules rules;
  const void *factors, *weights, *slack;
  double total, scale;
  i64 elect, weighted, counted, least;
};

template <class W> struct Sparse : Plain {
  static constexpr bool NUMBERS = false, CHANGES = true;
  Keeper<W> keeper;
  const W *factors, *weights, *slack;
  W total, scale, *kept;
  bool elect, weighted, counted, varied;
  i32 least;
  Sparse(const void* told, i64 k, Room& room) : Sparse(*(const SparseHow*)told, k - 1, room) {}
  Sparse(const SparseHow& how, i64 m, Room& room)
      : keeper(how.rules, m, room), factors((const W*)how.factors), weights((const W*)how.weights),
        slack((const W*)how.slack), total((W)how.total), scale((W)how.scale), kept(room.take<W>(m * CHUNK + LANES)),
        elect(how.elect), weighted(how.weighted), counted(how.counted), varied(keeper.varied(m + 1)),
        least((i32)how.least) {}
  void prepare(int n, i64 index) { keeper.prepare(n, index); }

  const W* fill(const Chunk<W>& c, int at, W* exact) {
    keeper.settle(c, at);
    keep(c, at);
    for_few(c.models - 1, [&](auto few) {
      if (elect) counted ? add_up<few(), true, true>(c, exact) : add_up<few(), true, false>(c, exact);
      else counted ? add_up<few(), false, true>(c, exact) : add_up<few(), false, false>(c, exact);
    });
    return exact;
  }

 private:
  void keep(const Chunk<W>& c, int at) {
    const i64 m = c.models - 1;
    if (varied) write_keys(keeper.keys, c, -1);
    for (i64 i = 0; i < m; ++i) {
      const Cut& cut = keeper.cuts[varied ? m : i];
      const W *apart = c.apart[i], factor = factors[i];
      W* into = kept + i * CHUNK;
      if (cut.bits) {
        for (int n = 0; n < c.n; n += LANES)
          store(into + n, only(mask_for<W>(is_set(cut.bits, at + n)), factor * load<W>(apart + n)));
      } else if (varied) {
        for (int n = 0; n < c.n; n += LANES)
          store(into + n, only(mask_for<W>(lies_in(cut, load<u32>(keeper.keys + n))), factor * load<W>(apart + n)));
      } else {
        for (int n = 0; n < c.n; n += LANES) {
          const Vec<W> x = load<W>(apart + n);
          store(into + n, only(mask_for<W>(lies_in(cut, key_of(x))), factor * x));
        }
      }
    }
  }
  template <int M, bool ELECT, bool COUNTED> void add_up(const Chunk<W>& c, W* exact) {
    const i64 m = M ? M : c.models - 1;
    const Vec<W> zero = {};
    for (int at = 0; at < c.n; at += LANES) {
      Vec<W> sum = m ? load<W>(kept + at) : zero, share = zero;
      for (i64 i = 1; i < m; ++i) sum += load<W>(kept + i * CHUNK + at);
      Vec<W> change = sum;
      if constexpr (ELECT || COUNTED) {
        const Vec<W> flip = sum >= 0 ? zero : -zero;  // a sum that is not a number counts as negative
        Vec<W> agreed = zero;
        for (i64 i = 0; i < m; ++i) {
          const Vec<W> x = load<W>(kept + i * CHUNK + at);
          const Mask<W> counts = ELECT ? ~(flip_signs(x, flip) <= 0) : x != 0;
          agreed += only(counts, x);
          if (COUNTED) share += only(counts, zero + weights[i]);
        }
        if (ELECT) change = agreed;
      }
      if (COUNTED) change /= share != 0 ? share : zero + (W)1;
      else if (weighted) change /= total;
      if (least) change = only(are_useful(c, at, change), change);
      store(exact + at, load<W>(c.x[0] + at) + scale * change);
    }
  }
  // So many models must have a use for the sum.
  INLINE_MEMBER Mask<W> are_useful(const Chunk<W>& c, int at, Vec<W> change) {
    Mask<W> uses = {};
    for (i64 i = 0; i < c.models - 1; ++i) {
      const Vec<W> x = load<W>(c.apart[i] + at);
      uses -= ~(magnitude(x) < slack[i] * magnitude(change - x));
    }
    return uses >= least;
  }
};

// The base, drawn to the other model where the two are near.
struct NearSwapHow { double t; };

template <class W> struct NearSwap : Plain {
  W t;
  NearSwap(const void* how, i64, Room&) : t((W)((const NearSwapHow*)how)->t) {}
  const W* fill(const Chunk<W>& c, int, W* exact) {
    const Vec<W> one = Vec<W>{} + (W)1, least = Vec<W>{} + (W)1e-30;
    for (int at = 0; at < c.n; at += LANES) {
      const Vec<W> base = load<W>(c.x[0] + at), change = load<W>(c.x[1] + at) - base, size = magnitude(change);
      Vec<W> share = one / (size < least ? least : size) * t;
      share = share < 0 ? Vec<W>{} : share;
      share = share > one ? one : share;
      store(exact + at, base + share * change);
    }
    return exact;
  }
};

// The mean of those changes that are larger than epsilon; with factors for what one model alone changed.
struct RamHow { double epsilon; const void* factors; };

template <class W> struct Ram : Plain {
  static constexpr bool NUMBERS = false, CHANGES = true;
  W epsilon;
  const W* factors;
  Ram(const void* how, i64, Room&)
      : epsilon((W)((const RamHow*)how)->epsilon), factors((const W*)((const RamHow*)how)->factors) {}
  const W* fill(const Chunk<W>& c, int, W* exact) {
    const Vec<W> zero = {}, one = zero + (W)1;
    for (int at = 0; at < c.n; at += LANES) {
      Vec<W> total = zero, count = zero, alone = zero;
      for (i64 i = 0; i < c.models - 1; ++i) {
        Vec<W> change = load<W>(c.apart[i] + at);
        const Mask<W> active = ~(magnitude(change) <= epsilon);  // what is not a number is active
        change = only(active, change);
        total += change;
        count += only(active, one);
        if (factors) alone += factors[i] * change;
      }
      const Vec<W> mean = total / (count < one ? one : count), base = load<W>(c.x[0] + at);
      store(exact + at, base + (factors ? (count == one ? alone : mean) : mean));
    }
    return exact;
  }
};

// A result that was computed elsewhere, given as a row behind those of the models.
template <class W> struct Given : Plain {
  static constexpr int EXTRA = 1;
  Given(const void*, i64, Room&) {}
  const W* fill(const Chunk<W>& c, int, W*) { return c.x[c.models]; }
};

// -- the table: every kernel that Python can call ---------------------------------------------------

EXPORT int linear(const Tile* tile) { return run<Linear>(tile); }
EXPORT int sparse(const Tile* tile) { return run<Sparse>(tile); }
EXPORT int given(const Tile* tile) { return run<Given>(tile); }
EXPORT int nearswap(const Tile* tile) { return run<NearSwap>(tile); }
EXPORT int ram(const Tile* tile) { return run<Ram>(tile); }
