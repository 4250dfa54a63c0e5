"""A plan is data: it survives pickling and JSON, and gives the same bytes in another process and place."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import ggufs
import merganser
from checkpoints_on_disk import config, make_model, save_weights, write_json
from merganser.checkpoints.state_dict import MemoryCheckpoint
from merganser.errors import InputError, MerganserError, RecipeError
from merganser.methods import Method, registry
from merganser.planning import Plan, PlanKeywords, PlanOptions, describe
from merganser.planning.plan_loading import load_plan
from merganser.sinks import StateDictSink
from messages import assert_one_line
from sources import FORMS

RUN = """
import hashlib, json, pickle, sys
import torch
import merganser
from merganser.planning.plan_loading import load_plan
from merganser.sinks import StateDictSink

def digests(plan):
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    merganser.run([plan], [sink], threads=1, report=False)
    return {n: hashlib.sha256(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
            for n, t in sink.tensors.items()}

plans = pickle.load(open(sys.argv[1], "rb"))
written = json.load(open(sys.argv[2]))
found = {}
for name, plan in plans.items():
    found[name] = [digests(plan), digests(load_plan(written[name])) if name in written else None]
json.dump(found, sys.stdout)
"""


def linear(*models: object, **keys: Any) -> dict[str, Any]:
    listed = [
        {"model": str(model), "parameters": {"weight": 0.25 + 0.5 * i}}
        for i, model in enumerate(models)
    ]
    return {"merge_method": "linear", "models": listed, **keys}


def alone(model: object) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": str(model)}]}


def recipe_for(method: Method, folders: list[Path]) -> dict[str, Any]:
    """A recipe that a method takes, its required parameters in the middle of their ranges."""
    most = method.models[1] or len(folders)
    count = max(method.models[0], min(2, most))
    base, *models = folders[: count + 1]
    needed = {p.name: 1.0 if p.name == "weight" else 0.5 for p in method.parameters if p.required}
    found: dict[str, Any] = {
        "merge_method": method.name,
        "models": [{"model": str(model)} for model in models],
        "parameters": needed,
        "arithmetic": method.arithmetic,
    }
    return found | ({"base_model": str(base)} if method.base != "none" else {})


Case = tuple[dict[str, Any], PlanKeywords]


def methods(folder: Path) -> dict[str, Case]:
    folders = [make_model(folder / f"m{i}", layers=1, hidden=8, seed=i) for i in range(5)]
    return {
        f"method {method.name} {method.arithmetic}": (recipe_for(method, folders), {})
        for method in registry.registered()
        if method.origin is None
    }


def formats(folder: Path) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for name, form in FORMS.items():
        path, tensors = form(folder / name)
        if all(tensor.dtype != torch.float8_e4m3fn for tensor in tensors.values()):
            found[f"format {name}"] = alone(path), {"strictness": "lenient"}
    return found


def vocabularies(folder: Path) -> dict[str, Case]:
    words = ["<unk>", "<s>", "</s>", "one", "two", "three"]
    a = worded(folder / "a", words, 1)
    b = worded(folder / "b", [*words[:4], "four", "two", "five"], 2)
    donor = worded(folder / "c", [*words[:3], "rare"], 3)
    rule = {"source": {"kind": "model_token", "model": str(donor), "token": "rare"}}
    ruled = {"source": "base", "tokens": {"rare": rule, "none": {"source": {"kind": "zero"}}}}
    return {
        "union": (linear(a, b, tokenizer_source="union"), {}),
        "base": (linear(a, b, base_model=str(a), tokenizer_source="base"), {}),
        "padded": (linear(a, b, tokenizer={"source": "union", "pad_to_multiple_of": 16}), {}),
        "rules": (linear(a, b, base_model=str(a), tokenizer=ruled), {}),
        "outside": (alone(a) | {"tokenizer": {"source": str(donor)}}, {}),
        "truncated": (linear(a, b), {"truncate_embeddings": True}),
        "template": (alone(a) | {"chat_template": "chatml"}, {}),
    }


def worded(folder: Path, words: list[str], seed: int) -> Path:
    make_model(folder, vocab=len(words), hidden=8, layers=1, seed=seed)
    vocab = {word: i for i, word in enumerate(words)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    write_json(folder / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    return folder


def computed(folder: Path) -> dict[str, Case]:
    base = make_model(folder / "base", layers=2, hidden=8)
    other = make_model(folder / "other", layers=3, hidden=8, seed=1)
    adapter = adapter_of(folder / "adapter", 8)
    stack = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(base), "layer_range": [0, 2]}]},
            {"sources": [{"model": str(other), "layer_range": [1, 3]}]},
        ],
    }
    quantised = folder / "fp8"
    make_model(quantised, layers=1, hidden=8)
    numbers = torch.randn(8, 8).to(torch.float8_e4m3fn)
    save_file(
        {"w.weight": numbers, "w.weight_scale_inv": torch.tensor([[0.5]])},
        quantised / "model.safetensors",
    )
    single, stacked = (experts(folder / name, name == "stacked") for name in ("single", "stacked"))
    return {
        "adapter": (linear(f"{base}+{adapter}", base), {}),
        "quantised": (alone(quantised), {"strictness": "lenient"}),
        "experts": (linear(single, stacked), {}),
        "slices": (stack, {}),
        "shards": (alone(base), {"shard_size": 2000}),
        "stochastic": (linear(base, f"{base}+{adapter}"), {"rounding": "stochastic", "seed": 7}),
    }


def adapter_of(folder: Path, hidden: int) -> Path:
    folder.mkdir()
    name = "base_model.model.model.layers.0.self_attn.o_proj"
    factors = {f"{name}.lora_A.weight": (2, hidden), f"{name}.lora_B.weight": (hidden, 2)}
    save_file({n: torch.randn(s) for n, s in factors.items()}, folder / "adapter_model.safetensors")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    return folder


def experts(folder: Path, stacked: bool) -> Path:
    generator = torch.Generator().manual_seed(int(stacked))
    prefix = "model.layers.0.mlp.experts"
    gate_up, down = (torch.randn(s, generator=generator) for s in ((2, 12, 4), (2, 4, 6)))
    tensors = {f"{prefix}.gate_up_proj": gate_up, f"{prefix}.down_proj": down}
    if not stacked:
        tensors = {}
        for e in range(2):
            tensors |= {
                f"{prefix}.{e}.gate_proj.weight": gate_up[e, :6].clone(),
                f"{prefix}.{e}.up_proj.weight": gate_up[e, 6:].clone(),
                f"{prefix}.{e}.down_proj.weight": down[e].clone(),
            }
    folder.mkdir()
    save_weights(folder, tensors)
    write_json(folder / "config.json", config() | {"num_hidden_layers": 1})
    return folder


KINDS: dict[str, Callable[[Path], dict[str, Case]]] = {
    "methods": methods,
    "formats": formats,
    "vocabularies": vocabularies,
    "computed": computed,
}


def digests(plan: Plan) -> dict[str, str]:
    """Digests of a plan's tensors, run here."""
    sink = StateDictSink({job.name: job.spec for job in plan.jobs})
    merganser.run([plan], [sink], threads=1, report=False)
    return {
        name: hashlib.sha256(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in sink.tensors.items()
    }


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_plan_gives_the_same_bytes_in_a_fresh_process(kind: str, tmp_path: Path) -> None:
    cases = KINDS[kind](tmp_path / "models")
    plans = {name: merganser.plan(*case[:1], **case[1]) for name, case in cases.items()}
    (tmp_path / "plans.pickle").write_bytes(pickle.dumps(plans))
    (tmp_path / "plans.json").write_text(json.dumps({n: describe(p) for n, p in plans.items()}))
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), "plans.pickle", "plans.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, (unpickled, loaded) in json.loads(done.stdout).items():
        expected = digests(plans[name])
        assert expected, name
        assert unpickled == expected, name
        assert loaded == expected, name


@pytest.mark.parametrize("kind", ["vocabularies", "computed"])
def test_json_says_all_of_a_plan(kind: str, tmp_path: Path) -> None:
    for recipe, options in KINDS[kind](tmp_path / "models").values():
        plan = merganser.plan(recipe, **options)
        written = json.loads(json.dumps(describe(plan)))
        again = load_plan(written)
        assert json.loads(json.dumps(describe(again))) == written
        assert again.digest == plan.digest
        assert again.jobs == plan.jobs
        assert again.shards == plan.shards


def test_a_plan_holds_nothing_but_data(tmp_path: Path) -> None:
    recipe, options = computed(tmp_path / "models")["adapter"]
    plan = merganser.plan(recipe, **options)
    seen: list[object] = [plan]
    for part in seen:
        assert not callable(part) or isinstance(part, type), part
        assert not hasattr(part, "fileno"), part
        if is_dataclass(part) and not isinstance(part, type):
            seen += [getattr(part, each.name) for each in fields(part)]
        elif isinstance(part, Mapping):
            seen += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            seen += part


# -- inputs that moved, or changed -------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [make_model(tmp_path / "in" / n, layers=1, hidden=8, seed=ord(n)) for n in "ab"]


def test_the_inputs_may_lie_elsewhere(pair: list[Path], tmp_path: Path) -> None:
    plan = merganser.plan(linear(*pair))
    written = json.loads(json.dumps(describe(plan)))
    assert written["root"] == str(tmp_path / "in")
    expected = digests(plan)
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(InputError) as error:
        load_plan(written)
    assert_one_line(str(error.value), "no such model")
    moved = load_plan(written, root=tmp_path / "elsewhere")
    assert moved.digest == plan.digest
    assert digests(moved) == expected


def test_a_changed_input_is_refused(pair: list[Path], tmp_path: Path) -> None:
    plan = merganser.plan(linear(*pair))
    written = json.loads(json.dumps(describe(plan)))
    stored = pickle.dumps(plan)
    file = pair[1] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError) as error:
        digests(pickle.loads(stored))
    assert_one_line(str(error.value), str(file), "changed since its header was read")
    with pytest.raises(InputError) as error:
        load_plan(written)
    assert_one_line(str(error.value), str(file), "changed since this was planned")
    file.write_bytes(data[:-2])
    with pytest.raises(MerganserError) as failure:
        load_plan(written, root=tmp_path / "in")
    assert_one_line(str(failure.value), str(pair[1]))


def test_a_tokenizer_that_is_made_is_made_again(tmp_path: Path) -> None:
    """That of a GGUF file lies in a temporary folder of the process that opened it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    file = ggufs.save(tmp_path / "m.gguf", ggufs.llama(), ggufs.LLAMA, "F16", keys)
    plan = merganser.plan(alone(file))
    [made] = {source.checkpoint.path for source in plan.sources}
    assert made is not None
    stored = pickle.dumps(plan)
    shutil.rmtree(made)
    merged = merganser.merge(pickle.loads(stored), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert merged.plan.digest == plan.digest


def test_a_checkpoint_in_memory_is_handed_over() -> None:
    models = {n: {"w": torch.full((4,), float(i))} for i, n in enumerate("ab")}
    given = {n: MemoryCheckpoint(tensors, n) for n, tensors in models.items()}
    plan = merganser.plan(linear("a", "b"), checkpoints=given)
    again = pickle.loads(pickle.dumps(plan))
    sink = StateDictSink({job.name: job.spec for job in again.jobs})
    with pytest.raises(InputError) as error:
        merganser.run([again], [sink])
    assert_one_line(str(error.value), "a: is a checkpoint in memory", "checkpoints=")
    sink = StateDictSink({job.name: job.spec for job in again.jobs})
    merganser.run([again], [sink], checkpoints=given)
    assert torch.equal(sink.tensors["w"], torch.full((4,), 0.75))


# -- files that are not plans ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"merganser_plan": 2}, "version 2"),
        ({"merganser_plan": None}, "not a plan"),
        ({"digest": "0" * 64}, "digest"),
        ({"method": "nothing"}, "not registered"),
        ({"tensors": 3}, "tensors"),
        ({"shards": []}, "no file"),
        ({"root": "/nowhere"}, "no such model"),
        ({"locators": []}, "locator"),
    ],
)
def test_what_is_no_plan_is_one_line(pair: list[Path], change: dict[str, Any], part: str) -> None:
    written = json.loads(json.dumps(describe(merganser.plan(linear(*pair)))))
    with pytest.raises(MerganserError) as error:
        load_plan(written | change)
    assert error.value.exit_code in (2, 3)
    assert_one_line(str(error.value), part)


@pytest.mark.parametrize("path", ["../a", "/etc", "a/../../b", "a\0b"])
def test_a_path_outside_the_root_is_refused(pair: list[Path], path: str) -> None:
    written = json.loads(json.dumps(describe(merganser.plan(linear(*pair)))))
    written["locators"][0]["path"] = path
    with pytest.raises(RecipeError) as error:
        load_plan(written)
    assert_one_line(str(error.value), "not below the root")


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/model.safetensors", ".x/model.safetensors"]
)
def test_a_file_outside_the_output_is_refused(pair: list[Path], file: str) -> None:
    written = json.loads(json.dumps(describe(merganser.plan(linear(*pair)))))
    written["shards"][0]["file"] = file
    with pytest.raises(RecipeError) as error:
        load_plan(written)
    assert_one_line(str(error.value), "shards")


def places(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested data."""
    found = []
    inner = dict(enumerate(part)) if isinstance(part, list) else part
    for key, value in inner.items() if isinstance(inner, dict) else ():
        found += [(*path, key), *places(value, (*path, key))]
    return found


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.just([]), st.just({}), st.just([None]), st.just({"kind": "folder"}), st.just("../../x"),
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fuzz")
    words = vocabularies(folder / "words")["rules"][0]
    found: dict[str, Any] = json.loads(json.dumps(describe(merganser.plan(words))))
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_is_one_line_or_another_valid_plan(
    written: dict[str, Any], data: st.DataObject
) -> None:
    damaged = copy.deepcopy(written)
    path = data.draw(st.sampled_from(places(damaged)))
    target = damaged
    for key in path[:-1]:
        target = target[key]
    if data.draw(st.booleans()):
        del target[path[-1]]
    else:
        target[path[-1]] = data.draw(VALUES)
    message = refusal(damaged)
    if message is None:
        assert load_plan(damaged).digest == written["digest"]
    else:
        assert_one_line(message)


def refusal(damaged: Mapping[str, Any]) -> str | None:
    """What is wrong with a plan; None if nothing is."""
    try:
        load_plan(damaged)
    except (RecipeError, InputError) as error:
        return str(error)
    return None


def test_keywords_are_the_options() -> None:
    assert PlanKeywords.__annotations__.keys() == {each.name for each in fields(PlanOptions)}
