"""GGUF, the files of llama.cpp: dense llama, qwen2 and qwen3 under the names of transformers.

The format (versions 2 and 3): the magic ``GGUF``, counts of tensors and of keys, keys with typed
values (the model's sizes, its vocabulary), for each tensor its name, sizes (innermost first), type and
offset, then the tensors' bytes, aligned. Quantised tensors are dequantised as ranges of them are read, to
float32; results made of them are bfloat16 unless a dtype is asked for. llama's queries and keys lie
there with the two halves of each head interleaved, and are read in the order of transformers.

A ``config.json`` beside the file is taken; else one is made of the keys. So are the tokenizer's files, in
a temporary folder that is there until the process ends.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from merganser.checkpoints import ggml, gguf_tokenizer
from merganser.checkpoints.computed.derived import Derived, DerivedCheckpoint, read_stored
from merganser.checkpoints.protocol import VOCABULARIES, Checkpoint, Stamp
from merganser.checkpoints.sidecar_files import read_config
from merganser.checkpoints.stored import Piece, StoredCheckpoint, StoredTensor
from merganser.errors import InputError, ResourceError
from merganser.tensors import BY_NAME, FLOAT32, DType, TensorSpec

Array = np.ndarray[Any, Any]

SUFFIX = ".gguf"

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

MAX_HEADER = 256 * 2**20
"""Greatest size of all before the tensors' bytes; real ones, with their vocabularies, take 10 MB."""

MAX_ENTRIES = 1 << 21
"""Greatest number of texts; real vocabularies and their merges have under 2^20."""

MAX_NAMED = 1 << 16
"""Greatest number of keys, and of tensors."""

_BFLOAT16 = BY_NAME["bfloat16"]
_UINT8 = BY_NAME["uint8"]

_SCALARS = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
"""The number types of values, as :mod:`struct` names them."""

_TEXT, _ARRAY = 8, 9

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_FACTORS = "rope_freqs.weight"
"""What llama 3 divides its rotary frequencies by, float32 [head size / 2]; in the config elsewhere."""

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a GGUF file.

    Attributes:
        file: the file.
        kind: ggml's number of its type.
        shape: its sizes, outermost first.
        offset: the byte of the file that it begins with.
    """

    file: Path
    kind: int
    shape: tuple[int, ...]
    offset: int


def open_folder(path: Path, label: str) -> Checkpoint | None:
    """Open a GGUF file, or the folder with one; None when there is none.

    Raises:
        InputError: when a header is wrong, or the model is of a kind that is not known here.
    """
    files = _files(path)
    if not files:
        return None
    keys: dict[str, Any] = {}
    entries: dict[str, Entry] = {}
    for number, file in enumerate(files):
        own, tensors = read_header(file)
        keys = keys or own
        _check_part(file, own, number, len(files))
        for name, entry in tensors.items():
            if name in entries:
                raise InputError(f"{file}: tensor {name!r} is also in {entries[name].file.name}")
            entries[name] = entry
    factors = _factors(entries.pop(_FACTORS, None))
    model = _Model(files[0], keys, entries)
    home = path if path.is_dir() or len(files) == 1 else path.parent
    beside = path if path.is_dir() else path.parent
    given = beside / "config.json"
    if given.is_file():
        config = read_config(beside)
        model.check(config, given)
    else:
        config = model.config(factors)
    mine = path.is_dir() or given.is_file()  # else the folder may hold anything
    folder = beside if mine else home
    made: Path | None = None
    notes = []
    if not (mine and any((beside / name).is_file() for name in VOCABULARIES)):
        try:
            made = _companions(files, keys, beside if mine else None)
        except ValueError as error:
            notes.append(f"{label}: no tokenizer can be made of what the file tells: {error}")
    stored = StoredCheckpoint(
        label,
        home,
        {name: model.stored(name) for name in entries},
        format="GGUF",
        files=files,
        config=config,
        path=made or folder,
        notes=notes,
    )
    tensors_of: dict[str, Derived | str] = {}
    for name, entry in entries.items():
        form = ggml.FORMATS.get(entry.kind)
        tensors_of[model.names[name]] = (
            name if form is None else _dequantised(stored, name, entry, form)
        )
    kinds = [
        ggml.FORMATS[entry.kind].name for entry in entries.values() if entry.kind in ggml.FORMATS
    ]
    told = ", ".join(dict.fromkeys(sorted(kinds, key=lambda kind: (-kinds.count(kind), kind))))
    opened = DerivedCheckpoint(
        stored,
        tensors_of,
        config,
        repr([(name, entry.kind) for name, entry in entries.items()]),
        format=f"GGUF ({told})" if told else "GGUF",
    )
    return opened


_made: dict[object, Path] = {}
"""The temporary folders of this process, by what they were made from: a model is opened more than once."""


def _companions(files: Sequence[Path], keys: Mapping[str, Any], beside: Path | None) -> Path | None:
    """A temporary folder with small files that were made, and those that lie beside the model; None
    if there are none to make. It is there until the process ends.

    Raises:
        ResourceError: when it cannot be written.
        ValueError: when the keys tell no tokenizer that is known.
    """
    state = tuple((file.absolute(), Stamp.of(file.stat())) for file in files)
    small = [file for file in beside.iterdir() if file.is_file()] if beside is not None else []
    source = state, tuple((file.name, Stamp.of(file.stat())) for file in sorted(small))
    if source in _made and _made[source].is_dir():
        return _made[source]
    texts = gguf_tokenizer.files(keys)
    if not texts:
        return None
    folder = _made[source] = Path(tempfile.mkdtemp(prefix="merganser-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for file in small:
            if file.suffix in (".json", ".jinja", ".md"):
                (folder / file.name).unlink(missing_ok=True)  # what lies there counts
                (folder / file.name).symlink_to(file.absolute())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ResourceError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder


def _files(path: Path) -> list[Path]:
    """The files that make up the model; empty if there are none.

    Raises:
        InputError: when it is not clear which, or some are missing.
    """
    if path.is_file():
        if path.suffix != SUFFIX:
            return []
        first = path
    else:
        found = [file for file in sorted(path.glob(f"*{SUFFIX}")) if file.is_file()]
        starts = [
            file for file in found if (m := _SPLIT.fullmatch(file.name)) is None or int(m[2]) == 1
        ]
        if len(starts) > 1:
            names = ", ".join(file.name for file in starts[:3])
            raise InputError(
                f"{path}: holds several GGUF models ({names} …); name one of the files"
            )
        if not found:
            return []
        first = (starts or found)[0]
    split = _SPLIT.fullmatch(first.name)
    if split is None:
        return [first]
    count = int(split[3])
    parts = [first.with_name(f"{split[1]}-{i + 1:05d}-of-{split[3]}{SUFFIX}") for i in range(count)]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: is missing, one of the {count} files of this model")
    return parts


def _check_part(file: Path, keys: Mapping[str, Any], number: int, count: int) -> None:
    stated = keys.get("split.count", 0)
    if not isinstance(stated, int):
        raise InputError(f"{file}: split.count is no number")
    if stated not in (0, 1) or count > 1:
        if stated != count:
            raise InputError(
                f"{file}: is one of {stated} files of a model; they are found by names that end in "
                f"-00001-of-{count:05d}{SUFFIX}"
            )
        if keys.get("split.no") != number:
            raise InputError(
                f"{file}: says that it is part {str(keys.get('split.no'))[:20]!r}, not {number}"
            )


# -- the header --------------------------------------------------------------------------------------


class _Stream:
    """A header that is read from its beginning on, and never beyond the file's end."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self.file = file
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.position = 0
        self.texts = 0

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.file}: {what}")

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise self.wrong("its header reaches beyond its end; the file is cut off or no GGUF")
        if self.position + count > MAX_HEADER:
            raise self.wrong(f"its header is larger than {MAX_HEADER >> 20} MiB")
        raw = self.stream.read(count)
        if len(raw) < count:
            raise self.wrong("was cut off while it was read")
        self.position += count
        return raw

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        self.texts += 1
        if self.texts > MAX_ENTRIES:
            raise self.wrong(f"its header has more than {MAX_ENTRIES} texts")
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A value of a key: a number, a text, a list of texts, or an array of numbers."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise self.wrong(f"a key has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            return np.frombuffer(self.take(count * struct.calcsize(f"<{code}")), f"<{code}")
        if inner != _TEXT:
            raise self.wrong(f"an array has elements of the type {inner}, which is not known here")
        if count > MAX_ENTRIES or 8 * count > self.size:
            raise self.wrong(f"an array claims to have {count} texts")
        return [self.text() for _ in range(count)]


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Read the keys of a GGUF file, and its tensors in the order of their bytes.

    Raises:
        InputError: when it is no such file, is cut off, or its tensors overlap.
    """
    try:
        with file.open("rb") as opened:
            stream = _Stream(file, opened)
            if stream.size < 24 or stream.take(4) != b"GGUF":
                raise stream.wrong("does not begin as a GGUF file does; fetch it again")
            version = stream.number("I")
            if version not in (2, 3):
                swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
                what = (
                    "has its bytes in big-endian order" if swapped else f"is of version {version}"
                )
                raise stream.wrong(f"{what}; GGUF of versions 2 and 3, little-endian, can be read")
            tensors, count = stream.number("Q"), stream.number("Q")
            if max(tensors, count) > MAX_NAMED:
                raise stream.wrong(f"its header claims {tensors} tensors and {count} keys")
            keys = {}
            for _ in range(count):
                name = stream.text()
                keys[name] = stream.value(stream.number("I"))
            infos = [_info(stream) for _ in range(tensors)]
            return keys, _entries(stream, keys, infos)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None


def _info(stream: _Stream) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = stream.text(), stream.number("I")
    if not 0 < axes <= 4:
        raise stream.wrong(f"tensor {name[:80]!r} has {axes} axes")
    shape = tuple(reversed([stream.number("Q") for _ in range(axes)]))
    return name, shape, stream.number("I"), stream.number("Q")


def _entries(
    stream: _Stream, keys: Mapping[str, Any], infos: Sequence[tuple[str, tuple[int, ...], int, int]]
) -> dict[str, Entry]:
    """Check where tensors lie: in the file, one behind the other."""
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise stream.wrong(f"general.alignment is {str(alignment)[:40]!r}")
    start = -(-stream.position // alignment) * alignment
    found: dict[str, Entry] = {}
    end = 0
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        if name in found:
            raise stream.wrong(f"has tensor {name!r} twice")
        if offset < end:
            raise stream.wrong(f"the bytes of tensor {name!r} overlap others")
        end = offset + _bytes_of(stream, name, shape, kind)
        if start + end > stream.size:
            raise stream.wrong(
                f"is cut off within tensor {name!r} ({stream.size} bytes of at least {start + end}); "
                "fetch it again"
            )
        found[name] = Entry(stream.file, kind, shape, start + offset)
    return found


def _bytes_of(stream: _Stream, name: str, shape: tuple[int, ...], kind: int) -> int:
    numel = math.prod(shape)
    if kind in ggml.PLAIN:
        return numel * BY_NAME[ggml.PLAIN[kind]].itemsize
    form = ggml.FORMATS.get(kind)
    if form is None:
        known = ", ".join(f.name for f in ggml.FORMATS.values())
        raise stream.wrong(
            f"tensor {name!r} is of the type {ggml.OTHERS.get(kind, kind)}, which cannot be read; "
            f"take the model in F32, F16, BF16 or one of {known}"
        )
    if shape[-1] % form.count:
        raise stream.wrong(f"tensor {name!r}: {form.name} does not go with rows of {shape[-1]}")
    return numel // form.count * form.size


# -- the model ---------------------------------------------------------------------------------------


class _Model:
    """What the keys of a GGUF file say of its tensors."""

    def __init__(self, file: Path, keys: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        self.file = file
        self.keys = keys
        self.entries = entries
        self.kind = str(keys.get("general.architecture"))[:40]
        if self.kind not in ARCHITECTURES:
            raise self._wrong(
                f"holds a model of the kind {self.kind!r}; GGUF can be read of dense models of the "
                f"kinds {', '.join(ARCHITECTURES)}"
            )
        if "token_embd.weight" not in entries:
            raise self._wrong("lacks tensor 'token_embd.weight'")
        self.layers = self._whole("block_count")
        self.hidden = self._whole("embedding_length")
        self.heads = self._whole("attention.head_count")
        self.key_heads = self._whole("attention.head_count_kv", self.heads)
        self.names = {name: self._name(name) for name in entries}
        self.vector = self._type_of_vectors()

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.file}: {what}")

    def _key(self, name: str, default: Any = None) -> Any:
        return self.keys.get(f"{self.kind}.{name}", default)

    def _whole(self, name: str, default: int | None = None) -> int:
        value = self._key(name, default)
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()  # one number a layer
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            told = (
                "is missing"
                if value is None
                else "is no positive whole number that fits all layers"
            )
            raise self._wrong(f"{self.kind}.{name} {told}")
        return value

    def _real(self, name: str, default: float | None = None) -> float | None:
        """A number that was rounded to float32, as the decimal number that it was before."""
        value = self._key(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return default
        return float(f"{value:.6g}")

    def _name(self, name: str) -> str:
        """A tensor's name in transformers."""
        whole, _, leaf = name.rpartition(".")
        if leaf in ("weight", "bias"):
            if whole in _NAMES:
                return f"{_NAMES[whole]}.{leaf}"
            layer = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)", whole)
            if layer and layer[2] in _LAYER_NAMES and int(layer[1]) < self.layers:
                return f"model.layers.{int(layer[1])}.{_LAYER_NAMES[layer[2]]}.{leaf}"
        raise self._wrong(f"tensor {name[:80]!r} is none of a dense {self.kind} model")

    def _type_of_vectors(self) -> DType | None:
        """What vectors in float32 had been before, where the matrices are narrower."""
        sizes: dict[DType, int] = {}
        for entry in self.entries.values():
            plain = ggml.PLAIN.get(entry.kind)
            dtype = BY_NAME[plain] if plain else _BFLOAT16
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(entry.shape)
        widest = max(sizes, key=lambda dtype: sizes[dtype])
        return widest if widest.itemsize < FLOAT32.itemsize else None

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor's bytes lie; those of blocks are uint8 [..., bytes of a row]."""
        entry = self.entries[name]
        form = ggml.FORMATS.get(entry.kind)
        if form is not None:
            spec = TensorSpec(
                _UINT8, (*entry.shape[:-1], entry.shape[-1] // form.count * form.size)
            )
        else:
            spec = TensorSpec(BY_NAME[ggml.PLAIN[entry.kind]], entry.shape)
            if len(entry.shape) == 1 and spec.dtype == FLOAT32:
                spec = replace(spec, narrow=self.vector)
        part = name.split(".")[-2]
        if self.kind != "llama" or part not in ("attn_q", "attn_k"):
            return StoredTensor.dense(spec, entry.file, entry.offset)
        heads = self.heads if part == "attn_q" else self.key_heads
        rows, width = spec.shape[0], math.prod(spec.shape[1:])
        half = rows // heads // 2
        if half * heads * 2 != rows:
            raise self._wrong(f"tensor {name!r} has {rows} rows, which are no {heads} even heads")
        grid = (heads, 2, half, width)  # the file has [heads, half, 2, width]
        stride = (2 * half * width, width, 2 * width, 1)
        piece = Piece(entry.file, entry.offset, grid, stride, (0, 0, 0, 0))
        return StoredTensor.of_pieces(spec, [piece], grid)

    def check(self, config: Mapping[str, Any], file: Path) -> None:
        """Refuse the config of another model."""
        stated = config.get("num_hidden_layers"), config.get("hidden_size")
        if stated != (self.layers, self.hidden):
            raise InputError(
                f"{file}: tells of {stated[0]} layers of size {stated[1]}, but {self.file.name} has "
                f"{self.layers} of size {self.hidden}; take away the one that is not meant"
            )

    def config(self, factors: Array | None) -> dict[str, Any]:
        """The model's ``config.json``, made of the keys.

        Raises:
            InputError: when they do not tell all of it.
        """
        head = self._whole("attention.key_length", self.hidden // self.heads)
        data: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.kind]],
            "model_type": self.kind,
            "vocab_size": self.entries["token_embd.weight"].shape[0],
            "hidden_size": self.hidden,
            "intermediate_size": self._whole("feed_forward_length"),
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": head,
            "hidden_act": "silu",
            "max_position_embeddings": self._whole("context_length"),
            "rms_norm_eps": self._real("attention.layer_norm_rms_epsilon", 1e-6),
            "rope_theta": self._real("rope.freq_base", 10000.0),
            "tie_word_embeddings": "output.weight" not in self.entries,
        }
        if self.kind == "qwen2":
            del data["head_dim"]
        else:
            data["attention_bias"] = "blk.0.attn_q.bias" in self.entries
        if self.kind == "llama":
            data["mlp_bias"] = "blk.0.ffn_up.bias" in self.entries
        scaling = self._scaling(factors, head, data["rope_theta"])
        if scaling is not None:
            data["rope_scaling"] = scaling
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            token = self.keys.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(token, int):
                data[f"{role}_token_id"] = token
        return data

    def _scaling(self, factors: Array | None, head: int, theta: float) -> dict[str, Any] | None:
        """How rotary positions are stretched."""
        how = str(self._key("rope.scaling.type", "none"))[:40]
        if factors is not None:
            found = _llama3(factors, head, theta)
            if found is None:
                raise self._wrong(
                    f"its rotary positions are stretched by factors of its own ({_FACTORS}), of which no "
                    "config can be made; put the model's config.json beside it"
                )
            return found
        if how == "none":
            return None
        factor = self._real("rope.scaling.factor")
        if how not in ("linear", "yarn") or factor is None:
            raise self._wrong(
                f"rope.scaling.type is {how!r}, of which no config can be made; put the model's "
                "config.json beside it"
            )
        data: dict[str, Any] = {"rope_type": how, "factor": factor}
        original = "rope.scaling.original_context_length"
        if how == "yarn" and self._key(original) is not None:
            data["original_max_position_embeddings"] = self._whole(original)
        return data


def _factors(entry: Entry | None) -> Array | None:
    """The few numbers of :data:`_FACTORS`."""
    if entry is None or entry.kind != 0 or len(entry.shape) != 1 or entry.shape[0] > 4096:
        return None
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        return np.frombuffer(stream.read(4 * entry.shape[0]), "<f4") if entry.shape[0] else None


def _llama3(factors: Array, head: int, theta: float) -> dict[str, Any] | None:
    """The config of llama 3's stretched positions, of which all versions differ in the factor only."""
    low, high, context = 1.0, 4.0, 8192
    if factors.shape != (len(range(0, head, 2)),) or not theta > 0:
        return None
    factor = float(f"{factors.max():.6g}")
    waves = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    with np.errstate(all="ignore"):  # factors of damaged files may be anything
        expected = 1 / ((1 - smooth) / factor + smooth)
        if not np.allclose(factors, expected, rtol=1e-3):
            return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }


# -- reading -----------------------------------------------------------------------------------------


def _dequantised(stored: StoredCheckpoint, name: str, entry: Entry, form: ggml.Blocks) -> Derived:
    spec = TensorSpec(FLOAT32, entry.shape, _BFLOAT16)
    return Derived(spec, partial(_fill, stored, name, form))


def _fill(stored: StoredCheckpoint, name: str, form: ggml.Blocks, start: int, into: Array) -> None:
    """Dequantise the blocks that a range of elements lies in."""
    count = len(into) // FLOAT32.itemsize
    first, last = start // form.count, -(-(start + count) // form.count)
    blocks = read_stored(stored, name, first * form.size, (last - first) * form.size)
    skip = start - first * form.count
    into.view(np.float32)[:] = ggml.dequantise(form, blocks)[skip : skip + count]
