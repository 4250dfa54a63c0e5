"""PyTorch's archives: what a pickle may name, what damage does, and that nothing in it is ever run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed._shard.sharded_tensor.metadata import MEM_FORMAT_ENCODING
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from archives import rezipped
from merganser.checkpoints import torch_pickle
from merganser.checkpoints.training import dcp, deepspeed, fsdp
from merganser.errors import InputError
from messages import assert_one_line


def with_pickle(folder: Path, data: bytes) -> Path:
    """An archive of PyTorch's whose pickle is this."""
    torch.save({"t": torch.arange(4.0)}, folder / "good.pt")
    return rezipped(
        folder / "good.pt",
        folder / "evil.pt",
        lambda name, content: data if name.endswith("data.pkl") else content,
    )


def refused(file: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        torch_pickle.load(file)
    assert_one_line(str(error.value), str(file), *parts)
    assert len(str(error.value)) < 400 + len(str(file))


# -- nothing is run --------------------------------------------------------------------------------


class Marker:
    """Unpickled by Python itself, this makes a file."""

    def __init__(self, mark: Path, how: str) -> None:
        self.mark, self.how = str(mark), how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "system":
            return os.system, (f"touch {self.mark}",)
        if self.how == "eval":
            return eval, (f"open({self.mark!r}, 'w').close()",)
        if self.how == "exec":
            return exec, (f"open({self.mark!r}, 'w').close()",)
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("how", ["system", "eval", "exec", "mkdir"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("place", ["alone", "in a state dict", "beside tensors"])
def test_a_pickle_that_would_run_code_never_does(
    tmp_path: Path, how: str, protocol: int, place: str
) -> None:
    mark = tmp_path / "mark"
    evil: Any = Marker(mark, how)
    if place == "in a state dict":
        evil = OrderedDict(weight=evil)
    if place == "beside tensors":
        torch.save({"t": torch.arange(4.0), "x": evil}, tmp_path / "evil.pt")
        file = tmp_path / "evil.pt"
    else:
        file = with_pickle(tmp_path, pickle.dumps(evil, protocol))
    refused(file, "asks for", how)
    assert not mark.exists()
    with zipfile.ZipFile(file) as opened:  # the mark would have been left
        data = opened.read(next(n for n in opened.namelist() if n.endswith("data.pkl")))
    if place != "beside tensors":
        pickle.loads(data)
        assert mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\nN}\x8c\x05_callN\x86b.",  # slots of a function
        b"ctorch._utils\n_rebuild_tensor_v2\n}\x8c\x01xNsb.",
        b"ccollections\nOrderedDict\n}\x8c\x01xNsb.",  # into the class itself
        b"ctorch\nTensor\nN}\x8c\x0c__setstate__Ns\x86b.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nNtR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nTensor\nNN)tR.",
        b"ctorch._utils\n_rebuild_wrapper_subclass\n(\x8c\x01xtR.",
        b"ctorch._utils\n_rebuild_wrapper_subclass\n(ccollections\nOrderedDict\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"c__builtin__\neval\n.",
        b"\x80\x04\x8c\x05torch\x8c\x10load.__globals__\x93.",
        b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
        b"(ios\nsystem\n.",
        b"\x82\x01.",
        b"P1\n.",
        b"(\x8c\x07storageNNNNtQ.",
        b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x01\x30\x8c\x03cpuJ\xff\xff\xff\x7ftQ.",
    ],
)  # fmt: skip
def test_tricks_of_pickles(tmp_path: Path, code: bytes) -> None:
    before = {
        f"{module}.{key}": vars(value)
        for module in ("archive", "listed_names", "stand_ins", "unpickling")
        for key, value in vars(getattr(torch_pickle, module)).items()
        if isinstance(value, type)
    }
    state = {key: dict(attributes) for key, attributes in before.items()}
    refused(with_pickle(tmp_path, code))
    assert {key: dict(attributes) for key, attributes in before.items()} == state


# -- getattr, with which some releases of Python pickle members of enumerations ---------------------


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str, protocol: int = 0) -> bytes:
    if protocol >= 4:
        return text(module) + text(name) + b"\x93"
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("builtins", ["builtins", "__builtin__"])
@pytest.mark.parametrize(
    ("module", "kind", "names", "values"),
    [
        (module, kind, room.NAMES, {member.name: member.value for member in members})
        for room in (dcp, fsdp)
        for module, kind, members in (
            ("torch.distributed.checkpoint", "_MEM_FORMAT_ENCODING", _MEM_FORMAT_ENCODING),
            ("torch.distributed._shard.sharded_tensor", "MEM_FORMAT_ENCODING", MEM_FORMAT_ENCODING),
        )
    ]
    + [
        (
            "deepspeed.runtime.zero",
            "ZeroStageEnum",
            deepspeed.NAMES,
            {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3},
        )
    ],
)
def test_members_by_name_are_those_by_value(
    tmp_path: Path,
    module: str,
    kind: str,
    names: torch_pickle.Names,
    values: dict[str, int],
    builtins: str,
    protocol: int,
) -> None:
    module += ".config" if kind == "ZeroStageEnum" else ".metadata"
    cls = named(module, kind, protocol)
    for member, value in values.items():
        asked = named(builtins, "getattr", protocol) + b"(" + cls + text(member) + b"tR."
        by_name = torch_pickle.unpickle(asked, tmp_path, names)
        by_value = torch_pickle.unpickle(cls + b"K" + bytes([value]) + b"\x85R.", tmp_path, names)
        assert type(by_name) is type(by_value) is names[module, kind]
        assert by_name.arguments == by_value.arguments == (value,)
        assert by_name.state is by_value.state is None


LISTED: torch_pickle.Names = {
    **torch_pickle.GETATTR,
    ("a", "Kind"): torch_pickle.enumeration("Kind", A=1),
    ("a", "Plain"): torch_pickle.record("Plain"),
    ("a", "call"): torch_pickle.Function(len),
}
_KIND, _PLAIN, _CALL = (named("a", name) for name in ("Kind", "Plain", "call"))
_GETATTR = named("builtins", "getattr")


def getattr_of(*arguments: bytes) -> bytes:
    return _GETATTR + b"(" + b"".join(arguments) + b"tR"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (getattr_of(_KIND, text("B")), "the attribute 'B' of Kind"),
        (getattr_of(_KIND, text("A.real")), "the attribute 'A.real' of Kind"),
        (getattr_of(_KIND, text("")), "the attribute '' of Kind"),
        (getattr_of(_KIND, text("a\nb")), "the attribute 'a\\nb' of Kind"),
        (getattr_of(_KIND, text("x" * 250)), "the attribute '" + "x" * 40 + "' of Kind"),
        (getattr_of(_KIND, text("__class__")), "the attribute '__class__' of Kind"),
        (getattr_of(_KIND, text("__subclasses__")), "the attribute '__subclasses__' of Kind"),
        (getattr_of(_KIND, text("__setstate__")), "the attribute '__setstate__' of Kind"),
        (getattr_of(_KIND, text("members")), "the attribute 'members' of Kind"),
        (getattr_of(_PLAIN, text("arguments")), "the attribute 'arguments' of Plain"),
        (getattr_of(_PLAIN, text("A")), "the attribute 'A' of Plain"),
        (
            getattr_of(named("collections", "OrderedDict"), text("fromkeys")),
            "the attribute 'fromkeys' of Dictionary",
        ),
        (getattr_of(_CALL, text("_call")), "the attribute '_call' of a Function"),
        (getattr_of(_GETATTR, text("__globals__")), "the attribute '__globals__' of a Function"),
        (getattr_of(named("torch", "float32"), text("name")), "the attribute 'name' of a DType"),
        (getattr_of(text("x"), text("format")), "the attribute 'format' of a str"),
        (getattr_of(b"]", text("append")), "the attribute 'append' of a list"),
        (getattr_of(_KIND + b"K\1\x85R", text("A")), "the attribute 'A' of a Kind"),
        (getattr_of(getattr_of(_KIND, text("A")), text("A")), "the attribute 'A' of a Kind"),
        (
            getattr_of(getattr_of(_KIND, text("A")), text("__class__")),
            "the attribute '__class__' of a Kind",
        ),
        (getattr_of(_KIND, b"K\1"), "a nameless attribute of Kind"),
        (getattr_of(_KIND, b"N"), "a nameless attribute of Kind"),
        (getattr_of(_KIND, b"]"), "a nameless attribute of Kind"),
        (getattr_of(_KIND, b"C\1A"), "a nameless attribute of Kind"),
        (getattr_of(_KIND, getattr_of(_KIND, text("A"))), "a nameless attribute of Kind"),
        (getattr_of(_KIND, text("A"), _CALL), "the attribute 'A' of Kind"),
        (getattr_of(_KIND), "an attribute of nothing"),
        (getattr_of(named("os", "path"), text("join")), "os.path"),
        (getattr_of(named("a", "Other"), text("A")), "a.Other"),
        (getattr_of(named("a", "Kind.A", 4), text("A")), "a.Kind.A"),
        (named("builtins", "getattr.__self__", 4), "builtins.getattr.__self__"),
        (named("builtins", "setattr") + b"(" + _KIND + text("A") + b"NtR", "builtins.setattr"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_getattr_gives_what_is_listed_and_no_more(tmp_path: Path, code: bytes, told: str) -> None:
    with pytest.raises(InputError) as error:
        torch_pickle.unpickle(code + b".", tmp_path / "x.pt", LISTED)
    assert_one_line(
        str(error.value), f"x.pt: its pickle asks for {told}", "which weights do not need"
    )
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_member_that_is_changed_is_so_for_nobody_else(tmp_path: Path) -> None:
    asked = getattr_of(_KIND, text("A"))
    changed, fresh = torch_pickle.unpickle(
        b"(" + asked + b"}" + text("x") + b"Nsb" + asked + b"t.", tmp_path, LISTED
    )
    assert (changed.state, fresh.state) == ({"x": None}, None)
    for code in (_KIND + b"}b.", _GETATTR + b"}b.", _GETATTR + b")\x81."):
        with pytest.raises(InputError, match="damaged"):
            torch_pickle.unpickle(code, tmp_path, LISTED)


def test_what_is_asked_for_is_named_in_one_line(tmp_path: Path) -> None:
    torch.save({"t": torch.arange(4.0), "x": Path("x")}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "asks for pathlib", "Path", "safetensors")
    refused(with_pickle(tmp_path, b"\x80\x04\x8c\x04os\n\n\x8c\x06system\x93."), "os")
    refused(with_pickle(tmp_path, b"\x80\x04X\x00\x10\x00\x00" + b"x" * 4096 + b"\x8c\x01y\x93."))


@given(st.data())
@settings(max_examples=300)
def test_any_damage_is_an_input_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    torch.save(OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.arange(3)), buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.pt"
    file.write_bytes(content)
    try:
        torch_pickle.load(file)
    except InputError as error:
        assert_one_line(str(error), str(file))


# -- tensors that lie ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"K\x04\x85q", b"K\x05\x85q", "beyond"),  # the size
        (b"K\x01\x85q", b"K\x02\x85q", "beyond"),  # the stride
        (b"tq\x07QK\x00", b"tq\x07QK\x01", "beyond"),  # the offset
        (b"cpuq\x06K\x04", b"cpuq\x06K\x05", "needs 20"),  # the storage
        (b"X\x01\x00\x00\x000q", b"X\x01\x00\x00\x009q", "storage '9'"),
        (b"FloatStorage", b"DoubleStorage", "needs 32"),
        (b"K\x04\x85q", b"N\x85q", "not a size"),
        (b"K\x04\x85q", b"J\xff\xff\xff\xff\x85q", "not a size"),
        (b"K\x04\x85q", b"\x88\x85q", "not a size"),
        (b"K\x04\x85q", b"K\x04K\x01\x86q", "axes"),
    ],
)
def test_a_tensor_that_lies(tmp_path: Path, old: bytes, new: bytes, part: str) -> None:
    torch.save({"t": torch.arange(4.0)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as opened:
        data = opened.read("good/data.pkl")
    assert data.count(old) == 1, pickletools.dis(data)
    refused(with_pickle(tmp_path, data.replace(old, new)), part)


def test_a_conjugated_view_is_refused(tmp_path: Path) -> None:
    torch.save({"t": torch.zeros(2, dtype=torch.complex64).conj()}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "conjugated")


# -- archives of other kinds -----------------------------------------------------------------------


def test_the_format_before_1_6(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "m.pt", "before 1.6", "torch.save(")


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(2)}, tmp_path / "good.pt")
    how = {"compression": zipfile.ZIP_DEFLATED}
    file = rezipped(tmp_path / "good.pt", tmp_path / "m.pt", lambda _, data: data, **how)
    refused(file, "compressed", "zip -0")


def test_a_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        for name in ("m/data.pkl", "m/constants.pkl"):
            made.writestr(name, b"N.")
    refused(tmp_path / "m.pt", "TorchScript")


def test_a_big_endian_machine(tmp_path: Path) -> None:
    torch.save({"t": torch.ones(2)}, tmp_path / "good.pt")
    file = rezipped(
        tmp_path / "good.pt",
        tmp_path / "m.pt",
        lambda name, data: b"big" if name.endswith("byteorder") else data,
    )
    refused(file, "big-endian")


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04", b"\x80\x02}.", b"x" * 5000])
def test_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.pt").write_bytes(content)
    refused(tmp_path / "m.pt", "cut off, damaged, or not a PyTorch file")


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as made:
        made.writestr("word/document.xml", b"<>")
    refused(tmp_path / "m.pt", "that PyTorch did not write")


def test_an_archive_inside_a_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"t": torch.arange(4.0)}, buffer)
    file = tmp_path / "parts"
    file.write_bytes(b"x" * 77 + buffer.getvalue() + b"y" * 33)
    found = torch_pickle.load(file, at=77, length=len(buffer.getvalue()))["t"]
    assert file.read_bytes()[found.offset :][:16] == torch.arange(4.0).numpy().tobytes()
    with pytest.raises(InputError, match="cut off"):
        torch_pickle.load(file, at=77, length=len(buffer.getvalue()) + 34)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    torch.save({"t": torch.arange(4.0)}, tmp_path / "m.pt")
    code = (
        "import sys; from merganser.checkpoints import open_checkpoint; "
        f"print(open_checkpoint({str(tmp_path / 'm.pt')!r}).specs['t']); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("float32[4]\n", "")
