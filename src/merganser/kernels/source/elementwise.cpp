// The steps of the methods that work element by element: what is added to the table below is a kernel.
#include "elementwise.hpp"

// A linear combination by fused multiply-adds in the order of the inputs.
struct LinearHow { const void* coefficients; double divisor; i64 from_zero; };

template <class W, int K> struct Linear : Plain {
  Array<W, K> coefficients;
  W divisor, plus;
  Linear(const void* how, i64 k, i64, Room& room)
      : coefficients((const W*)((const LinearHow*)how)->coefficients, k, room),
        divisor((W)((const LinearHow*)how)->divisor),
        plus(((const LinearHow*)how)->from_zero ? (W)0.0 : (W)-0.0) {}
  INLINE_MEMBER Vec<W> operator()(const Vec<W>* x, i64 k, i64) {
    Vec<W> sum = coefficients[0] * x[0];
    for (i64 i = 1; i < k; ++i) sum = fma(Vec<W>{} + coefficients[i], x[i], sum);
    sum += plus;  // negative zeros become positive if sums begin with zero
    return divisor == 1 ? sum : sum / divisor;
  }
};

// Changes to the base, made sparse; signs elected; added up: ties, dare, della, breadcrumbs, sce, consensus.
struct SparseHow {
  Rules rules;
  const void *factors, *weights, *slack;
  double total, scale;
  i64 elect, weighted, counted, least;
};

template <class W, int K> struct Sparse : Plain {
  static constexpr int M = K ? (K > 1 ? K - 1 : 1) : 0;
  Keeper<W> keeper;
  Array<W, M> factors, weights, slack;
  W total, scale;
  bool elect, weighted, counted, varied;
  i32 least;
  Sparse(const void* told, i64 k, i64, Room& room) : Sparse(*(const SparseHow*)told, k - 1, room) {}
  Sparse(const SparseHow& how, i64 m, Room& room)
      : keeper(how.rules, m, room), factors((const W*)how.factors, m, room), weights((const W*)how.weights, m, room),
        slack((const W*)how.slack, m, room), total((W)how.total), scale((W)how.scale), elect(how.elect),
        weighted(how.weighted), counted(how.counted), varied(keeper.varied(m)), least((i32)how.least) {}
  template <class In> void prepare(const Inputs& in, int n, i64 index) { keeper.template prepare<In>(in, n, index); }

  INLINE_MEMBER Vec<W> operator()(const Vec<W>* x, i64 k, i64 at) {
    const i64 m = k - 1;
    const Vec<W> zero = {};
    Vec<W> apart[K ? K : MOST], kept[K ? K : MOST], sum = zero;
    for (i64 i = 0; i < m; ++i) apart[i] = x[i + 1] - x[0];
    if (varied) {
      const Mask<W> mask = mask_for<W>(keeps(keeper.cuts[m], key_of(variance<W>(apart, m)), at));
      for (i64 i = 0; i < m; ++i) kept[i] = mask ? factors[i] * apart[i] : zero;
    } else {
      for (i64 i = 0; i < m; ++i) {
        const Mask<W> mask = mask_for<W>(keeps(keeper.cuts[i], key_of(apart[i]), at));
        kept[i] = mask ? factors[i] * apart[i] : zero;
      }
    }
    for (i64 i = 0; i < m; ++i) sum = i ? sum + kept[i] : kept[i];
    Vec<W> change = sum, share = zero;
    if (elect || counted) {
      const Mask<W> up = sum >= 0;
      Vec<W> agreed = zero;
      for (i64 i = 0; i < m; ++i) {
        Mask<W> counts = kept[i] != 0;
        if (elect) counts &= ~((kept[i] > 0) ^ up);
        agreed += counts ? kept[i] : zero;
        share += counts ? zero + weights[i] : zero;
      }
      if (elect) change = agreed;
    }
    if (counted) change /= share != 0 ? share : zero + (W)1;
    else if (weighted) change /= total;
    if (least) {  // so many models must have a use for the sum
      Mask<W> uses = {};
      for (i64 i = 0; i < m; ++i) uses -= ~(magnitude(apart[i]) < slack[i] * magnitude(change - apart[i]));
      change = uses >= least ? change : zero;
    }
    return x[0] + scale * change;
  }
};

// The base, drawn to the other model where the two are near.
struct NearSwapHow { double t; };

template <class W, int K> struct NearSwap : Plain {
  static constexpr int FEW = 2;
  W t;
  NearSwap(const void* how, i64, i64, Room&) : t((W)((const NearSwapHow*)how)->t) {}
  INLINE_MEMBER Vec<W> operator()(const Vec<W>* x, i64, i64) {
    const Vec<W> one = Vec<W>{} + (W)1, least = Vec<W>{} + (W)1e-30, change = x[1] - x[0], size = magnitude(change);
    Vec<W> share = one / (size < least ? least : size) * t;
    share = share < 0 ? Vec<W>{} : share;
    share = share > one ? one : share;
    return x[0] + share * change;
  }
};

// The mean of those changes that are larger than epsilon; with factors for what one model alone changed.
struct RamHow { double epsilon; const void* factors; };

template <class W, int K> struct Ram : Plain {
  static constexpr int FEW = 0;
  W epsilon;
  const W* factors;
  Ram(const void* how, i64, i64, Room&)
      : epsilon((W)((const RamHow*)how)->epsilon), factors((const W*)((const RamHow*)how)->factors) {}
  INLINE_MEMBER Vec<W> operator()(const Vec<W>* x, i64 k, i64) {
    const Vec<W> zero = {}, one = zero + (W)1;
    Vec<W> total = zero, count = zero, alone = zero;
    for (i64 i = 1; i < k; ++i) {
      Vec<W> change = x[i] - x[0];
      const Mask<W> active = ~(magnitude(change) <= epsilon);  // what is not a number is active
      change = active ? change : zero;
      total += change;
      count += active ? one : zero;
      if (factors) alone += factors[i - 1] * change;
    }
    const Vec<W> mean = total / (count < one ? one : count);
    if (!factors) return x[0] + mean;
    return x[0] + (count == one ? alone : mean);
  }
};

// A result that was computed elsewhere, given as a row behind those of the models.
template <class W, int K> struct Given : Plain {
  static constexpr int FEW = 0;
  static constexpr int EXTRA = 1;
  Given(const void*, i64, i64, Room&) {}
  INLINE_MEMBER Vec<W> operator()(const Vec<W>* x, i64 k, i64) { return x[k]; }
};

// -- the table: every kernel that Python can call ---------------------------------------------------

EXPORT int linear(const Tile* tile) { return run<Linear>(tile); }
EXPORT int sparse(const Tile* tile) { return run<Sparse>(tile); }
EXPORT int given(const Tile* tile) { return run<Given>(tile); }
EXPORT int nearswap(const Tile* tile) { return run<NearSwap>(tile); }
EXPORT int ram(const Tile* tile) { return run<Ram>(tile); }
