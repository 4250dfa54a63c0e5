"""Code for vectors of numbers in registers, which the loops for few models are written in.

The vectors are as wide as those of AVX-512; LLVM makes two or four of each on other processors, with
the same results.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

WIDE = 16
"""Elements that are merged at once, in registers."""


class Vectors:
    """Code for vectors of ``wide`` numbers in float32."""

    def __init__(self, builder: Any, wide: int = WIDE) -> None:
        self.builder = builder
        self.wide = wide
        self.word = ir.VectorType(ir.IntType(32), wide)
        self.half = ir.VectorType(ir.IntType(16), wide)
        self.number = ir.VectorType(ir.FloatType(), wide)
        self.bits = ir.VectorType(ir.IntType(1), wide)

    def _all(self, bits: int) -> Any:
        return ir.Constant(self.word, [bits] * self.wide)

    def widen(self, halves: Any) -> Any:
        """As :func:`_from_bfloat16`."""
        words = self.builder.zext(halves, self.word)
        return self.builder.bitcast(self.builder.shl(words, self._all(16)), self.number)

    def narrow(self, numbers: Any) -> Any:
        """As :func:`_to_bfloat16`."""
        b = self.builder
        bits = b.bitcast(numbers, self.word)
        high = b.lshr(bits, self._all(16))
        odd = b.and_(high, self._all(1))
        near = b.lshr(b.add(b.add(bits, odd), self._all(0x7FFF)), self._all(16))
        unordered = b.fcmp_unordered("uno", numbers, numbers)
        chosen = b.select(unordered, b.or_(high, self._all(0x40)), near)
        return b.trunc(chosen, self.half)

    def load(self, data: Any, place: Any, halves: bool) -> Any:
        """The numbers from a place on."""
        kind = self.half if halves else self.number
        pointer = self.builder.bitcast(self.builder.gep(data, [place]), kind.as_pointer())
        found = self.builder.load(pointer, align=2 if halves else 4)
        return self.widen(found) if halves else found

    def store(self, halves: Any, data: Any, place: Any) -> None:
        """To a place on."""
        pointer = self.builder.bitcast(self.builder.gep(data, [place]), self.half.as_pointer())
        self.builder.store(halves, pointer, align=2)

    def spread(self, value: Any) -> Any:
        """One number, word or bit in all places."""
        empty = ir.Constant(ir.VectorType(value.type, self.wide), ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(first, empty, self._all(0))

    def load_words(self, data: Any, place: Any) -> Any:
        """Words from a place on."""
        pointer = self.builder.bitcast(self.builder.gep(data, [place]), self.word.as_pointer())
        return self.builder.load(pointer, align=4)

    def store_words(self, words: Any, data: Any, place: Any) -> None:
        """As :meth:`load_words`."""
        pointer = self.builder.bitcast(self.builder.gep(data, [place]), self.word.as_pointer())
        self.builder.store(words, pointer, align=4)

    def load_bits(self, data: Any, place: Any) -> Any:
        """A bit for every element from a place on; ``data`` are bytes."""
        kind = ir.IntType(self.wide).as_pointer()
        byte = self.builder.lshr(place, place.type(3))
        pointer = self.builder.bitcast(self.builder.gep(data, [byte]), kind)
        return self.builder.bitcast(self.builder.load(pointer, align=1), self.bits)

    def store_bits(self, bits: Any, data: Any, place: Any) -> None:
        """As :meth:`load_bits`."""
        packed = self.builder.bitcast(bits, ir.IntType(self.wide))
        byte = self.builder.lshr(place, place.type(3))
        pointer = self.builder.bitcast(self.builder.gep(data, [byte]), packed.type.as_pointer())
        self.builder.store(packed, pointer, align=1)

    def key(self, number: Any) -> Any:
        """The bits of magnitudes, which are ordered as these are."""
        return self.builder.and_(self.builder.bitcast(number, self.word), self._all(0x7FFFFFFF))

    def constant(self, number: float) -> Any:
        """A number known now in all places."""
        return ir.Constant(self.number, [number] * self.wide)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        kind = ir.FunctionType(self.number, [self.number] * 3)
        name = f"llvm.fma.v{self.wide}f32"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

    def told(self, found: list[Any], exact: Any, stored: Any, part: Any) -> list[Any]:
        """What is added up for the report, as products; see :func:`merganser.engine.kernels.combine`."""
        b = self.builder
        nothing, ones = self.constant(0.0), self.constant(1.0)
        apart = [b.fsub(numbers, found[0]) for numbers in found[1:]]
        moved = b.fsub(stored, b.fmul(part, found[0]))
        error = b.fsub(stored, exact)
        products = [(x, y) for i, x in enumerate(apart) for y in apart[: i + 1]]
        unequal = [b.fcmp_unordered("!=", x, nothing) for x in apart]
        products += [(b.select(each, ones, nothing), ones) for each in unequal]
        products += [(moved, x) for x in apart]
        return [*products, (error, error)]

    def zeros(self, sums: int) -> list[Any]:
        """Room for sums."""
        return [cgutils.alloca_once_value(self.builder, self.constant(0.0)) for _ in range(sums)]

    def add(self, products: list[Any], places: list[Any]) -> None:
        """To the sums."""
        for place, (x, y) in zip(places, products, strict=True):
            self.builder.store(self.fma(x, y, self.builder.load(place)), place)

    def totals(self, places: list[Any]) -> list[Any]:
        """The sums over all lanes, halves first."""
        return [self._total(self.builder.load(place)) for place in places]

    def total_of_words(self, words: Any) -> Any:
        """The sum over all lanes, as a word of 64 bits."""
        total, word = ir.IntType(64)(0), ir.IntType(32)
        for lane in range(self.wide):
            each = self.builder.extract_element(words, word(lane))
            total = self.builder.add(total, self.builder.zext(each, total.type))
        return total

    def _total(self, vector: Any) -> Any:
        lanes = [self.builder.extract_element(vector, ir.IntType(32)(n)) for n in range(self.wide)]
        while len(lanes) > 1:
            middle = len(lanes) // 2
            pairs = zip(lanes[:middle], lanes[middle:], strict=True)
            lanes = [self.builder.fadd(*pair) for pair in pairs]
        return lanes[0]


DOUBLES, CHAINS = 8, 4
"""A sum runs in so many chains of vectors of float64: enough to keep a processor busy, and in an order
of its own, so that it is the same on every processor."""


def summations(builder: Any, count: Any, sums: int, terms: Any) -> list[Any]:
    """Code for several sums over ``count`` elements, a multiple of DOUBLES * CHAINS; ``terms(place)``
    gives for each the DOUBLES numbers from a place on."""
    vector = ir.VectorType(ir.DoubleType(), DOUBLES)
    size = count.type
    zero = ir.Constant(vector, [0.0] * DOUBLES)
    chains = [
        [cgutils.alloca_once_value(builder, zero) for _ in range(CHAINS)] for _ in range(sums)
    ]
    steps = builder.udiv(count, size(DOUBLES * CHAINS))
    with cgutils.for_range(builder, steps) as loop:
        begin = builder.mul(loop.index, size(DOUBLES * CHAINS))
        for number in range(CHAINS):
            found = terms(builder.add(begin, size(number * DOUBLES)))
            for chain, term in zip(chains, found, strict=True):
                builder.store(builder.fadd(builder.load(chain[number]), term), chain[number])
    return [_joined(builder, [builder.load(part) for part in chain]) for chain in chains]


def _joined(builder: Any, parts: list[Any]) -> Any:
    """The sum of all lanes of four vectors."""
    parts = [builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3])]
    total = builder.fadd(*parts)
    lanes = [builder.extract_element(total, ir.IntType(32)(n)) for n in range(DOUBLES)]
    while len(lanes) > 1:
        lanes = [builder.fadd(lanes[n], lanes[n + 1]) for n in range(0, len(lanes), 2)]
    return lanes[0]
