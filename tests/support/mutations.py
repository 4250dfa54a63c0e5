"""Hostile inputs by the thousand: small models in every format, and ways to spoil their files.

A :class:`Kind` is a folder that merges, the files of it that are spoiled, and what is done with it.
Changes know the format: they edit JSON trees, opcodes of pickles, fields of headers, and bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickletools
import random
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoints_on_disk import config, make_model, save_weights, write_json
from merganser.tokenizer.vocabulary import AS_SPECIAL, AddedToken

Change = Callable[[bytes, random.Random], bytes]

NUMBERS: list[Any] = [0, -1, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1]
NUMBERS += [2**63 - 1, 2**63, 2**64, 10**12, 10**40, -(2**63), 0.5, -0.0, 1e308, 5e-324, 1e16]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS: list[Any] = ["", "0", "12", "1e5", "a", "..", ".", "../x", "../../etc/passwd", "/etc/passwd"]
TEXTS += [
    "\0",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "|",
    "`",
    "---",
    "<b>",
    "\ud800",
    "😀",
    "x" * 5000,
    "NaN",
]
TEXTS += ["model", "F32", "BF16", "I64", "float32", "auto", "union", "base", "{{ w }}", "(a+)+$"]
SHAPES: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, [0] * 300, {"content": 1}]

TOKENS = [
    b"&a ",
    b"*a",
    b"!!python/object:os.system ",
    b"<<: *a",
    b"? ",
    b"- ",
    b"{{",
    b"}}",
    b"{%",
]
TOKENS += [
    b"|\n",
    b">",
    b"%YAML 1.1",
    b"---\n",
    b"...",
    b"!!int ",
    b"!!binary ",
    b"!!set ",
    b"[",
    b"]",
]
TOKENS += [
    b"{",
    b"}",
    b": ",
    b", ",
    b"\n",
    b"\t",
    b"'",
    b'"',
    b"\\",
    b"\xff",
    b"\0",
    b"0x",
    b"1:1:1",
    b".inf",
]
TOKENS += [
    b"2001-01-01",
    b"1e999",
    b"**",
    b"|round",
    b"|int",
    b"[0]",
    b".a",
    b" if ",
    b"~",
    b"9" * 30,
]
"""What is inserted into texts: of YAML, JSON and expressions."""


@dataclass
class Kind:
    """One kind of input.

    Attributes:
        name: its own.
        files: a folder that can be merged, by path.
        targets: patterns of the files that are spoiled.
        change: spoils one of them, by its name.
        run: does with the folder what a user would; the second argument is where output may go.
        seeds: more that is right, by file.
        found: what did something new when it was tried, by file.
    """

    name: str
    files: Mapping[str, bytes]
    targets: tuple[str, ...]
    change: Callable[[str, bytes, random.Random], bytes]
    run: Callable[[Path, Path], None]
    seeds: dict[str, list[bytes]] = field(default_factory=dict)
    found: dict[str, list[bytes]] = field(default_factory=dict)

    def spoiled(self, rng: random.Random) -> dict[str, bytes]:
        """Some of its files, changed."""
        names = [n for n in self.files if any(re.fullmatch(p, n) for p in self.targets)]
        chosen = rng.sample(names, 1 + (len(names) > 1 and rng.random() < 0.1))
        made = {}
        for name in chosen:
            data = rng.choice([self.files[name], *self.seeds.get(name, [])])
            if name in self.found and rng.random() < 0.4:
                data = rng.choice(self.found[name])
            for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
                data = self.change(name, data, rng)
            made[name] = data[: 2**21]
        return made

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Go on from files that did something new."""
        for name, data in files.items():
            kept = self.found.setdefault(name, [])
            if len(data) < 2**17:
                kept.append(data)
            del kept[:-200]


# -- changes -----------------------------------------------------------------------------------------


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, insert, or put an extreme number somewhere."""
    made = bytearray(data)
    at = rng.randrange(len(made) + 1)
    match rng.randrange(8):
        case 0 | 1:
            for _ in range(rng.choice([1, 1, 2, 8])):
                if made:
                    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        case 2:
            del made[at:]
        case 3:
            del made[at : at + rng.choice([1, 2, 4, 8, 64])]
        case 4:
            made[at:at] = rng.randbytes(rng.choice([1, 2, 4, 8, 64]))
        case 5:
            other = rng.randrange(len(made) + 1)
            made[at:at] = made[other : other + rng.choice([1, 8, 64, 512])]
        case 6:
            width = rng.choice([1, 2, 4, 8])
            value = rng.choice([n for n in NUMBERS if isinstance(n, int)]) % 256**width
            made[at : at + width] = value.to_bytes(width, rng.choice(["little", "big"]))
        case _:
            made[at:at] = rng.choice(TOKENS)
    return bytes(made)


def nasty(rng: random.Random) -> Any:
    """A value that nobody expects."""
    if rng.random() < 0.05:
        value: Any = rng.choice(NUMBERS)
        for _ in range(rng.choice([20, 70, 300])):
            value = [value] if rng.random() < 0.5 else {rng.choice(["a", "text_config"]): value}
        return value
    return rng.choice(rng.choice([NUMBERS, TEXTS, SHAPES]))


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every container of a tree with every one of its keys."""
    found, left = [], [data]
    while left:
        part = left.pop()
        keys = (
            list(part)
            if isinstance(part, dict)
            else range(len(part))
            if isinstance(part, list)
            else ()
        )
        for key in keys:
            found.append((part, key))
            left.append(part[key])
    return found


def of_tree(data: Any, rng: random.Random) -> Any:
    """Change one place of nested data."""
    found = places(data)
    if not found:
        return nasty(rng)
    part, key = rng.choice(found)
    match rng.randrange(9):
        case 0 | 1 | 2:
            part[key] = nasty(rng)
        case 3:
            del part[key]
        case 4:
            value = part[key]
            part[key] = [value] if rng.random() < 0.5 else {str(key): value}
        case 5:
            other, there = rng.choice(found)
            if not any(p is part[key] for p, _ in places(other[there])):
                part[key] = json.loads(json.dumps(other[there]))
        case 6:
            if isinstance(part, dict):
                part[str(rng.choice([*TEXTS, *[k for _, k in found]]))] = nasty(rng)
            else:
                part.insert(key, nasty(rng))
        case 7:
            if isinstance(part[key], int | float) and not isinstance(part[key], bool):
                part[key] = rng.choice([-part[key], part[key] + 1, part[key] - 1, str(part[key])])
            elif isinstance(part[key], str):
                part[key] = rng.choice(
                    [part[key] * 2, part[key][:-1], rng.choice(TEXTS) + part[key]]
                )
            else:
                part[key] = nasty(rng)
        case _:
            if isinstance(part, list):
                part.extend([part[key]] * rng.choice([1, 2, 50]))
            else:
                part[key] = nasty(rng)
    return data


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Change a JSON file, mostly by its tree."""
    if rng.random() < 0.15:
        return of_bytes(data, rng)
    try:
        tree = json.loads(data)
        return json.dumps(of_tree(tree, rng), ensure_ascii=rng.random() < 0.9).encode()
    except (ValueError, RecursionError):
        return of_bytes(data, rng)


def of_yaml(data: bytes, rng: random.Random) -> bytes:
    """Change a YAML file: by its lines and words, or, as JSON, by its tree."""
    import yaml

    if rng.random() < 0.5:
        try:
            [tree] = yaml.load_all(data, yaml.CSafeLoader)
            text = json.dumps(of_tree(tree, rng)).replace("NaN", ".nan").replace("Infinity", ".inf")
            return text.encode()
        except Exception:  # whatever PyYAML makes of it
            pass
    words = re.split(rb"([\s:{}\[\],]+)", data)
    at = rng.randrange(len(words))
    match rng.randrange(6):
        case 0:
            words[at] = rng.choice(TOKENS)
        case 1:
            words.insert(at, rng.choice(TOKENS))
        case 2:
            words[at] = str(rng.choice([*NUMBERS, *TEXTS])).encode("utf-8", "replace")
        case 3:
            words[at] = words[rng.randrange(len(words))]
        case 4:
            lines = data.splitlines(keepends=True)
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines or [b"a: b\n"]))
            return b"".join(lines)
        case _:
            return of_bytes(data, rng)
    return b"".join(words)


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header, and mostly tell its length rightly."""
    if len(data) < 8 or rng.random() < 0.15:
        return of_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    header = _lawful(header, rng) if rng.random() < 0.3 else of_json(header, rng)
    if rng.random() < 0.1:  # a name twice
        header = header.replace(b'"model.norm.weight"', b'"lm_head.weight"', 1)
    stated = len(header) if rng.random() < 0.9 else rng.choice([0, 1, 2**63, 2**64 - 1, 10**8 + 1])
    return stated.to_bytes(8, "little") + header + body


def _lawful(header: bytes, rng: random.Random) -> bytes:
    """A header that still fits the bytes, but tells something else of them."""
    try:
        data = json.loads(header)
        name = rng.choice([name for name in data if name != "__metadata__"])
        entry = data[name]
        width = {"F32": ["I32", "U32"], "BF16": ["F16", "I16"], "F16": ["BF16"]}
        match rng.randrange(4):
            case 0:
                entry["dtype"] = rng.choice(width.get(entry["dtype"], ["F32"]))
            case 1:
                entry["shape"] = rng.choice(
                    [[1, *entry["shape"]], entry["shape"][::-1], [*entry["shape"], 1]]
                )
            case 2:
                new = rng.choice(
                    [str(rng.choice(TEXTS)), name + ".x", name.replace("0", "9"), f"{name}_scale"]
                )
                data = {new if key == name else key: value for key, value in data.items()}
            case _:
                entry["shape"] = [math.prod(entry["shape"])]
        return json.dumps(data).encode()
    except (ValueError, LookupError, TypeError, AttributeError):
        return of_json(header, rng)


_PIECES = [
    b"N",
    b"]",
    b"}",
    b")",
    b"(",
    b"0",
    b"2",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"R",
    b"b",
    b"s",
]
_PIECES += [
    b"u",
    b"a",
    b"e",
    b"h\x00",
    b"q\x00",
    b"j\x00\x00\x00\x00",
    b"r\xff\xff\xff\x1f",
    b"\x94",
    b"1",
]
_PIECES += [
    b"\x8f",
    b"\x90",
    b"\x91",
    b"K\x01",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09" + b"\xff" * 9,
    b"Q",
    b"\x81",
]
_PIECES += [
    b"\x93",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"ctorch\nSize\n",
    b"ccollections\nOrderedDict\n",
]
_PIECES += [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"\x96" + b"\xff" * 7 + b"\x00",
    b"\x8c\x01x",
    b"G" + b"\x7f" * 8,
]
_PIECES += [
    b"B\xff\xff\xff\x7f",
    b"T\xff\xff\xff\x7f",
    b"X\xff\xff\xff\x7f",
    b"I10\n",
    b"L99999999999L\n",
    b".",
]


def of_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change opcodes."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    try:
        at = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception:
        return of_bytes(data, rng)
    parts = [data[a:b] for a, b in zip(at, [*at[1:], len(data)], strict=True)]
    here = rng.randrange(len(parts))
    match rng.randrange(6):
        case 0:
            del parts[here : here + rng.choice([1, 1, 2, 5])]
        case 1:
            parts[here:here] = [rng.choice(_PIECES) for _ in range(rng.choice([1, 1, 2, 30]))]
        case 2:
            parts[here] = rng.choice(_PIECES)
        case 3:
            parts[here] = parts[rng.randrange(len(parts))]
        case 4:
            parts[here] = of_bytes(parts[here], rng)
        case _:
            there = rng.randrange(len(parts))
            parts[here:here] = parts[there : there + rng.choice([1, 3, 20])]
    return b"".join(parts)


def of_archive(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle in a file of PyTorch's, or its zip archive."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            entries = {info.filename: old.read(info) for info in old.infolist()}
        name = next(n for n in entries if n.endswith("data.pkl"))
        entries[name] = of_pickle(entries[name], rng)
        if rng.random() < 0.05:
            entries[rng.choice(["../x", "/etc/x", "a/data.pkl", "x" * 300])] = b"x"
        buffer = io.BytesIO()
        how = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
        with zipfile.ZipFile(buffer, "w", how) as new:
            for name, content in entries.items():
                new.writestr(name, content)
        return buffer.getvalue()
    except Exception:
        return of_bytes(data, rng)


def of_gguf(data: bytes, rng: random.Random) -> bytes:
    """Change a field of the header, found by reading it."""
    fields: list[tuple[int, int]] = []
    with contextlib.suppress(IndexError, KeyError):
        _fields_of_gguf(data, fields)
    if not fields or rng.random() < 0.15:
        return of_bytes(data[: rng.choice([len(data), 4096])], rng)
    at, width = rng.choice(fields)
    old = int.from_bytes(data[at : at + width], "little")
    ints = [n for n in NUMBERS if isinstance(n, int)]
    value = rng.choice([rng.choice(ints), old + 1, old - 1, old * 2, rng.randrange(32)])
    return data[:at] + (value % 256**width).to_bytes(width, "little") + data[at + width :]


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _fields_of_gguf(data: bytes, fields: list[tuple[int, int]]) -> None:
    def number(at: int, width: int) -> int:
        if at + width > len(data):
            raise IndexError
        fields.append((at, width))
        return int.from_bytes(data[at : at + width], "little")

    def text(at: int) -> int:
        return at + 8 + number(at, 8)

    number(4, 4)
    tensors, keys, at = number(8, 8), number(16, 8), 24
    for _ in range(keys):
        at = text(at)
        kind, at = number(at, 4), at + 4
        if kind == 8:
            at = text(at)
        elif kind == 9:
            inner, count, at = number(at, 4), number(at + 4, 8), at + 12
            for _ in range(min(count, 100)):
                at = text(at) if inner == 8 else at + _SIZES[inner]
        else:
            number(at, _SIZES[kind])
            at += _SIZES[kind]
    for _ in range(tensors):
        at = text(at)
        axes, at = number(at, 4), at + 4
        for _ in range(axes):
            number(at, 8)
            at += 8
        number(at, 4)
        number(at + 4, 8)
        at += 12


def by_name(name: str, data: bytes, rng: random.Random) -> bytes:
    """The change that goes with a file's name."""
    if name.endswith(".json"):
        return of_json(data, rng)
    if name.endswith((".yml", ".jinja")):
        return of_yaml(data, rng)
    if name.endswith(".safetensors"):
        return of_safetensors(data, rng)
    if name.endswith(".metadata"):
        return of_pickle(data, rng)
    if name.endswith((".bin", ".pt")):
        return of_archive(data, rng)
    return of_gguf(data, rng) if name.endswith(".gguf") else of_bytes(data, rng)


# -- what is done with them --------------------------------------------------------------------------


def merging(folder: Path, out: Path) -> None:
    """Look at the model, and merge as the recipe says."""
    from merganser.merging.merge import merge
    from merganser.release import fact_sheet

    fact_sheet.inspect(str(folder / "a"))
    merge(folder / "recipe.yml", out, threads=1)


def chained(folder: Path, out: Path) -> None:
    """Merge all that a file of recipes says."""
    from merganser.merging import multistage

    multistage.merge_all(folder / "recipe.yml", out, threads=1)


def planning(folder: Path, out: Path) -> None:
    """Plan the points of a sweep."""
    from merganser.study import sweep

    sweep.plan_points(folder / "recipe.yml")


# -- the kinds ---------------------------------------------------------------------------------------

LINEAR = """
merge_method: linear
models:
  - model: a
    parameters: {weight: 0.25}
  - model: b
    parameters: {weight: [0.5, 1]}
dtype: float32
"""

SLICES = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources: [{model: b, layer_range: [1, 3]}]
dtype: float32
"""

UNION = """
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
chat_template: auto
tokenizer:
  source: union
  tokens:
    user: {source: b, force: true}
    new: {source: {kind: model_token, model: a, token_id: 3}}
    "<s>": {source: {kind: zero}}
"""

SLERP = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: 0.3}, {value: 0.5}]
dtype: bfloat16
out_dtype: float32
rounding: stochastic
seed: 7
"""

CHAIN = """
name: first
merge_method: ties
base_model: a
models: [{model: b, parameters: {weight: 0.5, density: 0.3}}]
parameters: {normalize: true, int8_mask: true}
---
merge_method: slerp
slices:
  - sources: [{model: first, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]
base_model: a
parameters: {t: 0.5}
tokenizer_source: base
"""

SWEEP = """
name: m_w{{ w }}_{{ pair.first }}
sweep:
  w: {from: 0.1, to: 0.9, step: 0.4}
  pair: [{first: 0.5, second: [1, 2]}, {first: 0.7, second: 0}]
merge_method: "{{ 'linear' if w < 0.5 else 'ties'|lower }}"
base_model: "{{ 'a' if w >= 0.5 else none }}"
models:
  - model: a
    parameters: {weight: "{{ (1 - w)|round(3) }}"}
  - model: b
    parameters: {weight: "{{ w * pair.first // 1 + pair['first'] ** 2 }}", density: 0.5}
"""

SWEEP_2 = """
sweep: [{k: [1, 2]}, {k: 3}]
merge_method: linear
models: [{model: a, parameters: {weight: "{{ k % 2 + 0.5 }}"}}, {model: b, parameters: {weight: "{{ k }}"}}]
parameters: {normalize: "{{ not k > 1 or k == 2 }}"}
"""

PER_LAYER = {
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "sliding_window_pattern": 2,
    "full_attention_interval": 2,
    "mlp_only_layers": [1],
    "moe_layers": [0, 2],
    "interleave_moe_layer_step": 2,
    "decoder_sparse_step": 2,
    "first_k_dense_replace": 1,
    "max_window_layers": 2,
    "use_sliding_window": True,
    "num_nextn_predict_layers": 1,
    "pruned_heads": {"1": [0]},
    "block_types": ["a", "b"],
    "attention_types": [[["global", "local"], 2]],
    "attention_layers": ["global", "local"] * 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_kv_shared_layers": 1,
    "hybrid_override_pattern": "M*M*",
    "quantization_config": None,
    "text_config": {"num_hidden_layers": 4, "vocab_size": 32, "tie_word_embeddings": False},
    "dtype": "float32",
}


def read_tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds; their models are made in a folder, which may go afterwards."""
    made: list[Kind] = []

    def pair(name: str, recipe: str, **how: Any) -> Path:
        home = folder / name
        options = {"hidden": 8, "dtype": torch.float32} | how
        make_model(home / "a", seed=1, **options)
        make_model(home / "b", seed=2, **options)
        (home / "recipe.yml").write_text(recipe)
        return home

    def add(name: str, home: Path, targets: tuple[str, ...], run: Any = merging) -> None:
        made.append(Kind(name, read_tree(home), targets, by_name, run))

    add("safetensors", pair("safetensors", LINEAR, layers=1), (r"a/.*\.safetensors",))
    add("index", pair("index", LINEAR, layers=1, shards=3), (r"a/.*index\.json",))
    home = pair("config", SLICES, layers=4)
    for name in "ab":
        write_json(home / name / "config.json", config(layers=4, hidden=8) | PER_LAYER)
    add("config", home, (r".*/config\.json", r".*/generation_config\.json"))
    home = pair("tokenizer", UNION, layers=1)
    tokenizer = json.loads((home / "b/tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"extra": 20, "more": 21}
    tokenizer["added_tokens"] = [AddedToken("<x>", 22, AS_SPECIAL).entry()]
    write_json(home / "b/tokenizer.json", tokenizer)
    settings = json.loads((home / "b/tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        "22": {"content": "<x>", "special": True},
        "23": {"content": "<y>"},
    }
    settings["additional_special_tokens"] = ["<x>", {"content": "<z>"}]
    settings["chat_template"] = [
        {"name": "default", "template": "{{ messages[0].content }} and so on"}
    ]
    write_json(home / "b/tokenizer_config.json", settings)
    (home / "b/chat_template.jinja").unlink()
    write_json(
        home / "b/special_tokens_map.json", {"eos_token": {"content": "</s>"}, "pad_token": "<x>"}
    )
    write_json(home / "b/added_tokens.json", {"<y>": 23, "<w>": 24})
    add("tokenizer", home, (r"b/(tok|spec|added).*\.json", r"a/(tokenizer.*\.json|chat.*)"))
    home = pair("recipe", SLERP, layers=2)
    add("recipe", home, (r"recipe\.yml",), chained)
    for text in (
        LINEAR,
        UNION,
        CHAIN,
        SLICES.replace("[0, 4]", "[0, 2]").replace("[1, 3]", "[1, 2]"),
    ):
        made[-1].seeds.setdefault("recipe.yml", []).append(text.encode())
    home = pair("sweep", SWEEP, layers=1)
    add("sweep", home, (r"recipe\.yml",), planning)
    made[-1].seeds["recipe.yml"] = [SWEEP_2.encode()]
    home = pair("pickle", LINEAR, layers=1)
    _pickled(home / "a")
    add("pickle", home, (r"a/.*\.bin",))
    home = pair("deepspeed", LINEAR, layers=1)
    _deepspeed(home / "a")
    add("deepspeed", home, (r"a/.*\.pt", r"a/latest"))
    home = pair("dcp", LINEAR, layers=1)
    _distributed(home / "a")
    add("dcp", home, (r"a/.*(\.metadata|\.distcp)",))
    home = pair("fsdp", LINEAR, layers=1)
    _fsdp(home / "a")
    add("fsdp", home, (r"a/.*\.pt", r"a/fsdp_config\.json"))
    home = pair("adapter", LINEAR.replace("model: a", "model: a+lora"), layers=1)
    _adapter(home / "lora")
    add("adapter", home, (r"lora/.*",), adapted)
    add("gguf", _gguf(folder / "gguf"), (r"a/.*\.gguf",))
    return {kind.name: kind for kind in made}


def adapted(folder: Path, out: Path) -> None:
    """Look at a model with an adapter, and merge it."""
    from merganser.merging.merge import merge
    from merganser.release import fact_sheet

    fact_sheet.inspect(f"{folder / 'a'}+{folder / 'lora'}")
    merge(folder / "recipe.yml", out, threads=1)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return found


def _pickled(folder: Path) -> None:
    torch.save(_tensors(folder), folder / "pytorch_model.bin")


def _deepspeed(folder: Path) -> None:
    from sources import write_zero

    tensors = _tensors(folder)
    tensors.pop("lm_head.weight")
    tensors |= {"frozen": torch.ones(3), "buffer": torch.ones(2)}
    write_zero(folder / "global_step1", tensors, 2, 1, 1)
    for file in (folder / "global_step1").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "global_step1").rmdir()


def _distributed(folder: Path) -> None:
    import warnings

    from torch.distributed import checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(_tensors(folder), checkpoint_id=folder / "step", no_dist=True)
    for file in (folder / "step").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "step").rmdir()


def _fsdp(folder: Path) -> None:
    """Two ranks' files, as DTensors that one process makes of a mesh that is not there."""
    from torch import distributed
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    tensors = _tensors(folder)
    for rank in range(2):
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        mesh = DeviceMesh("cpu", [0, 1])
        parts = {}
        for name, whole in tensors.items():
            local = [*whole.chunk(2), whole[:0]][rank].clone()
            parts[name] = DTensor.from_local(
                local, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
            )
        torch.save(parts, folder / f"model_world_size_2_rank_{rank}.pt")
        distributed.destroy_process_group()
    write_json(folder / "fsdp_config.json", {"FSDP_version": 2, "world_size": 2})


def _adapter(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    stem = "base_model.model.model.layers.0"
    tensors = {}
    for part in ("q_proj", "o_proj"):
        tensors[f"{stem}.self_attn.{part}.lora_A.weight"] = torch.ones(2, 8)
        tensors[f"{stem}.self_attn.{part}.lora_B.weight"] = torch.ones(8, 2)
    tensors[f"{stem}.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(8)
    tensors["base_model.model.model.norm.weight"] = torch.ones(8)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, r".*\.o_pr.*": 2},
        "alpha_pattern": {r"self_attn\.q_proj": 3.5},
        "use_rslora": False,
        "use_dora": True,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": ["q_proj", "o_proj"],
        "bias": "none",
    }
    write_json(folder / "adapter_config.json", settings)


def _gguf(home: Path) -> Path:
    import ggufs

    tensors = {name: value for name, value in ggufs.llama().items() if ".1." not in name}
    settings = ggufs.LLAMA | {"num_hidden_layers": 1}
    keys = {"tokenizer.ggml.tokens": ["a", "b", "c"], "tokenizer.ggml.bos_token_id": 1}
    keys |= {"tokenizer.ggml.scores": [0.5, 1.5], "llama.rope.scaling.type": "none"}
    ggufs.save(home / "a/model.gguf", tensors, settings, "Q8_0", keys)
    (home / "b").mkdir()
    save_weights(home / "b", tensors)
    write_json(home / "b/config.json", settings)
    (home / "recipe.yml").write_text(LINEAR)
    return home
