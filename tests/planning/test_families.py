"""A few dozen of transformers' classes: merged, stacked, loaded again, compared and run.

``make families`` goes over all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_checks import check_class
from tiny import class_names

CLASSES = {
    "CAUSAL_LM": ["afmoe", "deepseek_v3", "gemma4_text", "gpt_neox", "longcat_flash", "xlstm"],
    "IMAGE_TEXT_TO_TEXT": ["blip", "gemma4", "kosmos-2", "qwen3_vl"],
    "SEQ_TO_SEQ_CAUSAL_LM": ["bart", "nllb-moe", "switch_transformers", "t5", "t5gemma2"],
    "MASKED_LM": ["albert", "bert", "deberta", "electra", "mpnet", "neomme", "roberta"],
    "PRETRAINING": ["bert", "electra", "funnel"],
    "SEQUENCE_CLASSIFICATION": ["bert", "gpt2", "llama", "xlm-roberta"],
    "IMAGE_CLASSIFICATION": ["convnextv2", "swinv2"],
}
# Experts, ties, shared weights, recurrent blocks, images and names that differ: the others are slow tests.
ODDEST = {
    *("deepseek_v3", "gemma4_text", "xlstm", "kosmos-2", "qwen3_vl", "switch_transformers", "t5"),
    *("deberta", "roberta", "funnel", "llama", "convnextv2"),
}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("mapping", "model_type"),
    [
        pytest.param(m, kind, marks=[] if kind in ODDEST else pytest.mark.slow)
        for m, kinds in CLASSES.items()
        for kind in kinds
    ],
)
def test_a_class_merges_stacks_and_runs(tmp_path: Path, mapping: str, model_type: str) -> None:
    names = class_names(mapping)
    if model_type not in names:
        pytest.skip(f"this transformers has no {model_type} in its mapping {mapping}")
    with torch.random.fork_rng():
        outcome = check_class(names[model_type], model_type, tmp_path)
    assert (outcome.not_built, outcome.refused, outcome.failed) == ("", "", "")


def test_what_is_wrong_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that loses a tensor, and one whose numbers are wrong."""
    import merganser

    genuine = merganser.merge

    def wrong(recipe: dict[str, object], *arguments: object, **options: object) -> object:
        if recipe["merge_method"] == "linear":
            recipe = recipe | {"models": recipe["models"][:1]}  # type: ignore[index]
        return genuine(recipe, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(merganser, "merge", wrong)
    outcome = check_class("LlamaForCausalLM", "llama", tmp_path)
    assert "other numbers" in outcome.failed


def test_no_class_of_the_page_fails() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    head = next(row for row in rows if "classes" in row)
    totals = dict(zip(head, next(row for row in rows if row[:1] == ["all"]), strict=True))
    assert int(totals["classes"]) > 900
    assert totals["failed"] == "0"
    assert not any("**failed**" in row for row in rows)
    assert "have not been checked yet" not in text
