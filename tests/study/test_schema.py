"""The JSON Schema that editors check files with, as check-jsonschema reads it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from merganser.study import search_space
from merganser.study.json_schema import json_schema

ROOT = Path(__file__).parents[2]
RECIPE = {"merge_method": "linear", "models": [{"model": "a"}]}

SWEEP = """
name: "{{ w }}"
sweep: {w: [0.1, 2e-6], g: [[0, 1]], pair: [{a: x, b: {c: 1}}], k: {from: 1, to: 2, step: 1}}
merge_method: "{{ pair.a }}"
base_model: "runs/{{ pair.a }}"
slices: [{sources: [{model: a, layer_range: ["{{ k }}", 4], parameters: {weight: "{{ 1 - g }}"}}]}]
parameters: {weight: ["{{ w }}", 1], x: [{filter: "{{ pair.a }}", value: "{{ w }}"}]}
dtype: "{{ 'float32' if w > 1 }}"
seed: "{{ k }}"
tokenizer: {source: union, pad_to_multiple_of: "{{ k * 64 }}"}
rounding: "{{ 'nearest' }}"
evaluate:
  allow_code: true
  tasks:
    - {problems: p.jsonl, scorers: [exact, {scorer: tokens, better: min}]}
    - {preset: open-rs, samples: 4}
    - problems: "hub://org/name:test#answer"
      scorers: [{scorer: "a.py:f", batch: true, concurrency: 4, timeout: 9, failed: -1}]
  keep: {front: [exact, tokens]}
  references:
    - {model: runs/mixed, role: mixed}
    - {name: theirs, role: published, source: "arXiv:2503.16219", scores: {exact: {mean: 0.4, problems: 30}}}
"""
STEPS = """
sweep:
  - {w: {simplex: [a, b], step: 0.1, inside: true}, v: {simplex: [a, b], layers: [3, 2]}, where: w.a > 0.2}
  - {w: {sobol: [a, b], points: 9}, v: {dirichlet: [a, b], points: 9, alpha: 0.5, seed: 3}, where: [w.a > 0]}
  - {step: {run: runs/acc, every: 6}, w: {run: runs/acc, steps: [3, 4]}}
merge_method: linear
models:
  - {run: runs/acc, steps: "{{ step }}", schedule: {ema: 0.9}, parameters: {weight: "{{ w.a }}"}}
  - {run: runs/acc, steps: {last: 8}, schedule: {decay: 1-sqrt}}
  - {run: runs/acc, steps: all, schedule: wma}
"""
SEARCH = """
search:
  over: {w: {from: 0, to: 1, log: true}, g: {from: 0, to: 1, length: 5}, m: [linear, slerp], c: 3}
  objectives: {exact: max, tokens: min}
  constraints: {tokens: {most: 800}}
  method: nsga-ii
  budget: 10
  held_out: [a]
  keep: front
merge_method: "{{ m }}"
models: [{model: a, parameters: {weight: "{{ w }}"}}]
evaluate: {lm_eval: [{task: gsm8k, metric: acc}], keep: all}
"""

GREEDY = """
search:
  method: greedy
  from: [runs/a, {run: runs/acc, steps: {last: 8}}]
  again: true
  equal: false
  objectives: {exact: max}
merge_method: linear
evaluate: {tasks: [{problems: p.jsonl, scorers: [exact]}]}
"""
WEIGHTS = """
search: {over: {w: {simplex: [a, b], step: 0.1}, v: {simplex: [a, b]}}, objectives: exact}
merge_method: linear
models: [{model: a, parameters: {weight: "{{ w.a * v.a }}"}}]
evaluate: {tasks: [{problems: p.jsonl, scorers: [exact]}]}
"""


def pages() -> list[Any]:
    """Every document of YAML of the examples and the documentation; parts are completed."""
    found = []
    for file in [*(ROOT / "examples").rglob("*.yml"), *(ROOT / "examples").rglob("*.yaml")]:
        found += yaml.safe_load_all(file.read_text(encoding="utf-8"))
    assert len(found) > 4
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for data in yaml.safe_load_all(block):
                whole = "merge_method" in data or "tasks" in data
                found.append(data if whole else RECIPE | data)
    assert len(found) > 15
    return found


def refused(folder: Path, documents: list[Any]) -> set[int]:
    """The numbers of the documents that check-jsonschema refuses."""
    (folder / "schema.json").write_text(json.dumps(json_schema()))
    for i, document in enumerate(documents):
        (folder / f"{i}.yml").write_text(yaml.safe_dump(document))
    files = [str(folder / f"{i}.yml") for i in range(len(documents))]
    schema = ["--schemafile", str(folder / "schema.json"), "--output-format", "json"]
    run = [sys.executable, "-m", "check_jsonschema", *schema, *files]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    told = json.loads(done.stdout)
    assert not told.get("parse_errors"), told
    return {int(Path(error["filename"]).stem) for error in told.get("errors", ())}


def test_all_yaml_of_the_examples_and_the_documentation_is_accepted(tmp_path: Path) -> None:
    documents = [
        *pages(),
        yaml.safe_load(SWEEP),
        *map(yaml.safe_load, (STEPS, SEARCH, GREEDY, WEIGHTS)),
    ]
    found = refused(tmp_path, documents)
    assert found == set(), [documents[i] for i in found]


def test_slips_are_refused(tmp_path: Path) -> None:
    sweep, search = yaml.safe_load(SWEEP), yaml.safe_load(SEARCH)
    slips: list[Any] = [
        RECIPE | {"dtype": "fp16"},
        RECIPE | {"paramters": {}},
        RECIPE | {"seed": "many"},
        RECIPE | {"models": []},
        {"models": [{"model": "a"}]},
        sweep | {"sweep": {}},
        sweep | {"sweep": {"w": {"from": 0, "to": 1}}},
        sweep | {"sweep": {"1w": [1]}},
        sweep | {"sweep": {"w": {"simplex": ["a"], "step": 0.1}}},
        sweep | {"sweep": {"w": {"simplex": ["a", "b"]}}},
        sweep | {"sweep": {"w": {"sobol": ["a", "b"], "points": 2000}}},
        sweep | {"sweep": {"w": [1], "where": 3}},
        sweep | {"sweep": {"w": {"run": "a", "evry": 3}}},
        RECIPE | {"models": [{"run": "a", "steps": "some"}]},
        RECIPE | {"models": [{"run": "a", "schedule": {"decay": "cubic"}}]},
        RECIPE | {"models": [{"run": "a", "model": "b"}]},
        sweep | {"evaluate": {"tasks": [{"problems": "p", "scorers": []}]}},
        sweep | {"evaluate": {"tasks": [{"problems": "p"}]}},
        sweep | {"evaluate": {"tasks": [{"preset": "open-rs", "timeout": 3}]}},
        sweep | {"evaluate": sweep["evaluate"] | {"kep": "all"}},
        search | {"search": {"over": search["search"]["over"]}},
        search | {"search": search["search"] | {"method": "best"}},
        search | {"search": search["search"] | {"budget": 0}},
        search | {"search": search["search"] | {"objectives": {"exact": "most"}}},
        {"tasks": []},
        {"tasks": [{"problems": "p", "scorers": ["exact"]}], "keep": "all"},
    ]
    assert refused(tmp_path, slips) == set(range(len(slips)))


def test_the_search_block_has_the_keys_that_searches_read() -> None:
    search = json_schema()["$defs"]["Recipe"]["properties"]["search"]
    assert set(search["properties"]) == search_space._KEYS
    over = search["properties"]["over"]["additionalProperties"]["anyOf"][-1]
    assert set(over["properties"]) == search_space._RANGE


@pytest.mark.parametrize("name", ["Study", "Recipe", "ModelInput", "TaskEntry", "Together"])
def test_all_parts_are_named(name: str) -> None:
    assert name in json_schema()["$defs"]
