"""What a manifest knows of a folder: every flipped bit is found, and values that are not numbers are told."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from checkpoints_on_disk import make_model, tree
from merganser.cli import main
from merganser.errors import InputError
from merganser.merging.convert import convert
from merganser.merging.merge import merge
from merganser.merging.verify import verify
from merganser.release import card, manifest
from messages import assert_one_line

NAN, INF = float("nan"), float("inf")


def told(folder: Path) -> list[str]:
    """What verify says, an error of it too."""
    try:
        return verify(folder)
    except InputError as error:
        return [str(error)]


def test_a_flip_in_any_file_is_named(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(linear, out, shard_size="4kB")
    assert verify(out) == []
    for name, data in tree(out).items():
        for place in {0, len(data) // 3, len(data) - 1}:
            for bit in (0, 6):
                flipped = bytearray(data)
                flipped[place] ^= 1 << bit
                (out / name).write_bytes(flipped)
                found = told(out)
                part = "tensor" if name.endswith(".safetensors") and place > 4096 else name
                assert any(part in problem for problem in found), (name, place, bit, found)
                assert all(len(problem.splitlines()) == 1 for problem in found)
        (out / name).write_bytes(data)
    assert verify(out) == []


def test_a_missing_and_a_foreign_file_are_named(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(linear, out)
    (out / "chat_template.jinja").unlink()
    shutil.copy(out / "model.safetensors", out / "pytorch_model.bin")
    (out / "notes.txt").write_text("mine")
    first, second = verify(out)
    assert_one_line(first, "chat_template.jinja", "No such file")
    assert_one_line(second, "pytorch_model.bin", "not in the manifest")


def test_a_card_that_is_written_anew_is_taken_note_of(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = merge(linear, out).manifest
    card.write_card(made, "merge_method: linear\n", out, "Another title")
    assert "Another title" in (out / "README.md").read_text()
    assert verify(out) == []
    (out / "README.md").write_text("by hand")
    assert verify(out) == ["README.md is not what was written"]


def test_inputs_are_digested_as_they_are_read(linear: Path, tmp_path: Path) -> None:
    merge(linear, tmp_path / "out", shard_size="4kB", threads=3, memory=300_000_000)
    stated = manifest.read(tmp_path / "out")
    own = merge({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "b")}]},
                tmp_path / "copy")  # fmt: skip
    assert stated["inputs"][1]["tensors"] == own.manifest["tensors"]
    assert verify(tmp_path / "out", recompute=True) == []
    elsewhere = tmp_path / "elsewhere"
    for name in ("a", "b"):
        shutil.copytree(tmp_path / name, elsewhere / name)
    assert verify(tmp_path / "out", against=elsewhere) == []
    file = elsewhere / "b" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 64
    file.write_bytes(data)
    first, second = verify(tmp_path / "out", against=elsewhere)
    assert_one_line(first, "tensor 'model.norm.weight' of the input ./b is not what was merged")
    assert_one_line(second, "merged again from the inputs: tensor 'model.norm.weight'")


def test_without_digests_of_contents_inputs_are_known_by_their_headers(
    linear: Path, tmp_path: Path
) -> None:
    stated = merge(linear, tmp_path / "out", digest_inputs=False).manifest
    assert all("tensors" not in each and each["digest"] is None for each in stated["inputs"])
    assert all(each["header_digest"].startswith("sha256:") for each in stated["inputs"])
    assert verify(tmp_path / "out", recompute=True) == []


def test_the_digest_of_an_input_is_that_of_its_tensors(linear: Path, tmp_path: Path) -> None:
    first, second = merge(linear, tmp_path / "out").manifest["inputs"]
    lines = sorted(f"{name} {digest}\n" for name, digest in second["tensors"].items())
    assert second["digest"] == f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    assert first["header_digest"] == second["header_digest"]
    assert first["digest"] != second["digest"]


def published(cache: Path, name: str, commit: str, **model: Any) -> str:
    """A model in the Hub's cache, its weights stored by their SHA-256; gives that."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = make_model(home / "snapshots" / commit, **model)
    weights = snapshot / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (home / "blobs").mkdir(exist_ok=True)
    weights.rename(home / "blobs" / digest)
    weights.symlink_to(Path("../../blobs") / digest)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    return digest


def test_inputs_on_the_hub_are_known_by_their_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, first, later = tmp_path / "hub", "0" * 40, "1" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    digest = published(cache, "org/expert", first, seed=1)
    local = make_model(tmp_path / "local", seed=2)
    models = [{"model": "org/expert"}, {"model": str(local)}]
    data = {"merge_method": "linear", "models": models, "parameters": {"weight": 1.0}}
    expert, other = merge(data, tmp_path / "out").manifest["inputs"]
    assert expert["commits"] == {"org/expert": first}
    assert expert["hashes"] == {"model.safetensors": f"sha256:{digest}"}
    line = f"model.safetensors sha256:{digest}\n".encode()
    assert expert["digest"] == f"sha256:{hashlib.sha256(line).hexdigest()}"
    assert "tensors" not in expert  # it is not read again for digests
    assert other["commits"] == {}
    assert len(other["tensors"]) == len(manifest.read(tmp_path / "out")["tensors"])
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"[`{first[:12]}`](https://huggingface.co/org/expert/tree/{first})" in text
    assert f"`{other['digest'][7:23]}` (contents)" in text
    published(cache, "org/expert", later, seed=3)
    assert merge(data, tmp_path / "now").manifest["inputs"][0]["commits"] == {"org/expert": later}
    assert verify(tmp_path / "out", recompute=True) == []  # from the commit that was merged


def broken(dtype: torch.dtype, **places: float) -> dict[str, torch.Tensor]:
    tensor = torch.full((40, 16), 0.25)
    for place, value in places.items():
        tensor.view(-1)[int(place[1:])] = value
    return {"model.extra.weight": tensor.to(dtype)}


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("linear", torch.bfloat16),
        ("linear", torch.float64),
        ("task_arithmetic", torch.float16),
        ("ties", torch.bfloat16),
        ("passthrough", torch.float16),
        ("passthrough", torch.float32),
        ("nearswap", torch.bfloat16),
    ],
)
def test_values_that_are_no_numbers_are_counted(
    tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    a = make_model(tmp_path / "a", dtype=dtype, seed=1, extra=broken(dtype))
    b = make_model(tmp_path / "b", dtype=dtype, seed=2, extra=broken(dtype, _3=NAN, _600=-INF))
    models: list[dict[str, Any]] = [{"model": str(folder)} for folder in (a, b)]
    recipe: dict[str, Any] = {"merge_method": method, "models": models}
    if method == "passthrough":
        recipe["models"] = models[1:]
    elif method == "nearswap":
        recipe |= {"base_model": str(a), "models": models[1:], "parameters": {"t": 0.5}}
    else:
        recipe |= {"parameters": {"weight": 0.5}}
        recipe |= {"base_model": str(a)} if method != "linear" else {}
    result = merge(recipe, tmp_path / "out")
    found = result.manifest["nonfinite"]
    assert found["inputs"] == {str(b): {"model.extra.weight": 2}}
    if method != "ties":
        assert found["output"]["model.extra.weight"] >= 2
    assert any(f"{b} has values that are infinite" in warning for warning in result.warnings)
    with pytest.raises(InputError) as error:
        merge(recipe, tmp_path / "other", on_nonfinite="error")
    assert_one_line(str(error.value), str(b), "model.extra.weight", "2 values")
    assert not list(tmp_path.glob("other*"))


def test_an_overflow_of_the_result_is_its_own(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "a", dtype=torch.float32, extra=broken(torch.float32, _7=1e6))
    result = convert(folder, tmp_path / "out", dtype="float16")
    assert result.manifest["nonfinite"] == {"inputs": {}, "output": {"model.extra.weight": 1}}
    with pytest.raises(InputError, match=r"the result has 1 values .* out_dtype: float32"):
        convert(folder, tmp_path / "other", dtype="float16", on_nonfinite="error")


def test_all_numbers_are_no_warning(linear: Path, tmp_path: Path) -> None:
    result = merge(linear, tmp_path / "out", on_nonfinite="error")
    assert result.manifest["nonfinite"] == {"inputs": {}, "output": {}}


def test_the_command_line_names_what_is_damaged(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = [str(linear), str(out), "-q", "--digest-inputs", "--on-nonfinite", "error"]
    assert CliRunner().invoke(main, ["merge", *asked]).exit_code == 0
    assert CliRunner().invoke(main, ["verify", str(out), "--against", str(tmp_path)]).exit_code == 0
    data = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(data | {"hidden_size": 8}))
    found = CliRunner().invoke(main, ["verify", str(out)])
    assert found.exit_code == 3
    assert_one_line(found.stderr, "config.json is not what was written")
