// Vectors of sixteen numbers, on every processor: sums over the lanes have the same bits on all of them.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;

constexpr int LANES = 16;
constexpr int BLOCK = 4096;   // elements that one sum of the report runs over in its own precision
constexpr int CELL = 65536;   // elements whose sums are added up together in float64
constexpr int MOST = 128;     // inputs of the loops for any number of models
constexpr u32 ABSENT = ~0u;   // a key above all others

template <class T> struct VectorOf { typedef T type __attribute__((vector_size(LANES * sizeof(T)))); };
template <class T> using Vec = typename VectorOf<T>::type;
template <class W> struct MaskOf { using type = Vec<i32>; };
template <> struct MaskOf<double> { using type = Vec<i64>; };
template <class W> using Mask = typename MaskOf<W>::type;
template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

template <class T> INLINE Vec<T> load(const void* from) {
  Vec<T> v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class V> INLINE void store(void* to, V v) { memcpy(to, &v, sizeof v); }
template <class To, class V> INLINE Vec<To> convert(V v) { return __builtin_convertvector(v, Vec<To>); }
template <class W> INLINE Mask<W> mask_for(Vec<i32> mask) {
  if constexpr (same<W, double>) return convert<i64>(mask);
  else return mask;
}
// Numbers where a mask is set, else zero.
template <class V, class M> INLINE V only(M mask, V v) { return (V)((M)v & mask); }
template <class V> INLINE V flip_signs(V v, V signs) {
  if constexpr (sizeof(V) == LANES * 8) return (V)((Vec<u64>)v ^ (Vec<u64>)signs);
  else return (V)((Vec<u32>)v ^ (Vec<u32>)signs);
}
// The truth of sixteen lanes as bits.
typedef bool Truth __attribute__((ext_vector_type(LANES)));
template <class V> INLINE u16 bits_of(V mask) {
  return __builtin_bit_cast(u16, __builtin_convertvector(mask, Truth));
}
template <class V> INLINE V fma(V a, V b, V c) { return __builtin_elementwise_fma(a, b, c); }
template <class V> INLINE V magnitude(V v) { return __builtin_elementwise_abs(v); }

template <class W> INLINE W total(Vec<W> v) {  // halves first
#pragma clang loop unroll(full)
  for (int half = LANES / 2; half; half /= 2)
#pragma clang loop unroll(full)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// -- stored numbers ---------------------------------------------------------------------------------

struct bf16 { u16 bits; };
using f16 = _Float16;
struct Mixed {};  // inputs of several dtypes
enum Code : i64 { BFLOAT16, FLOAT16, FLOAT32, FLOAT64 };
constexpr int WIDTHS[] = {2, 2, 4, 8};

template <class W, class T> INLINE Vec<W> widen(const void* p) {
  if constexpr (same<T, bf16>) return convert<W>((Vec<float>)(convert<u32>(load<u16>(p)) << 16));
  else return convert<W>(load<T>(p));
}
template <class W> INLINE Vec<W> widen_any(const void* row, i64 code, i64 at) {
  switch (code) {
    case BFLOAT16: return widen<W, bf16>((const bf16*)row + at);
    case FLOAT16: return widen<W, f16>((const f16*)row + at);
    case FLOAT32: return widen<W, float>((const float*)row + at);
    default: return widen<W, double>((const double*)row + at);
  }
}

// The inputs of a tile: addresses of stored bytes, and their dtypes.
struct Inputs { i64 k; const void* const* rows; const i64* codes; };

INLINE bool all_are(const Inputs& in, i64 code) {
  for (i64 i = 0; i < in.k; ++i) if (in.codes[i] != code) return false;
  return true;
}
template <class W, class In> INLINE Vec<W> read(const Inputs& in, i64 i, i64 at) {
  if constexpr (same<In, Mixed>) return widen_any<W>(in.rows[i], in.codes[i], at);
  else return widen<W, In>((const In*)in.rows[i] + at);
}
INLINE u32 float_bits(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }

// The magnitudes of numbers as the bits of float32, which are ordered like them.
template <class V> INLINE Vec<u32> key_of(V v) { return (Vec<u32>)convert<float>(v) & 0x7FFFFFFF; }

// -- memory of a tile -------------------------------------------------------------------------------

// Zeroed memory that lasts as long as the tile is worked on; all of it is taken before the first block.
struct Room {
  struct Piece { Piece* next; };
  Piece* first = nullptr;
  Room() = default;
  Room(const Room&) = delete;
  ~Room() { while (first) { Piece* next = first->next; free(first); first = next; } }
  template <class T> T* take(i64 count) {
    size_t size = sizeof(T) * (size_t)count;
    Piece* piece = (Piece*)calloc(1, size + 192);
    if (!piece) abort();
    piece->next = first;
    first = piece;
    return (T*)(((uintptr_t)piece + sizeof(Piece) + 127) & ~(uintptr_t)127);
  }
};

inline void* operator new(size_t, void* place) noexcept { return place; }

// An array in registers if its length N is known, else in a room's memory.
template <class T, int N> struct Array {
  T v[N] = {};
  Array(i64, Room&) {}
  Array(const T* from, i64, Room&) { for (int i = 0; i < N; ++i) v[i] = from[i]; }
  INLINE_MEMBER T& operator[](i64 i) { return v[i]; }
};
template <class T> struct Array<T, 0> {
  T* v;
  Array(i64 n, Room& room) : v(room.take<T>(n ? n : 1)) {}
  Array(const T* from, i64 n, Room& room) : Array(n, room) { for (i64 i = 0; i < n; ++i) v[i] = from[i]; }
  INLINE_MEMBER T& operator[](i64 i) { return v[i]; }
};

// The inputs' last elements, fewer than WIDTH, with zeros behind them.
template <int WIDTH> struct Padded {
  u8* bytes;
  const void** rows;
  Padded(i64 k, Room& room) : bytes(room.take<u8>(k * WIDTH * 8)), rows(room.take<const void*>(k)) {}
  Inputs operator()(const Inputs& in, i64 at, int live) {
    for (i64 i = 0; i < in.k; ++i) {
      int width = WIDTHS[in.codes[i]];
      u8* row = bytes + i * WIDTH * 8;
      memset(row, 0, WIDTH * 8);
      memcpy(row, (const u8*)in.rows[i] + at * width, (size_t)live * width);
      rows[i] = row;
    }
    return {in.k, rows, in.codes};
  }
};

// The inputs from a place on.
struct Shifted {
  const void** rows;
  Shifted(i64 k, Room& room) : rows(room.take<const void*>(k)) {}
  Inputs operator()(const Inputs& in, i64 at) {
    for (i64 i = 0; i < in.k; ++i) rows[i] = (const u8*)in.rows[i] + at * WIDTHS[in.codes[i]];
    return {in.k, rows, in.codes};
  }
};

// -- a chunk of a tile ------------------------------------------------------------------------------

constexpr int CHUNK = 256;  // elements whose numbers lie in the first cache while all is done with them

// A row's numbers from an element on, or their changes to those of a base, or both.
template <class W, class T>
static void widen_row(const void* row, i64 from, int n, W* numbers, const W* base, W* changes) {
  const T* stored = (const T*)row + from;
  if (!base)
    for (int at = 0; at < n; at += LANES) store(numbers + at, widen<W, T>(stored + at));
  else if (!numbers)
    for (int at = 0; at < n; at += LANES) store(changes + at, widen<W, T>(stored + at) - load<W>(base + at));
  else
    for (int at = 0; at < n; at += LANES) {
      const Vec<W> x = widen<W, T>(stored + at);
      store(numbers + at, x);
      store(changes + at, x - load<W>(base + at));
    }
}
template <class W>
static void widen_any_row(const void* row, i64 code, i64 from, int n, W* numbers, const W* base, W* changes) {
  switch (code) {
    case BFLOAT16: return widen_row<W, bf16>(row, from, n, numbers, base, changes);
    case FLOAT16: return widen_row<W, f16>(row, from, n, numbers, base, changes);
    case FLOAT32: return widen_row<W, float>(row, from, n, numbers, base, changes);
    default: return widen_row<W, double>(row, from, n, numbers, base, changes);
  }
}

// A few elements of all inputs as numbers, and their changes to those of the first.
template <class W> struct Chunk {
  const i64 models;  // rows behind these have no changes
  int n = 0;         // a multiple of LANES
  const W** x;
  W **apart, **own;
  Padded<LANES> padded;
  Chunk(i64 k, i64 models, Room& room) : models(models), padded(k, room) {
    x = room.take<const W*>(k), own = room.take<W*>(k), apart = room.take<W*>(k);
    for (i64 i = 0; i < k; ++i) own[i] = room.take<W>(CHUNK), apart[i] = room.take<W>(CHUNK);
  }

  // Calls `each` for the changes of all chunks of `count` elements from `from` on, with the place of the first behind
  // `from` and how many there are; behind these are zeros.
  template <class Each> void over(const Inputs& in, i64 from, i64 count, Each each) {
    const i64 full = count / LANES * LANES;
    for (i64 at = 0; at < full; at += CHUNK) {
      fill(in, from + at, full - at < CHUNK ? (int)(full - at) : CHUNK, false, true);
      each(at, n);
    }
    if (full == count) return;
    fill(padded(in, from + full, (int)(count - full)), 0, LANES, false, true);
    each(full, (int)(count - full));
  }

  // Elements from `from` on; there must be `count` of them, a multiple of LANES.
  void fill(const Inputs& in, i64 from, int count, bool numbers, bool changes) {
    n = count;
    for (i64 i = 0; i < in.k; ++i) {
      const int width = WIDTHS[in.codes[i]];
      const char* next = (const char*)in.rows[i] + (from + n) * width;  // what comes then is on its way meanwhile
      for (int line = 0; line < n * width; line += 64) __builtin_prefetch(next + line);
      const bool changed = changes && i && i < models, as_is = in.codes[i] == (same<W, double> ? FLOAT64 : FLOAT32);
      x[i] = as_is ? (const W*)in.rows[i] + from : own[i];
      W* into = as_is || (changed && !numbers) ? nullptr : own[i];
      if (into || changed)
        widen_any_row(in.rows[i], in.codes[i], from, n, into, changed ? x[0] : nullptr, changed ? apart[i - 1] : nullptr);
    }
  }
};

// -- draws ------------------------------------------------------------------------------------------

constexpr u64 GOLDEN = 0x9E3779B97F4A7C15, MIX1 = 0xBF58476D1CE4E5B9, MIX2 = 0x94D049BB133111EB;

INLINE Vec<u64> counted(u64 first, u64 step) {
  Vec<u64> v;
  for (int l = 0; l < LANES; ++l) v[l] = first + (u64)l * step;
  return v;
}
// 64 random bits of each element, a function of seed and element alone: splitmix64 at its place (Steele et al. 2014),
// which ends with z ^ (z >> 31).
template <class V> INLINE V mix(V z) {
  z = (z ^ (z >> 30)) * MIX1;
  return (z ^ (z >> 27)) * MIX2;
}
INLINE u64 draw(u64 seed, i64 index) {
  const u64 z = mix(seed + ((u64)index + 1) * GOLDEN);
  return z ^ (z >> 31);
}
// The draws of sixteen elements: all bits, or those of a half, which take fewer steps.
struct Drawn {
  Vec<u64> z;
  INLINE_MEMBER Vec<u64> all() const { return z ^ (z >> 31); }
  INLINE_MEMBER Vec<u32> upper() const { return half<1>() ^ (half<1>() >> 31); }
  INLINE_MEMBER Vec<u32> lower() const { return half<0>() ^ (half<1>() << 1) ^ (half<0>() >> 31); }
  template <int H> INLINE_MEMBER Vec<u32> half() const {
    typedef u32 Halves __attribute__((vector_size(sizeof z)));
    const Halves v = (Halves)z;
    return __builtin_shufflevector(v, v, H, 2 + H, 4 + H, 6 + H, 8 + H, 10 + H, 12 + H, 14 + H, 16 + H, 18 + H, 20 + H,
                                   22 + H, 24 + H, 26 + H, 28 + H, 30 + H);
  }
};
// The draws from an element on.
struct Draws {
  Vec<u64> places;
  INLINE_MEMBER Draws(u64 seed, i64 index) : places(counted(seed + ((u64)index + 1) * GOLDEN, GOLDEN)) {}
  INLINE_MEMBER Drawn next() {
    const Drawn drawn{mix(places)};
    places += LANES * GOLDEN;
    return drawn;
  }
};

// -- sums that decide coefficients ------------------------------------------------------------------

// A sum in float64 in four chains of eight lanes: an order of its own, so that it is the same everywhere.
constexpr int STEP = 32;
struct Chains {
  Vec<double> part[2] = {};
  INLINE_MEMBER void add(Vec<double> even, Vec<double> odd) { part[0] += even; part[1] += odd; }
  INLINE_MEMBER double joined() const {
    double lanes[8];
    for (int l = 0; l < 8; ++l) lanes[l] = (part[0][l] + part[0][l + 8]) + (part[1][l] + part[1][l + 8]);
    for (int n = 4; n; n /= 2) for (int l = 0; l < n; ++l) lanes[l] = lanes[2 * l] + lanes[2 * l + 1];
    return lanes[0];
  }
};
