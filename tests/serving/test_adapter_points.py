"""A point of LoRA experts is one adapter, exactly; what is not exact is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from openai import OpenAI
from safetensors.torch import load_file

from checkpoints_on_disk import make_model
from fake_vllm import FakeVllm, make, settle
from lora_experts import SWEEP, write_adapter, write_experts, write_sweep
from merganser.engine.stream import TensorStream
from merganser.planning import Plan, PlanOptions, make_plan
from merganser.serving import adapter_points
from merganser.serving.adapter_points import NoAdapter
from merganser.serving.adapters import adapter_arguments, family_of
from merganser.serving.names import Catalogue

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT's, on what it does

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    write_experts(make_model(folder / "base", hidden=32, dtype=torch.float32))
    return folder


@pytest.fixture(scope="module")
def catalogue(home: Path) -> Catalogue:
    return Catalogue([str(write_sweep(home))])


def recipe(home: Path, method: str = "linear", **more: Any) -> dict[str, Any]:
    models = [
        {"model": f"{home}/base+{home}/one", "parameters": {"weight": 0.3}},
        {"model": f"{home}/base+{home}/two", "parameters": {"weight": 0.7}},
    ]
    return {"merge_method": method, "models": models, "dtype": "float32"} | more


def deltas(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What PEFT adds for an adapter, in float64, by its own rules."""
    found = load_file(folder / "adapter_model.safetensors")
    settings = peft.LoraConfig.from_pretrained(folder)
    result = {}
    for key, a in found.items():
        if ".lora_A" not in key:
            continue
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        last = name.rpartition(".")[2]
        rank = (settings.rank_pattern or {}).get(last, settings.r)
        alpha = (settings.alpha_pattern or {}).get(last, settings.lora_alpha)
        scale = alpha / (rank**0.5 if settings.use_rslora else rank)
        b = found[key.replace("lora_A", "lora_B")]
        result[f"{name}.weight"] = scale * (b.double() @ a.double()).numpy()
    return result


@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ({}, (0.3, 0.7)),
        ({"merge_method": "task_arithmetic", "base_model": "base", "parameters": {"lambda": 1.5}}, (0.45, 1.05)),
    ],
    ids=["linear", "task arithmetic"],
)  # fmt: skip
def test_the_adapter_is_the_sum_of_the_adapters(
    home: Path, tmp_path: Path, more: dict[str, Any], shares: tuple[float, float]
) -> None:
    """Their products in float64, but for the one rounding of the factors to float32."""
    if "base_model" in more:
        more = more | {"base_model": str(home / "base")}
    plan = make_plan(recipe(home) | more)
    assert adapter_points.write(plan, tmp_path / "point")
    found, one, two = (deltas(f) for f in (tmp_path / "point", home / "one", home / "two"))
    assert found.keys() == one.keys() | two.keys()
    for name, delta in found.items():
        wanted = shares[0] * one.get(name, 0) + shares[1] * two.get(name, 0)
        assert np.abs(delta - wanted).max() <= 2e-7 * np.abs(wanted).max()


def test_peft_s_model_with_it_is_the_merge(home: Path, tmp_path: Path) -> None:
    """With a weight that differs by layer."""
    given = recipe(home)
    for model, weight in zip(given["models"], ([0.2, 0.9], [0.8, 0.1]), strict=True):
        model["parameters"]["weight"] = weight
    plan = make_plan(given)
    wanted = merged(plan)
    adapter_points.write(plan, tmp_path / "point", rank=16)
    base = transformers.AutoModelForCausalLM.from_pretrained(home / "base", dtype=torch.float32)
    with_adapter: Any = peft.PeftModel.from_pretrained(base, str(tmp_path / "point"))
    found = with_adapter.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=2e-6, msg=name)
        changed += not torch.equal(tensor, load_file(home / "base" / "model.safetensors")[name])
    assert changed == 12


def merged(plan: Plan) -> Tensors:
    return dict(TensorStream(plan, threads=1, report=False))


def test_a_sweep_s_models_form_a_family(home: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    family, reason = family_of(catalogue)
    assert reason is None
    assert family is not None
    assert family.rank == 10
    assert family.files == [(home / "base" / "model.safetensors").resolve()]
    assert adapter_arguments(family, 5)["max_lora_rank"] == 16
    between = catalogue.find("loras#w=0.3").plan
    assert adapter_points.rank_in(family, between) == 10
    base = make_plan({"merge_method": "passthrough", "models": [{"model": str(home / "base")}]})
    assert not adapter_points.write(base, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_other_merges_are_none(home: Path, catalogue: Catalogue) -> None:
    family, _ = family_of(catalogue)
    assert family is not None
    base = {"base_model": str(home / "base")}
    doubled = recipe(home, parameters={"normalize": False})
    doubled["models"][0]["parameters"] = {"weight": 0.7}
    plans = {
        "ties is not linear in the models": make_plan(recipe(home, "ties") | base),
        "add up to 1.4, not to 1": make_plan(doubled),
        "MergeKit's arithmetic": make_plan(recipe(home), PlanOptions(arithmetic="mergekit")),
    }
    for reason, plan in plans.items():
        with pytest.raises(NoAdapter, match=reason):
            adapter_points.rank_in(family, plan)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"modules": ("q_proj", "lm_head")}, "changes? 'lm_head.weight', which has a vocabulary"),
        ({"more": {"base_model.model.model.norm.weight": torch.ones(32)}}, "a complete tensor for"),
        (
            {"more": {
                f"base_model.model.model.layers.0.self_attn.q_proj.lora_{key}": torch.ones(32)
                for key in ("magnitude_vector",)
            }},
            "DoRA's lengths for",
        ),
    ],
    ids=["head", "complete", "dora"],
)  # fmt: skip
def test_other_adapters_are_none(
    home: Path, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    write_adapter(home / "base", tmp_path / "odd", **settings)
    text = SWEEP.replace("./base+two", f"{home}/base+{tmp_path}/odd")
    file = home / "odd.yml"
    file.write_text(text)
    family, told = family_of(Catalogue([str(file)]))
    assert family is None
    assert told is not None
    assert re.search(reason, told), told


def test_all_points_are_served_at_once_and_loaded_once(
    home: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, _ = family_of(catalogue)
    stand = make(catalogue, family=family)
    with OpenAI(base_url=stand.url, api_key="none", max_retries=0) as client:
        for name in ("m_w0.25", "base+one", "loras#w=0.3", "m_w0.25"):
            found = client.completions.create(model=name, prompt="p")
            digest = catalogue.find(name).plan.digest
            assert found.choices[0].text == f"{digest} dummy dummy"
            assert (found.model, found.system_fingerprint) == (name, digest)
        assert len(stand.starts.servers[0].adapters) == 3
        assert stand.service.gate.swaps == 1
        given = stand.starts.servers[0].given.arguments
        assert given["load_format"] == "safetensors"
        # A server that was started again gets the adapters again.
        stand.starts.servers[0].die()
        settle(lambda: len(stand.starts.servers) == 2 and stand.health()[0] == 200)
        found = client.completions.create(model="m_w0.25", prompt="p")
        assert found.choices[0].text.endswith("dummy dummy")
        # Adapters that nobody uses are discarded.
        assert stand.service._adapters is not None
        monkeypatch.setattr(stand.service._adapters, "_most", 1)
        client.completions.create(model="loras#w=0.4", prompt="p")
        server: FakeVllm = stand.starts.servers[1]
        assert server.unloaded == [catalogue.find("m_w0.25").plan.digest]
        assert len(server.adapters) == 1
    stand.running.stop()
