"""The steps of :mod:`consensus` for few models, in registers: every stored number is read once, and
nothing is written but the result.

Inputs are uint8 [k, bytes], the base first, all bfloat16 or all float32; elements ``low`` to ``low +
size`` of them are meant, ``size`` a multiple of WIDE. A change is kept if its key is not below the first
of its model's ``cuts``, but below the second, and its bit is set in ``bits``, uint8 [k-1, BLOCK / 8].
Results are the same, bit for bit, as those of the loops for any number of models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from merganser.engine.vectors import DOUBLES, WIDE, Vectors, summations


class _Code:
    """What every step needs: its arguments by their names, as LLVM's values."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, names: str) -> None:
        self.context, self.builder = context, builder
        self.types = dict(zip(names.split(), signature.args, strict=True))
        self.values = dict(zip(names.split(), args, strict=True))

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def array(self, name: str) -> Any:
        """A pointer to the first element."""
        return self._structure(name).data

    def row(self, name: str, index: Any) -> Any:
        """A pointer to the first element of a row, of an array in C's order."""
        array = self._structure(name)
        length = self.builder.extract_value(array.shape, 1)
        return self.builder.gep(array.data, [self.builder.mul(length, self._whole(index))])

    def element(self, name: str, index: int) -> Any:
        """One element, of an array in C's order."""
        return self.builder.load(self.builder.gep(self.array(name), [self._whole(index)]))

    def _whole(self, index: Any) -> Any:
        return ir.IntType(64)(index) if isinstance(index, int) else index

    def _structure(self, name: str) -> Any:
        return self.context.make_array(self.types[name])(self.context, self.builder, self[name])

    def reader(self, v: Vectors, index: Any, stored: int) -> Callable[[Any], Any]:
        """Loads the numbers of an input from a place behind ``low`` on."""
        kind = ir.IntType(16) if stored == 2 else ir.FloatType()
        place = self.builder.load(self.builder.gep(self.array("inputs"), [self._whole(index)]))
        row = self.builder.inttoptr(place, kind.as_pointer())
        begin = self.builder.gep(row, [self["low"]])
        return lambda place: v.load(begin, place, stored == 2)

    def keeper(self, v: Vectors, model: int) -> Callable[[Any, Any], Any]:
        """Tells which of a model's changes are kept, from a place on."""
        low, high = (v.spread(self.element("cuts", 2 * model + n)) for n in (0, 1))
        bits, b = self.row("bits", model), self.builder

        def kept(change: Any, place: Any) -> Any:
            key = v.key(change)
            inside = b.and_(b.icmp_unsigned(">=", key, low), b.icmp_unsigned("<", key, high))
            return b.and_(inside, v.load_bits(bits, place))

        return kept


@intrinsic(prefer_literal=True)
def merge_few(
    _context,
    k,
    stored,
    inputs,
    low,
    size,
    cuts,
    bits,
    factors,
    weights,
    total_weight,
    scale,
    elect,
    weighted,
    counted,
    out,
    report,
):
    """What :func:`merganser.engine.consensus.merge` does, to bfloat16.

    Args:
        k, stored: literals, how many inputs, and the bytes of a number: 2 for bfloat16, 4 for float32.
        inputs, low, size, cuts, bits: see above.
        factors, weights, total_weight, scale: float32, as in ``merge``.
        elect, weighted, counted: whether a sign is elected, and whether the sum is divided by the total
            weight or by the weights that counted.
        out: uint8, filled from element ``low`` on.
        report: whether to add up for it.

    Returns:
        The sums of :func:`merganser.engine.kernels._survey_few`.
    """
    names = "k stored inputs low size cuts bits factors weights total scale elect weighted counted out report"
    k, stored = k.literal_value, stored.literal_value
    sums = k * (k - 1) // 2 + 2 * (k - 1) + 1 + k - 1

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, v, b = _Code(context, builder, signature, args, names), Vectors(builder), builder
        nil, one = v.constant(0.0), v.constant(1.0)
        readers = [code.reader(v, i, stored) for i in range(k)]
        keepers = [code.keeper(v, m) for m in range(k - 1)]
        factors = [v.spread(code.element("factors", m)) for m in range(k - 1)]
        weights = [v.spread(code.element("weights", m)) for m in range(k - 1)]
        total_weight, scale = v.spread(code["total"]), v.spread(code["scale"])
        anyway = v.spread(b.not_(code["elect"]))
        target = b.bitcast(code.array("out"), ir.IntType(16).as_pointer())
        target = b.gep(target, [code["low"]])
        places = v.zeros(sums)
        count = code["size"]
        with cgutils.for_range(b, b.udiv(count, count.type(WIDE))) as loop:
            at = b.mul(loop.index, count.type(WIDE))
            found = [read(at) for read in readers]
            kept = []
            for factor, numbers, keep in zip(factors, found[1:], keepers, strict=True):
                change = b.fsub(numbers, found[0])
                kept.append(b.select(keep(change, at), b.fmul(factor, change), nil))
            total = kept[0]
            for row in kept[1:]:
                total = b.fadd(total, row)
            up = b.fcmp_ordered(">=", total, nil)
            agreed = share = None
            for row, weight in zip(kept, weights, strict=True):
                alike = b.not_(b.xor(b.fcmp_ordered(">", row, nil), up))
                chosen = b.and_(b.fcmp_unordered("!=", row, nil), b.or_(alike, anyway))
                mine, its = b.select(chosen, row, nil), b.select(chosen, weight, nil)
                agreed = mine if agreed is None else b.fadd(agreed, mine)
                share = its if share is None else b.fadd(share, its)
            result = cgutils.alloca_once_value(b, b.select(code["elect"], agreed, total))
            with b.if_then(b.or_(code["weighted"], code["counted"])):
                some = b.select(b.fcmp_unordered("!=", share, nil), share, one)
                divisor = b.select(code["counted"], some, total_weight)
                b.store(b.fdiv(b.load(result), divisor), result)
            exact = b.fadd(found[0], b.fmul(scale, b.load(result)))
            rounded = v.narrow(exact)
            v.store(rounded, target, at)
            with b.if_then(code["report"]):
                moved = b.fsub(exact, found[0])
                ideal = [(moved, b.fsub(numbers, found[0])) for numbers in found[1:]]
                v.add([*v.told(found, exact, v.widen(rounded), one), *ideal], places)
        return cgutils.pack_array(b, v.totals(places))

    # fmt: off
    arguments = (
        types.literal(k), types.literal(stored), inputs, types.intp, types.intp, cuts, bits, factors,
        weights, types.float32, types.float32, types.boolean, types.boolean, types.boolean, out,
        types.boolean,
    )
    # fmt: on
    return types.UniTuple(types.float32, sums)(*arguments), generate


@intrinsic(prefer_literal=True)
def norms_few(_context, k, stored, inputs, low, size, cuts, bits, squares):
    """The sums of |x|, or of x squared if ``squares``, of all changes and of the kept ones, in the order
    of :func:`merganser.engine.kernels._inner`: float64 [2 (k - 1)], model by model."""
    k, stored = k.literal_value, stored.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        names = "k stored inputs low size cuts bits squares"
        code, b = _Code(context, builder, signature, args, names), builder
        v = Vectors(builder, DOUBLES)
        double = ir.VectorType(ir.DoubleType(), DOUBLES)
        nothing = ir.Constant(double, [0.0] * DOUBLES)
        readers = [code.reader(v, i, stored) for i in range(k)]
        keepers = [code.keeper(v, m) for m in range(k - 1)]
        squared = code["squares"]
        magnitude = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(double, [double]), f"llvm.fabs.v{DOUBLES}f64"
        )

        def terms(place: Any) -> list[Any]:
            first, found = readers[0](place), []
            for read, keep in zip(readers[1:], keepers, strict=True):
                change = b.fsub(read(place), first)
                wide = b.fpext(change, double)
                term = b.select(squared, b.fmul(wide, wide), b.call(magnitude, [wide]))
                found += [term, b.select(keep(change, place), term, nothing)]
            return found

        return cgutils.pack_array(b, summations(b, code["size"], 2 * (k - 1), terms))

    arguments = (
        types.literal(k),
        types.literal(stored),
        inputs,
        types.intp,
        types.intp,
        cuts,
        bits,
    )
    return types.UniTuple(types.float64, 2 * (k - 1))(*arguments, types.boolean), generate


def _scan(code: _Code, v: Vectors, key_at: Callable[[Any], Any]) -> Any:
    """The loop of :func:`scan_few`."""
    b = v.builder
    low, high, one, two = (v.spread(code[name]) for name in ("bottom", "top", "guess", "other"))
    into = code.array("into")
    none = ir.Constant(v.word, [0] * WIDE)
    places = [cgutils.alloca_once_value(b, none) for _ in range(3)]
    fill = cgutils.alloca_once_value(b, code["n"])
    kind = ir.FunctionType(ir.VoidType(), [v.word, ir.IntType(32).as_pointer(), v.bits])
    name = f"llvm.masked.compressstore.v{WIDE}i32"
    store = cgutils.get_or_insert_function(b.module, kind, name)
    count = code["size"]
    with cgutils.for_range(b, b.udiv(count, count.type(WIDE))) as loop:
        key = key_at(b.mul(loop.index, count.type(WIDE)))
        outside = [b.icmp_unsigned("==", key, one), b.icmp_unsigned("==", key, two)]
        outside.append(b.icmp_unsigned(">", key, high))
        inside = b.icmp_unsigned(">=", key, low)
        for place, mask in zip(places, outside, strict=True):
            inside = b.and_(inside, b.not_(mask))
            b.store(b.sub(b.load(place), b.sext(mask, v.word)), place)
        packed = b.bitcast(inside, ir.IntType(WIDE))
        with b.if_then(b.icmp_unsigned("!=", packed, packed.type(0))):
            begin = b.load(fill)
            b.call(store, [key, b.gep(into, [begin]), inside])
            b.store(b.add(begin, b.zext(b.ctpop(packed), begin.type)), fill)
    found = [b.sub(b.load(fill), code["n"])]
    found += [v.total_of_words(b.load(place)) for place in places]
    return cgutils.pack_array(b, found)


_BRACKET = "bottom top guess other into n"


@intrinsic(prefer_literal=True)
def scan_few(_context, stored, inputs, low, size, model, bottom, top, guess, other, into, n):
    """Keys of one model's changes in a bracket, but for two guesses, are stored from ``into[n]`` on.

    Returns:
        How many these are, how many equal each guess, and how many lie above the bracket.
    """
    stored = stored.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        names = f"stored inputs low size model {_BRACKET}"
        code, v = _Code(context, builder, signature, args, names), Vectors(builder)
        first, row = (code.reader(v, i, stored) for i in (0, code["model"]))
        return _scan(code, v, lambda place: v.key(builder.fsub(row(place), first(place))))

    bracket = types.uint32, types.uint32, types.uint32, types.uint32, into, types.intp
    arguments = types.literal(stored), inputs, types.intp, types.intp, types.intp, *bracket
    return types.UniTuple(types.intp, 4)(*arguments), generate


@intrinsic
def scan_keys(_context, keys, size, bottom, top, guess, other, into, n):
    """As :func:`scan_few`, of ``size`` keys that are there already."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        names = f"keys size {_BRACKET}"
        code, v = _Code(context, builder, signature, args, names), Vectors(builder)
        keys = code.array("keys")
        return _scan(code, v, lambda place: v.load_words(keys, place))

    bracket = types.uint32, types.uint32, types.uint32, types.uint32, into, types.intp
    return types.UniTuple(types.intp, 4)(keys, types.intp, *bracket), generate


def _draw(code: _Code, v: Vectors, take: Callable[[Any, Any], None]) -> None:
    """Gives ``take`` the draws of :func:`merganser.engine.kernels._draw`, WIDE at a time, from
    ``index`` on, and their places."""
    b = v.builder
    word = ir.IntType(64)
    wide = ir.VectorType(word, WIDE)

    def every(number: int) -> Any:
        return ir.Constant(wide, [number % 2**64] * WIDE)

    golden = 0x9E3779B97F4A7C15
    steps = ir.Constant(wide, [golden * (lane + 1) % 2**64 for lane in range(WIDE)])
    begin = b.add(code["seed"], b.mul(code["index"], word(golden)))
    state = cgutils.alloca_once_value(b, b.add(v.spread(begin), steps))
    count = code["size"]
    with cgutils.for_range(b, b.udiv(count, count.type(WIDE))) as loop:
        z = b.load(state)
        b.store(b.add(z, every(golden * WIDE)), state)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = b.mul(b.xor(z, b.lshr(z, every(shift))), every(factor))
        take(b.xor(z, b.lshr(z, every(31))), b.mul(loop.index, count.type(WIDE)))


@intrinsic
def draw_bits(_context, seed, chance, index, size, bits, row):
    """Sets a row of ``bits``: whether the draws of ``size`` elements from ``index`` on are below
    ``chance``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        names = "seed chance index size bits row"
        code, v = _Code(context, builder, signature, args, names), Vectors(builder)
        chance, target = v.spread(code["chance"]), code.row("bits", code["row"])

        def compare(draws: Any, place: Any) -> None:
            v.store_bits(builder.icmp_unsigned("<", draws, chance), target, place)

        _draw(code, v, compare)
        return context.get_dummy_value()

    whole = types.uint64, types.uint64, types.intp, types.intp
    return types.void(*whole, bits, types.intp), generate


@intrinsic
def draw_words(_context, seed, index, size, into):
    """Sets ``into``, uint32, to the upper halves of the draws of ``size`` elements from ``index`` on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, v = _Code(context, builder, signature, args, "seed index size into"), Vectors(builder)
        target = code.array("into")

        def put(draws: Any, place: Any) -> None:
            upper = builder.lshr(draws, ir.Constant(draws.type, [32] * WIDE))
            v.store_words(builder.trunc(upper, v.word), target, place)

        _draw(code, v, put)
        return context.get_dummy_value()

    return types.void(types.uint64, types.intp, types.intp, into), generate


@intrinsic(prefer_literal=True)
def keys_few(_context, stored, inputs, low, size, model, into):
    """Sets ``into``, uint32, to the keys of one model's changes; returns the greatest."""
    stored = stored.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        names = "stored inputs low size model into"
        code, v, b = _Code(context, builder, signature, args, names), Vectors(builder), builder
        first, row = (code.reader(v, i, stored) for i in (0, code["model"]))
        into = code.array("into")
        greatest = cgutils.alloca_once_value(b, ir.Constant(v.word, [0] * WIDE))
        count = code["size"]
        with cgutils.for_range(b, b.udiv(count, count.type(WIDE))) as loop:
            at = b.mul(loop.index, count.type(WIDE))
            key, known = v.key(b.fsub(row(at), first(at))), b.load(greatest)
            b.store(b.select(b.icmp_unsigned(">", key, known), key, known), greatest)
            v.store_words(key, into, at)
        lanes, most = b.load(greatest), ir.IntType(32)(0)
        for lane in range(WIDE):
            key = b.extract_element(lanes, ir.IntType(32)(lane))
            most = b.select(b.icmp_unsigned(">", key, most), key, most)
        return most

    arguments = types.literal(stored), inputs, types.intp, types.intp, types.intp, into
    return types.uint32(*arguments), generate


@intrinsic
def count_words(_context, words, begin, end, word):
    """How many of ``words[begin:end]``, uint32, are less than a word, and how many equal it. Of an
    array there must be WIDE elements more."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, v = _Code(context, builder, signature, args, "words begin end word"), Vectors(builder)
        b, words, wanted = builder, code.array("words"), v.spread(code["word"])
        none = ir.Constant(v.word, [0] * WIDE)
        lanes = ir.Constant(v.word, list(range(WIDE)))
        places = [cgutils.alloca_once_value(b, none) for _ in range(2)]
        count = b.sub(code["end"], code["begin"])
        steps = b.udiv(b.add(count, count.type(WIDE - 1)), count.type(WIDE))
        with cgutils.for_range(b, steps) as loop:
            at = b.mul(loop.index, count.type(WIDE))
            found = v.load_words(words, b.add(code["begin"], at))
            left = v.spread(b.trunc(b.sub(count, at), ir.IntType(32)))
            within = b.icmp_signed("<", lanes, left)
            for place, relation in zip(places, ("<", "=="), strict=True):
                mask = b.and_(within, b.icmp_unsigned(relation, found, wanted))
                b.store(b.sub(b.load(place), b.sext(mask, v.word)), place)
        return cgutils.pack_array(b, [v.total_of_words(b.load(place)) for place in places])

    return types.UniTuple(types.intp, 2)(words, types.intp, types.intp, types.uint32), generate
