"""Write ``docs/families.md``: what becomes of every model type of the installed transformers.

Each class of transformers' mappings is built tiny and at random, merged by ``linear`` and ``ties``,
stacked, loaded again, compared in float64 and run. Results go into a file as they come, so that an
interrupted run continues where it stopped.

    python docs/families.py                    all, and the page
    python docs/families.py --check            all, without the page: fails if a class fails
    python docs/families.py --only llama t5    some, printed
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

import torch
import transformers

from model_checks import Outcome, as_json, check_class
from tiny import class_names

TARGET = ROOT / "docs" / "families.md"
RESULTS = ROOT / "families-out" / "results.json"
SECONDS = 60
"""Longest that one class may take of the processor."""

INTERRUPTED = "the process ended during the check, which the next run repeats"
INTERRUPTED_TWICE = "the process ended during the check, twice"

MAPPINGS: Mapping[str, str] = {
    "causal LM": "CAUSAL_LM",
    "image-text": "IMAGE_TEXT_TO_TEXT",
    "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM",
    "speech": "SPEECH_SEQ_2_SEQ",
    "masked LM": "MASKED_LM",
    "pre-training": "PRETRAINING",
    "sequence": "SEQUENCE_CLASSIFICATION",
    "token": "TOKEN_CLASSIFICATION",
    "question": "QUESTION_ANSWERING",
    "choice": "MULTIPLE_CHOICE",
    "next sentence": "NEXT_SENTENCE_PREDICTION",
    "image": "IMAGE_CLASSIFICATION",
    "audio": "AUDIO_CLASSIFICATION",
    "video": "VIDEO_CLASSIFICATION",
}
"""The mappings, by the names of the page's columns."""

HEADER = """# Model families

`make families` writes this page. For the classes of these mappings of transformers {version},
`docs/families.py` builds three tiny random models from the class's own default config, merges them by
`linear` and `ties`, stacks the layers `[0, 2]` and `[1, n]` of one, loads the outputs with
`output_loading_info`, compares every tensor with float64, and runs them. {missing}

- stacked: merged and stacked. Both outputs load without a missing or unexpected tensor, every number is
  right, and they compute what the mean of the models and the layers in that order compute. *Italics*:
  the same, but not run, since the script has no inputs for the class.
- merged: the same for the merges. Stacking is refused or impossible, for the reason below.
- **refused**: the merge is refused, for the reason below.
- –: no tiny model can be built, for the reason below.
- **failed**: the result is wrong, as described below.
- An empty cell: transformers has no such class.
"""


class OutOfTime(BaseException):
    """A class takes too long. No ``Exception``, so that nothing on the way handles it."""


def main() -> None:
    """Check what is not checked yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="these model types alone")
    parser.add_argument("--column", choices=list(MAPPINGS), help="this mapping alone")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument(
        "--again", action="store_true", help="check what failed or was not built again"
    )
    parser.add_argument("--check", action="store_true", help="write no page")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _out_of_time)
    results = _read(given.results, given.fresh)
    if given.again:
        results = {k: v for k, v in results.items() if not (v["failed"] or v["not_built"])}
    started, checked = time.monotonic(), 0
    for column, mapping in MAPPINGS.items():
        if given.column in (None, column):
            for model_type, class_name in class_names(mapping).items():
                if given.only is None or model_type in given.only:
                    checked += _checked(results, column, model_type, class_name, given)
    sys.stderr.write(f"{checked} classes in {time.monotonic() - started:.0f} s\n")
    if not given.check and given.only is None:
        TARGET.write_text(page(results), encoding="utf-8")
    sys.exit(any(outcome["failed"] for outcome in results.values()))


def _checked(
    results: dict[str, Any],
    column: str,
    model_type: str,
    class_name: str,
    given: argparse.Namespace,
) -> bool:
    """Check a class that has no result yet, and save the result."""
    key = f"{column}/{model_type}"
    interrupted = key in results and results[key]["failed"] == INTERRUPTED
    if key in results and not interrupted and given.only is None:
        return False
    results[key] = as_json(Outcome(failed=INTERRUPTED_TWICE if interrupted else INTERRUPTED))
    _write(given.results, results)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcome = check_class(class_name, model_type, Path(folder))
        except OutOfTime:
            outcome = Outcome(not_built=f"takes more than {SECONDS} seconds")
        except Exception as error:
            outcome = Outcome(failed=f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    results[key] = as_json(outcome)
    _write(given.results, results)
    if given.only is not None or outcome.failed:
        text = {k: v for k, v in results[key].items() if v not in ("", False)}
        sys.stderr.write(f"{key} {class_name} {time.monotonic() - began:.1f} s: {text}\n")
    return True


def _out_of_time(number: int, frame: FrameType | None) -> None:
    raise OutOfTime


def _read(file: Path, fresh: bool) -> dict[str, Any]:
    """Earlier results with this version of transformers."""
    if fresh or not file.is_file():
        return {}
    data = json.loads(file.read_text(encoding="utf-8"))
    results: dict[str, Any] = data["results"]
    return results if data["transformers"] == transformers.__version__ else {}


def _write(file: Path, results: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    data = {"transformers": transformers.__version__, "results": results}
    file.write_text(json.dumps(data, indent=1), encoding="utf-8")


def state(outcome: Mapping[str, Any]) -> str:
    """An outcome in one word."""
    for key, word in (("failed", "failed"), ("not_built", "not built"), ("refused", "refused")):
        if outcome[key]:
            return word
    return "merged" if outcome["not_stacked"] else "stacked"


def cell(outcome: Mapping[str, Any] | None) -> str:
    """A cell of the table."""
    if outcome is None:
        return ""
    word = state(outcome)
    if word == "not built":
        return "–"
    if word in ("failed", "refused"):
        return f"**{word}**"
    return word if outcome["ran"] else f"*{word}*"


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page."""
    words = ("stacked", "merged", "refused", "not built", "failed")
    totals = []
    for column in [*MAPPINGS, "all"]:
        found = [v for key, v in results.items() if column in ("all", key.split("/")[0])]
        counts = Counter(map(state, found))
        numbers = [len(found), *(counts[word] for word in words), sum(v["ran"] for v in found)]
        totals.append([column, *map(str, numbers)])
    types = sorted({key.split("/")[1] for key in results})
    rows = [[f"`{t}`", *(cell(results.get(f"{c}/{t}")) for c in MAPPINGS)] for t in types]
    return "\n".join(
        [
            HEADER.format(version=transformers.__version__, missing=_missing(results)),
            *_table(["", "classes", *words, "run"], totals),
            "\n## By type\n",
            *_table(["type", *MAPPINGS], rows),
            *_reasons("Failed", results, "failed"),
            *_reasons("Refused", results, "refused"),
            *_reasons("Not stacked", results, "not_stacked"),
            *_reasons("Not built", results, "not_built"),
            "",
        ]
    )


def _missing(results: Mapping[str, Any]) -> str:
    """How many classes have no result yet."""
    keys = [f"{c}/{kind}" for c, mapping in MAPPINGS.items() for kind in class_names(mapping)]
    missing = sum(key not in results for key in keys)
    return f"**{missing} of {len(keys)} classes have not been checked yet.**" if missing else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _reasons(title: str, results: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """A list of reasons, and the classes that each is for."""
    found: dict[str, list[str]] = {}
    for name, outcome in results.items():
        if outcome[key] and (key != "not_stacked" or state(outcome) == "merged"):
            column, model_type = name.split("/")
            found.setdefault(_escaped(outcome[key]), []).append(f"{model_type} ({column})")
    if not found:
        return []
    return [f"\n## {title}\n", *(f"- {reason}: {', '.join(v)}" for reason, v in found.items())]


def _escaped(text: str) -> str:
    for sign in "\\*_<>|[]":
        text = text.replace(sign, "\\" + sign)
    return text


if __name__ == "__main__":
    main()
