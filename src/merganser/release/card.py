"""The model card: a ``README.md`` that a researcher would publish unchanged.

Its sources are files of the folder (manifest, config, recipe), so that it can be rewritten later.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merganser import methods, number_format
from merganser.architecture import layer_counts, vocabulary_size
from merganser.checkpoints import read_json
from merganser.errors import one_line
from merganser.modules import DEFAULT, sections
from merganser.release import files
from merganser.release import manifest as manifests

NAME = "README.md"


@dataclass(frozen=True, slots=True)
class _Row:
    """A model's row in the card's table."""

    shown: str
    role: str
    given: float | None
    requested: float | None
    effective: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a study in a model card.

    Attributes:
        section: Markdown text, placed below the table of models.
        metadata: additional keys of the front matter.
    """

    section: str
    metadata: Mapping[str, Any]


def write_card(
    manifest: Mapping[str, Any],
    recipe: str,
    folder: Path,
    title: str,
    scores: Scores | None = None,
) -> None:
    """Write the card to ``README.md`` in the output folder; for the arguments see :func:`card`.

    Raises:
        ResourceError: when it cannot be written.
    """
    text = card(manifest, recipe, folder, title, scores)
    files.write_text(folder / NAME, text)
    manifests.restate(folder, NAME)


def card(
    manifest: Mapping[str, Any],
    recipe: str,
    folder: Path,
    title: str,
    scores: Scores | None = None,
) -> str:
    """Return the card's text: front matter and Markdown.

    Args:
        manifest: the merge's manifest.
        recipe: the recipe's text.
        folder: the output folder, with its config.
        title: the model's name.
        scores: the model's scores in a study, or None.
    """
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    parts = [
        _front_matter(manifest, config, scores.metadata if scores else {}),
        f"# {inline(title)}\n",
        _overview(manifest),
        _models(manifest),
        *([scores.section] if scores else []),
        _facts(manifest, config),
        _recipe(recipe),
        _usage(config, title),
        _reproduce(manifest),
    ]
    return "\n".join(parts)


def _front_matter(
    manifest: Mapping[str, Any], config: Mapping[str, Any], more: Mapping[str, Any]
) -> str:
    inputs = _all_inputs(manifest)
    published = [name for entry in inputs for name in entry["hub"]]
    data: dict[str, Any] = {}
    if published:
        data["base_model"] = list(dict.fromkeys(published))
        if not manifest["conversion"]:
            data["base_model_relation"] = "merge"
    if config:
        data["library_name"] = "transformers"
    if _is_causal(config):
        data["pipeline_tag"] = "text-generation"
    stated = set(manifests.licenses(manifest).values())
    if len(stated) == 1 and None not in stated:
        data["license"] = stated.pop()
    data["tags"] = ["merge", "merganser", "mergekit", manifest["method"]]
    if manifest["conversion"]:
        data["tags"] = ["merganser"]
    data |= more
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _all_inputs(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The merged models, the base first; the result of an earlier recipe is replaced by its inputs."""
    earlier = manifest.get("earlier", [])
    results = {each["name"] for each in earlier}
    inputs = sorted(manifest["inputs"], key=lambda entry: not entry["base"])
    inputs += [entry for each in earlier for entry in each["inputs"]]
    models: dict[str, Mapping[str, Any]] = {}
    for entry in inputs:
        if entry["name"] not in results:
            models.setdefault(entry["name"], entry)
    return list(models.values())


def _is_causal(config: Mapping[str, Any]) -> bool:
    return any("CausalLM" in str(name) for name in config.get("architectures") or [])


def _conversion(manifest: Mapping[str, Any]) -> str:
    copied = manifest["conversion"] == "copied"
    how = "bit for bit" if copied else f"computed in {_arithmetic(manifest)}"
    [entry] = manifest["inputs"]
    return (
        f"The weights of {_name(entry)}, which are stored as {inline(entry['format'])} there, "
        f"in {manifest['dtype']} as a folder for transformers: {how}, by Merganser.\n"
    )


def _overview(manifest: Mapping[str, Any]) -> str:
    if manifest["conversion"]:
        return _conversion(manifest)
    inputs = manifest["inputs"]
    merged = [_name(entry) for entry in inputs if not entry["base"]]
    base = "".join(f" on the base {_name(entry)}" for entry in inputs if entry["base"])
    name = manifest["method"]
    title, paper = _method(manifest)
    address = _paper(paper)
    method = f"[{title}]({address})" if address else title
    what = "A merge of" if len(inputs) > 1 else "Made from"
    lines = [
        f"{what} {_join(merged or [_name(inputs[0])])}{base}, by the {method} method "
        f"(`{name}`), computed by Merganser in {_arithmetic(manifest)}.\n"
    ]
    for module, layers in manifest["layers"].items():
        whose = "Its" if module == DEFAULT else f"Its {module}'s"
        lines.append(
            f"{whose} {layers} layers are stacked from slices of these models; the recipe "
            "below says which.\n"
        )
    return "\n".join(lines)


def _method(manifest: Mapping[str, Any]) -> tuple[str, str | None]:
    """The method's title and paper; from the manifest if the method is not built in."""
    name = manifest["method"]
    if source := manifest.get("method_source"):
        return inline(source["title"]), source["paper"]
    known = methods.get(name, manifest["arithmetic"])
    return (known.title, known.paper) if known else (name, None)


def _own_methods(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Sources of methods that are not built in, by name, including those of earlier merges."""
    merges = [manifest, *manifest.get("earlier", [])]
    return {each["method"]: source for each in merges if (source := each.get("method_source"))}


def _source(name: str, source: Mapping[str, Any]) -> str:
    """A sentence on the source of a method that is not built in."""
    plain = _flat(source["file"]).replace("`", "")
    place = f"the package `{source['package']}`" if source["package"] else f"`{plain}`"
    digest = f", sha256 `{source['sha256']}`" if source["sha256"] else ""
    return f"The method `{name}` is not built into Merganser: it comes from {place}{digest}."


def _arithmetic(manifest: Mapping[str, Any]) -> str:
    if manifest["arithmetic"] != "exact":
        release = "0.1.5" if manifest["arithmetic"] == "mergekit" else "0.1.4"
        return f"the arithmetic of MergeKit {release}"
    nearest = manifest["rounding"] == "nearest"
    how = "to nearest" if nearest else f"stochastically (seed {manifest['seed']})"
    return f"float32 or better, rounded once, {how}"


def _paper(paper: str | None) -> str | None:
    if paper is None:
        return None
    return paper if paper.startswith("https://") else f"https://arxiv.org/abs/{paper}"


def _models(manifest: Mapping[str, Any]) -> str:
    rows = list(_rows(manifest))
    text = "## Models\n\n"
    if not any(row.requested is not None or row.given is not None for row in rows):
        return (
            text
            + "\n".join(f"- {row.shown}{f' ({row.role})' if row.role else ''}" for row in rows)
            + "\n"
        )
    text += "| model | asked | exact | stored |\n|---|---:|---:|---:|\n"
    for row in rows:
        role = f" ({row.role})" if row.role else ""
        text += (
            f"| {row.shown}{role} | {number_format.trimmed(row.given)} | {number_format.trimmed(row.requested)} "
            f"| {number_format.trimmed(row.effective)} |\n"
        )
    report = manifest["effective_weights"]
    if report:
        text += (
            "\n*asked* is the weight in the recipe; *exact* is the model's coefficient in the exact result, "
            f"before rounding; *stored* is its effective weight, after rounding to {manifest['dtype']}: "
            "the least-squares coefficient of the stored merge on its inputs.\n"
        )
        share = max((m["differ"] or 0.0 for m in report["models"]), default=0.0)
        text += f"The models differ in {share:.1%} of their entries.\n"
        for warning in report["warnings"]:
            text += f"\n> **Note:** {inline(warning)}.\n"
    return text


def _rows(manifest: Mapping[str, Any]) -> Iterable[_Row]:
    report = manifest["effective_weights"]
    measured = {m["model"]: m for m in report["models"]} if report else {}
    for entry in manifest["inputs"]:
        numbers = measured.get(entry["reference"], {})
        yield _Row(
            _name(entry),
            "base" if entry["base"] else "",
            numbers.get("given"),
            numbers.get("requested"),
            numbers.get("effective"),
        )


def _facts(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    parameters, files = manifest["parameters"], manifest["files"]
    text_part = next((part for part in sections(config) if "num_hidden_layers" in part), config)
    facts: list[tuple[str, Any]] = [
        (
            "Parameters",
            f"{parameters:,} ({parameters / 1e9:.2f} B)"
            if parameters >= 10**7
            else f"{parameters:,}",
        ),
        (
            "Architecture",
            ", ".join(map(str, config.get("architectures") or [])) or config.get("model_type"),
        ),
        (
            "Layers",
            next(iter(layer_counts(config)), None),
        ),
        ("Dtype", manifest["dtype"]),
        ("Context length", text_part.get("max_position_embeddings")),
        ("Vocabulary", vocabulary_size(config)),
        ("Size on disk", number_format.size(sum(file["size"] for file in files.values()))),
        ("Files", len(files)),
    ]
    rows = "".join(
        f"| {name} | {inline(number_format.grouped(value, 10_000))} |\n"
        for name, value in facts
        if value is not None
    )
    return f"## Key facts\n\n| | |\n|---|---|\n{rows}"


def _recipe(text: str) -> str:
    fence = "`" * max(3, max((len(run) + 1 for run in re.findall(r"`+", text)), default=3))
    return f"## Recipe\n\n{fence}yaml\n{text.rstrip()}\n{fence}\n"


def _usage(config: Mapping[str, Any], title: str) -> str:
    if not _is_causal(config):
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


def _reproduce(manifest: Mapping[str, Any]) -> str:
    rows = "".join(
        f"| {_name(entry)} | {number_format.size(sum(entry['files'].values()))} | {_identity(entry)} |\n"
        for entry in _all_inputs(manifest)
    )
    rounding, arithmetic = manifest["rounding"], manifest["arithmetic"]
    options = f" --arithmetic {arithmetic}" if arithmetic != "exact" else ""
    if rounding != "nearest":
        options += f" --rounding {rounding} --seed {manifest['seed']}"
    if manifest["tensor_names"] != "same":
        options += f" --tensor-{manifest['tensor_names']}"
    custom_methods = _own_methods(manifest)
    packages = dict.fromkeys(
        f" {each['package']}" for each in custom_methods.values() if each["package"]
    )
    files = dict.fromkeys(
        f" --methods {shlex.quote(each['file'])}"
        for each in custom_methods.values()
        if not each["package"] and each["file"].endswith(".py")
    )
    needs, options = "".join(packages), options + "".join(files)
    source = "".join(f"\n{_source(name, each)}\n" for name, each in custom_methods.items())
    return f"""## Reproduce

```
pip install merganser=={manifest["merganser"]}{needs}
merganser merge mergekit_config.yml OUT{options}
merganser verify OUT
```
{source}
The same recipe and inputs give the same bytes on any machine: plan `{manifest["plan"][:16]}`, output tensors
`{manifest["output_digest"][:23]}` (each tensor's digest is in `merge_manifest.json`). Inputs:

| input | weights | commit, or digest of contents |
|---|---:|---|
{rows}"""


def _identity(entry: Mapping[str, Any]) -> str:
    """The identity of an input: its commits on the Hub, the digest of its contents, or both."""
    commits: Mapping[str, str] = entry.get("commits", {})
    links = [
        f"[`{commit[:12]}`](https://huggingface.co/{name}/tree/{commit})"
        for name, commit in commits.items()
    ]
    if len(links) < 1 + entry["adapter"]:
        kind, digest = "contents", entry.get("digest")
        if digest is None:
            kind, digest = "headers only", entry["header_digest"]
        links.append(f"`{digest.removeprefix('sha256:')[:16]}` ({kind})")
    return ", ".join(links)


def _name(entry: Mapping[str, Any]) -> str:
    """An input's displayed name: a link if it is on the Hub, else its short name; never a local path."""
    if entry["hub"] and not entry["adapter"]:
        return _link(entry["hub"][0])
    shown = f"`{_flat(entry['name']).replace('`', '').replace('|', chr(92) + '|')}`"
    linked = " with ".join(map(_link, entry["hub"]))
    return f"{shown} ({linked})" if linked else shown


def _link(name: str) -> str:
    return f"[{inline(name)}](https://huggingface.co/{name})"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def inline(text: str) -> str:
    """A text on one line, with Markdown and HTML markup escaped."""
    marked = re.sub(r"([\\\[\]`*|])", r"\\\1", _flat(text))
    return marked.replace("<", "&lt;").replace(">", "&gt;")


def _flat(text: str) -> str:
    """A text on one line, shortened if it is long."""
    return one_line(" ".join(text.split()))[:300]


def _literal(text: str) -> str:
    return " ".join(text.split()).replace("\\", "").replace('"', "")
