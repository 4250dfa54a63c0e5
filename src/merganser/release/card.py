"""The model card: a ``README.md`` that a researcher would publish as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merganser.architecture import DEFAULT, layer_counts, sections, vocabulary_size
from merganser.methods import Combination
from merganser.planning import Plan, Source
from merganser.release.config import edited_config
from merganser.tensors import format_size


@dataclass(frozen=True, slots=True)
class _Row:
    """A model's line in the card's table."""

    shown: str
    role: str
    given: float | None
    requested: float | None
    effective: float | None


def write_card(
    plan: Plan, manifest: dict[str, Any], folder: Path, title: str, *, public: bool = False
) -> None:
    """Write ``README.md``.

    Args:
        plan: what was merged.
        manifest: what came of it.
        folder: the output folder.
        title: the model's name.
        public: write short names instead of local paths in the recipe block too.
    """
    text = card(plan, manifest, title, public=public)
    (folder / "README.md").write_text(text, encoding="utf-8")


def card(plan: Plan, manifest: dict[str, Any], title: str, *, public: bool = False) -> str:
    """The card's text: front matter and Markdown."""
    config = edited_config(plan)
    parts = [
        _front_matter(plan, config),
        f"# {_inline(title)}\n",
        _overview(plan),
        _models(plan, manifest),
        _facts(plan, config),
        _recipe(plan, public),
        _usage(plan, config, title),
        _reproduce(plan, manifest),
    ]
    return "\n".join(parts)


def _front_matter(plan: Plan, config: dict[str, Any]) -> str:
    base = plan.sources[plan.base] if plan.base is not None else None
    others = [source for source in plan.sources if source is not base]
    published = [name for s in ([base] if base else []) + others for name in _on_the_hub(s)]
    data: dict[str, Any] = {}
    if published:
        data["base_model"] = list(dict.fromkeys(published))
        if not _is_conversion(plan):
            data["base_model_relation"] = "merge"
    if config:
        data["library_name"] = "transformers"
    if any("CausalLM" in str(name) for name in config.get("architectures") or []):
        data["pipeline_tag"] = "text-generation"
    licenses = {_license(source.checkpoint.path) for source in plan.sources}
    if len(licenses) == 1 and None not in licenses:
        data["license"] = licenses.pop()
    data["tags"] = ["merge", "merganser", "mergekit", plan.method.name]
    if _is_conversion(plan):
        data["tags"] = ["merganser"]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _license(model: Path | None) -> str | None:
    """The licence that a parent's own card states."""
    readme = model / "README.md" if model is not None else None
    if readme is None or not readme.is_file() or readme.stat().st_size > 2**20:
        return None
    found = re.match(
        r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL
    )
    if found is None:
        return None
    try:
        data = yaml.safe_load(found[1])
    except (yaml.YAMLError, RecursionError):
        return None
    stated = data.get("license") if isinstance(data, dict) else None
    return stated if isinstance(stated, str) and re.fullmatch(r"[\w.+-]{1,40}", stated) else None


def _is_conversion(plan: Plan) -> bool:
    """Whether the output is one model's weights, in another form or dtype."""
    return (
        len(plan.sources) == 1
        and plan.method.name == "passthrough"
        and not plan.layers
        and all(job.method == "copy" or job.combination == Combination((1.0,)) for job in plan.jobs)
    )


def _conversion(plan: Plan) -> str:
    copied = all(job.method == "copy" for job in plan.jobs)
    how = "bit for bit" if copied else f"computed in {_arithmetic(plan)}"
    stored = plan.sources[0].checkpoint.format
    return (
        f"The weights of {_name(plan, plan.sources[0])}, which are stored as {_inline(stored)} there, "
        f"in {plan.dtype.name} as a folder for transformers: {how}, by Merganser.\n"
    )


def _overview(plan: Plan) -> str:
    if _is_conversion(plan):
        return _conversion(plan)
    merged = [_name(plan, source) for i, source in enumerate(plan.sources) if i != plan.base]
    base = f" on the base {_name(plan, plan.sources[plan.base])}" if plan.base is not None else ""
    address = _paper(plan.method.paper)
    method = f"[{plan.method.title}]({address})" if address else plan.method.title
    what = "A merge of" if len(plan.sources) > 1 else "Made from"
    lines = [
        f"{what} {_join(merged or [_name(plan, plan.sources[0])])}{base}, by the {method} method "
        f"(`{plan.method.name}`), computed by Merganser in {_arithmetic(plan)}.\n"
    ]
    for module, layers in plan.layers.items():
        whose = "Its" if module == DEFAULT else f"Its {module}'s"
        lines.append(
            f"{whose} {len(layers)} layers are stacked from slices of these models; the recipe "
            "below says which.\n"
        )
    return "\n".join(lines)


def _arithmetic(plan: Plan) -> str:
    if plan.arithmetic != "exact":
        release = "0.1.5" if plan.arithmetic == "mergekit" else "0.1.4"
        return f"the arithmetic of MergeKit {release}"
    how = "to nearest" if plan.rounding == "nearest" else f"stochastically (seed {plan.seed})"
    return f"float32 or better, rounded once, {how}"


def _paper(paper: str | None) -> str | None:
    if paper is None:
        return None
    return paper if paper.startswith("https://") else f"https://arxiv.org/abs/{paper}"


def _models(plan: Plan, manifest: dict[str, Any]) -> str:
    rows = list(_rows(plan, manifest))
    text = "## Models\n\n"
    if not any(row.requested is not None or row.given is not None for row in rows):
        return (
            text
            + "\n".join(f"- {row.shown}{f' ({row.role})' if row.role else ''}" for row in rows)
            + "\n"
        )
    text += "| model | weight in the recipe | normalised | effective |\n|---|---:|---:|---:|\n"
    for row in rows:
        role = f" ({row.role})" if row.role else ""
        text += (
            f"| {row.shown}{role} | {_number(row.given)} | {_number(row.requested)} "
            f"| {_number(row.effective)} |\n"
        )
    report = manifest["effective_weights"]
    if report:
        text += (
            "\n*Normalised* is the model's share as the method computes it; *effective* is its share in the stored "
            f"weights, after rounding to {plan.dtype}: the least-squares coefficients of the merge on its inputs.\n"
        )
        share = max((m["differ"] or 0.0 for m in report["models"]), default=0.0)
        text += f"The models differ in {share:.1%} of their entries.\n"
        for warning in report["warnings"]:
            text += f"\n> **Note:** {_inline(warning)}.\n"
    return text


def _rows(plan: Plan, manifest: dict[str, Any]) -> Iterable[_Row]:
    report = manifest["effective_weights"]
    measured = {m["model"]: m for m in report["models"]} if report else {}
    for index, source in enumerate(plan.sources):
        found = measured.get(source.reference.text, {})
        role = "base" if index == plan.base else ""
        yield _Row(
            _name(plan, source),
            role,
            found.get("given"),
            found.get("requested"),
            found.get("effective"),
        )


def _facts(plan: Plan, config: dict[str, Any]) -> str:
    text_part = next((part for part in sections(config) if "num_hidden_layers" in part), config)
    facts: list[tuple[str, Any]] = [
        (
            "Parameters",
            f"{plan.parameters:,} ({plan.parameters / 1e9:.2f} B)"
            if plan.parameters >= 10**7
            else f"{plan.parameters:,}",
        ),
        (
            "Architecture",
            ", ".join(map(str, config.get("architectures") or [])) or config.get("model_type"),
        ),
        (
            "Layers",
            next(iter(layer_counts(config)), None),
        ),
        ("Dtype", plan.dtype.name),
        ("Context length", text_part.get("max_position_embeddings")),
        ("Vocabulary", vocabulary_size(config)),
        ("Size on disk", format_size(plan.output_bytes)),
        ("Files", len(plan.shards)),
    ]
    rows = "".join(
        f"| {name} | {_inline(_plain(value))} |\n" for name, value in facts if value is not None
    )
    return f"## Key facts\n\n| | |\n|---|---|\n{rows}"


def _plain(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool) and value >= 10000
        else str(value)
    )


def _recipe(plan: Plan, public: bool) -> str:
    text = recipe_text(plan, public=public)
    fence = "`" * max(3, max((len(run) + 1 for run in re.findall(r"`+", text)), default=3))
    return f"## Recipe\n\n{fence}yaml\n{text.rstrip()}\n{fence}\n"


def recipe_text(plan: Plan, *, public: bool = False) -> str:
    """The recipe as its author wrote it; with ``public`` written anew, with names for local paths."""
    document = plan.recipe.document
    if document.text is not None and not public:
        return document.text
    data = _renamed(plan.recipe.data, names(plan)) if public else document.data
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def names(plan: Plan) -> dict[str, str]:
    """A public name for every model, by its reference: the Hub's, or a short one that no other has."""
    found: dict[str, str] = {}
    for source in plan.sources:
        reference = source.reference
        parts = [
            p
            for p in Path(reference.path).parts
            if p not in ("/", ".", "..", "actor", "huggingface")
        ]
        longer = ["-".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        numbered = [f"{reference.name}-{n}" for n in range(2, len(plan.sources) + 2)]
        published = source.published and (source.adapter is None or source.published_adapter)
        longer = [] if source.adapter else longer
        choices = [reference.text] if published else [reference.name, *longer, *numbered]
        found[reference.text] = next((c for c in choices if c not in found.values()), choices[-1])
    return found


def _renamed(data: Any, named: Mapping[str, str]) -> Any:
    """Nested data with other names for models, in references and mappings of their parts."""
    if isinstance(data, dict):
        return {key: _renamed(value, named) for key, value in data.items()}
    if isinstance(data, list):
        return [_renamed(value, named) for value in data]
    return named.get(data, data) if isinstance(data, str) else data


def _usage(plan: Plan, config: dict[str, Any], title: str) -> str:
    if not any("CausalLM" in str(name) for name in config.get("architectures") or []):
        return ""
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model_id = "{_literal(title)}"  # this folder, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(model_id, dtype="auto")
messages = [{{"role": "user", "content": "What is 12 + 30?"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""


def _reproduce(plan: Plan, manifest: dict[str, Any]) -> str:
    rows = "".join(
        f"| {_name(plan, source)} | {format_size(sum(source.checkpoint.files.values()))} "
        f"| `{source.checkpoint.header_digest[:16]}` |\n"
        for source in plan.sources
    )
    rounding = (
        f" --rounding {plan.rounding} --seed {plan.seed}" if plan.rounding != "nearest" else ""
    )
    arithmetic = f" --arithmetic {plan.arithmetic}" if plan.arithmetic != "exact" else ""
    names = f" --tensor-{plan.tensor_names}" if plan.tensor_names != "same" else ""
    return f"""## Reproduce

```
pip install merganser=={manifest["merganser"]}
merganser merge mergekit_config.yml OUT{arithmetic}{rounding}{names}
merganser verify OUT
```

The same recipe and inputs give the same bytes on any machine: plan `{plan.digest[:16]}`, output tensors
`{manifest["output_digest"][:23]}` (each tensor's digest is in `merge_manifest.json`). Inputs:

| input | weights | sha256 of headers |
|---|---:|---|
{rows}"""


def _name(plan: Plan, source: Source) -> str:
    """A model for people: linked if it is on the Hub, else its short name; never a local path."""
    reference = source.reference
    if source.adapter is None and source.published:
        return _link(reference.path)
    own = f"`{_inline(names(plan)[reference.text]).replace('`', '')}`"
    linked = " with ".join(_link(name) for name in _on_the_hub(source))
    return f"{own} ({linked})" if linked else own


def _link(name: str) -> str:
    return f"[{_inline(name)}](https://huggingface.co/{name})"


def _on_the_hub(source: Source) -> list[str]:
    """What a source is made of that is on the Hub: the model, its adapter."""
    reference = source.reference
    parts = (source.published, reference.path), (source.published_adapter, reference.adapter)
    return [name for published, name in parts if published and name is not None]


def _number(value: float | None) -> str:
    return (
        "–"
        if value is None
        else f"{value:.4g}"
        if abs(value) < 1e-3 and value
        else f"{value:.3f}".rstrip("0").rstrip(".")
    )


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _inline(text: str) -> str:
    """Text that stays on its line and cannot become markup."""
    flat = " ".join(text.split())
    return flat.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _literal(text: str) -> str:
    return " ".join(text.split()).replace("\\", "").replace('"', "")
