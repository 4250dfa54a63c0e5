// How a result is stored: one function for each dtype, rounding to nearest (ties to even) or stochastic.
// What is not a number is stored as the one quiet NaN that all processors have, whatever it came from.
#pragma once
#include "vectors.hpp"

// float64 to float32, an inexact result made odd: rounding it again then rounds as if once.
// Source: Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums".
INLINE Vec<float> single(Vec<float> x) { return x; }
INLINE Vec<float> single(Vec<double> x) {
  Vec<float> near = convert<float>(x);
  Vec<double> back = convert<double>(near);
  Vec<u32> bits = (Vec<u32>)near;
  Vec<i32> odd = (bits & 1) != 0;
  Vec<i32> kept = convert<i32>((back == x) | (x != x) | (magnitude(back) == __builtin_inf())) | odd;
  Vec<i32> up = convert<i32>(magnitude(x) > magnitude(back));
  return (Vec<float>)(kept ? bits : up ? bits + 1 : bits - 1);
}

template <class W, class Out, bool STOCHASTIC> INLINE Vec<W> put(void* to, Vec<W> exact, Draws& draws) {
  if constexpr (same<Out, bf16>) {
    Vec<float> x = single(exact);
    const Vec<u32> bits = (Vec<u32>)x;
    Vec<u32> plus;  // what is then cut off leaves the number rounded; infinity has no bits there and stays
    if constexpr (STOCHASTIC) plus = draws.next().lower() & 0xFFFF;  // up with the probability of the part cut off
    else plus = ((bits >> 16) & 1) + 0x7FFF;
    const Vec<u32> half = x != x ? Vec<u32>{} + 0x7FC0 : (bits + plus) >> 16;
    store(to, convert<u16>(half));
    return convert<W>((Vec<float>)(half << 16));
  } else if constexpr (same<Out, f16>) {
    Vec<float> x = single(exact);
    if constexpr (STOCHASTIC) {
      const Drawn drawn = draws.next();
      Vec<u32> bits = (Vec<u32>)x, cut = (bits + (drawn.lower() & 0x1FFF)) & 0xFFFFE000;
      // Subnormal numbers are steps of 2**-24.
      Vec<double> steps = magnitude(convert<double>(x)) * 16777216.0, below = __builtin_elementwise_floor(steps);
      Vec<double> drop = convert<double>(drawn.all() >> 11) * (1.0 / 9007199254740992.0);
      below += drop < steps - below ? Vec<double>{} + 1.0 : Vec<double>{};
      Vec<float> small = convert<float>(below / 16777216.0);
      small = x < 0.0f ? -small : small;
      Vec<float> drawn_to = magnitude(x) < 6.103515625e-05f ? small : (Vec<float>)cut;
      x = (bits & 0x7F800000) == 0x7F800000 ? x : drawn_to;
    }
    Vec<u16> half = (Vec<u16>)convert<f16>(x);
    half = (half & 0x7FFF) > 0x7C00 ? Vec<u16>{} + 0x7E00 : half;
    store(to, half);
    return convert<W>((Vec<f16>)half);
  } else if constexpr (same<Out, float>) {
    Vec<float> x = convert<float>(exact);
    if constexpr (STOCHASTIC && same<W, double>) {
      Vec<u64> mask = Vec<u64>{} + 0x1FFFFFFF, bits = (Vec<u64>)exact;
      Vec<float> cut = convert<float>((Vec<double>)((bits + (draws.next().all() & mask)) & ~mask));
      Vec<i32> near = convert<i32>((magnitude(exact) < 1.2e-38) | ((bits & 0x7FF0000000000000) == 0x7FF0000000000000));
      x = near ? x : cut;
    }
    store(to, x != x ? (Vec<float>)(Vec<u32>{} + 0x7FC00000) : x);
    return convert<W>(x);
  } else {
    Vec<double> x = convert<double>(exact);
    store(to, x != x ? (Vec<double>)(Vec<u64>{} + 0x7FF8000000000000) : x);
    return exact;
  }
}
