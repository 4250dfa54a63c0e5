"""A study as a paper has it: numbers, marks, escapes, and LaTeX without warnings."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import simulated
from merganser import cli, methods
from merganser.reports import bibliography, latex, paper
from merganser.results import frames, paired, scores
from merganser.results.scores import Entry, Score

pytest.importorskip("matplotlib")

LATEX = shutil.which("pdflatex")
CHANCES = {"base": 0.2, "a_1 & b": 0.5, "w1": 0.45, "w2": 0.75, "w3": 0.76}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    roles: dict[str, scores.Role] = {"base": "base", "a_1 & b": "expert"}
    drawn = simulated.verdicts(3, 60, 4, CHANCES)
    entries = [
        Entry(n, roles.get(n, "point"), model=n if n in roles else None, values={"w": k / 4})
        for k, n in enumerate(CHANCES)
    ]
    home = tmp_path / "study"
    found = simulated.write(home, entries, {"math_500": drawn}, tasks=["math_500"])
    typed = Entry(
        "theirs",
        "published",
        scores={"exact": Score(0.467, 0.091, 0.29, 0.65, 30)},
        source="arXiv:2503.16219",
    )
    task = {"task": "math_500", "problems": 60, "samples": 4, "temperature": 0.6, "top_p": 0.95}
    settings = {
        "tasks": [task | {"max_tokens": 99, "seed": 0}],
        "versions": {"merganser": "0.1.0", "torch": "2.13.0"},
    }
    entries = [*found.entries[:2], typed, *found.entries[2:]]
    recipe = "merge_method: ties\nmodels: [{model: x}]\n"
    found = replace(
        found,
        entries=tuple(entries),
        settings=settings,
        recipe=recipe,
        chosen={"w2": "max exact with tokens <= 22"},
    )
    scores.write(found, home)
    return home


def test_the_table(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "paper"
    files = paper.write(study, out)
    assert {f.name for f in files} >= {
        "scores.tex",
        "methods.tex",
        "references.bib",
        "samples.parquet",
    }
    text = (out / "scores.tex").read_text()
    found = scores.read(study)
    for entry in found.entries:
        score = entry.scores["exact"]
        assert f"{100 * score.mean:.1f} & {{\\scriptsize$\\pm${100 * score.error:.1f}}}" in text
    assert r"a\_1 \& b" in text
    assert "exact (\\%) $\\uparrow$" in text
    bold = {m[1] for m in re.finditer(r"^(\S+) & \\bfseries", text, re.MULTILINE)}
    assert bold == {"w2", "w3"} == set(paired.leaders(study)["exact"])
    better = {m[1] for m in re.finditer(r"^(\S+) .*\\dagger\$ \\\\$", text, re.MULTILINE)}
    rows = paired.compare(study, against=["a_1 & b"]).rows
    assert better == {row.model for row in rows if row.verdict == "better"} == {"w2", "w3"}
    assert "math\\_500: $n=60$ problems, $k=4$ samples each (temperature 0.6, top-p 0.95" in text
    assert "theirs: arXiv:2503.16219" in text
    assert "**" in (out / "scores.md").read_text()
    methods = (out / "methods.tex").read_text()
    assert "\\texttt{ties}~\\cite{yadav2023ties}" in methods
    assert "tokens $<$= 22" in methods
    keys = set(re.findall(r"@\w+\{(\w+),", (out / "references.bib").read_text()))
    cited = {k for m in re.finditer(r"\\cite\{([^}]*)\}", methods) for k in m[1].split(",")}
    assert cited <= keys
    assert {"lightman2023verify", "dang2025openrs"} <= keys
    again = {f.name: f.read_bytes() for f in files}
    assert {f.name: f.read_bytes() for f in paper.write(study, tmp_path / "b")} == again


def test_frames(study: Path) -> None:
    frame = frames.samples(study)
    assert len(frame) == 5 * 60 * 4
    means = frame.groupby("model")["score_exact"].mean()
    found = scores.read(study)
    for entry in found.entries:
        if entry.samples:
            assert means[entry.name] == pytest.approx(entry.scores["exact"].mean)
    table = found.to_pandas()
    assert list(table["name"]) == [entry.name for entry in found.entries]
    assert table["exact_mean"][2] == 0.467


@pytest.mark.skipif(LATEX is None, reason="no LaTeX")
def test_latex_has_nothing_to_say(study: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.main, ["report", str(study), "--paper", str(tmp_path / "p")])
    assert done.exit_code == 0, done.output
    home = tmp_path / "p"
    latex_command = [LATEX or "", "-interaction=nonstopmode", "-halt-on-error", "main"]
    for command in (latex_command, ["bibtex", "main"], latex_command, latex_command):
        run = subprocess.run(command, cwd=home, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout
    log = (home / "main.log").read_text(errors="replace")
    assert not re.findall(r"^.*(?:Warning|Overfull|Underfull|undefined).*$", log, re.MULTILINE)
    assert (home / "main.pdf").stat().st_size > 10_000


def test_escapes_and_unknown_sources() -> None:
    assert latex.escape("50 % of a_b & c$ {x}^2 <y>") == (
        r"50 \% of a\_b \& c\$ \{x\}\textasciicircum{}2 $<$y$>$"
    )
    key, text = bibliography.entry("2601.99999", "RAM")
    assert key == "source260199999"
    assert "title = {RAM}" in text
    assert "eprint = {2601.99999}" in text
    assert text.count("{") == text.count("}")
    papers = {
        method.paper for name in methods.names() if (method := methods.get(name)) and method.paper
    }
    assert len(papers) >= 11
    for source in papers:
        assert "author = {" in bibliography.entry(source)[1]
    key, text = bibliography.entry("https://example.org/x", "X")
    assert text.startswith(f"@misc{{{key},")
    for source in (
        "holm",
        "2306.01708",
        "https://dl.acm.org/doi/10.1145/325334.325242",
        "merganser",
    ):
        key, text = bibliography.entry(source)
        assert text.split("{")[1].startswith(f"{key},")
        assert text.count("{") == text.count("}")


def test_the_paragraph_names_data_sets_reward_models_and_judges() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    scorers = {
        "quality": {"scorer": "judge", "identity": {"model": "j_1", "prompt_digest": "ab12"}},
        "reward": {"scorer": "reward", "identity": {"model": "org/rm", "revision": commit}},
        "exact": {"scorer": "exact"},
    }
    tasks = [
        {"source": f"hub://openai/gsm8k/main@{commit}:test#question,answer", "scorers": scorers},
        {"task": "mine"},
    ]
    assert paper._origins(tasks) == [
        r"The problems are those of \texttt{openai/gsm8k} (commit \texttt{0123456}) on the Hugging Face Hub.",
        r"\texttt{quality} is the judgement of the language model \texttt{j\_1}, asked with the prompt of "
        r"digest \texttt{ab12} in the results.",
        r"\texttt{reward} is the output of the reward model \texttt{org/rm} (revision "
        r"\texttt{0123456789abcd}).",
    ]
    assert paper._origins([{"task": "mine"}]) == []
