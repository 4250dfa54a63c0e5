"""Programs of models: run only if allowed, within limits; and their tests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from merganser import cli
from merganser.cli.score_table import failed_lines
from merganser.errors import InputError, RecipeError
from merganser.evaluation import code_scorer, samples, sandbox, scorers, tasks
from merganser.evaluation.judging import Item, judge_all
from merganser.evaluation.problems import Problem
from merganser.evaluation.samples import Sample
from merganser.evaluation.sandbox import Limits
from merganser.evaluation.statistics import Score
from merganser.results.scores import Entry, Results
from messages import assert_one_line
from pages import page

SMALL = Limits(seconds=5.0, memory=400 * 2**20)


def test_a_program_and_its_checks() -> None:
    assert sandbox.run("x = 1\nprint('a')", "assert x == 1", limits=SMALL).passed
    failed = sandbox.run("x = 1", "assert x == 2, 'two'", limits=SMALL)
    assert (failed.passed, failed.reason) == (False, "AssertionError: two")
    assert "SyntaxError" in sandbox.run("x = ", limits=SMALL).reason


@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "import os; os._exit(0)"])
def test_ending_early_is_not_passing(end: str) -> None:
    outcome = sandbox.run(end, "assert False", limits=SMALL)
    assert (outcome.passed, outcome.reason) == (False, "ended before its checks")


def test_time_and_memory_are_limited() -> None:
    begun = time.monotonic()
    slow = Limits(0.4, SMALL.memory)
    assert (
        sandbox.run("import time; time.sleep(60)", limits=slow).reason == "took longer than 0.4 s"
    )
    assert time.monotonic() - begun < 10
    large = sandbox.run("x = bytearray(900 * 2**20)", limits=SMALL)
    assert large.reason == "needed more than 400 MB of memory"


def test_files_are_limited(tmp_path: Path) -> None:
    program = (
        "open('here', 'w').write('a')\n"
        f"try: open({str(tmp_path / 'there')!r}, 'w').write('a')\n"
        "except OSError as error: print('refused')\n"
        "try: open('large', 'wb').write(bytes(2**25))\n"
        "except OSError as error: print('too large')\n"
    )
    outcome = sandbox.run(program, limits=SMALL)
    assert outcome.passed
    assert "too large" in outcome.output
    if "files" not in outcome.lacking:
        assert "refused" in outcome.output
        assert not (tmp_path / "there").exists()


def test_the_network_and_secrets_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    program = (
        "import os, socket\n"
        "print(sorted(os.environ))\n"
        "server = socket.socket()\n"
        "try:\n    socket.create_connection(('127.0.0.1', PORT), timeout=1)\n"
        "    print('connected')\n"
        "except OSError: print('no network')\n"
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = sandbox.run(program.replace("PORT", str(port)), limits=SMALL)
    assert outcome.passed
    assert "HF_TOKEN" not in outcome.output
    if "network" not in outcome.lacking:
        assert "no network" in outcome.output


def test_processes_are_limited_and_none_is_left() -> None:
    outcome = sandbox.run(
        "import os\nif os.fork() == 0:\n    import time; time.sleep(60)", limits=SMALL
    )
    assert outcome.passed or "Error" in outcome.reason


# -- the scorer ------------------------------------------------------------------------------------


def judged(record: dict[str, Any], text: str, **parameters: Any) -> tuple[float | None, str]:
    problem = Problem("0", "?", (), None, record, "p.jsonl:1")
    item = Item(problem, 0, Sample("task", "0", 0, "?", text, 3, "stop"))
    [found] = judge_all(scorers.get("code", parameters), [item])
    return found.score, found.note


ADD = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."


def test_tests_of_each_form() -> None:
    mbpp = {"test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == one()"]}
    mbpp |= {"test_setup_code": "one = lambda: 1"}
    assert judged(mbpp, ADD, tests="test_list") == (0.0, "AssertionError")
    assert judged(mbpp, ADD, tests="test_list", share=True) == (0.5, "AssertionError")
    human = {"tests": "def check(f):\n    assert f(2, 2) == 4", "entry_point": "add"}
    assert judged(human, ADD) == (1.0, "")
    pairs = {"tests": [{"input": "1 2\n", "output": "3"}]}
    program = "```\nprint(sum(map(int, input().split())))\n```"
    assert judged(pairs, program) == (1.0, "")
    assert judged(pairs, "print(4)") == (0.0, "printed something else")
    apps = {"tests": json.dumps({"inputs": ["1 2", ["3", "4"]], "outputs": ["3", "7"]})}
    assert judged(apps, program, share=True) == (0.5, "printed something else")


def test_the_program_in_a_completion() -> None:
    text = "<think>```python\n1\n```</think>\n```bash\nls\n```\n```py\n2\n```\n```text\n3\n```"
    assert code_scorer.program_of(text) == "2\n"
    assert code_scorer.program_of("x = 1") == "x = 1"


def test_tests_that_are_missing() -> None:
    found = scorers.get("code")
    assert found.check is not None
    for record, told in [
        ({"problem": "?"}, "p:1: has no field 'tests' with tests; it has problem"),
        ({"tests": [1]}, "p:1: tests is a text, a list of texts, or of"),
        (
            {"tests": '{"inputs": [1], "outputs": []}'},
            "p:1: tests is a text, a list of texts, or of",
        ),
    ]:
        with pytest.raises(InputError) as refused:
            found.check(Problem("0", "?", (), None, record, "p:1"))
        assert_one_line(str(refused.value), told)


def test_no_program_is_run_unless_the_user_says_so(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"problem": "?", "tests": "pass"}) + "\n")
    (tmp_path / "tasks.yml").write_text("tasks: [{problems: p.jsonl, scorers: [code]}]")
    with pytest.raises(RecipeError) as refused:
        tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)
    assert_one_line(
        str(refused.value),
        "tasks.yml:1: tasks[0].scorers: code runs programs that models write",
        "allow_code: true in this block, or allow_code=True",
    )
    block, _, _ = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate, allow_code=True)
    assert block.allow_code
    text = "allow_code: true\ntasks: [{problems: p.jsonl, scorers: [code]}]"
    (tmp_path / "tasks.yml").write_text(text)
    assert len(tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)[1]) == 1


def test_the_code_of_the_page_on_scorers(tmp_path: Path) -> None:
    (tmp_path / "programs.jsonl").write_text('{"problem": "?", "test_list": ["assert f()"]}\n')
    (tmp_path / "tasks.yml").write_text(page("scorers.md", "yaml")[3])
    [task] = tasks.load(tmp_path / "tasks.yml", tasks.Evaluate)[1]
    assert task.metrics[0].scorer.identity["memory_mb"] == 512


def test_the_command_needs_a_flag_and_names_failures(tmp_path: Path) -> None:
    record = {"problem": "?", "tests": "assert f() == 1", "id": "a"}
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n")
    given = tmp_path / "s.jsonl"
    samples.write([Sample("p", "a", 0, "?", "f = lambda: 2", 3, "stop")], given)
    (tmp_path / "tasks.yml").write_text("tasks: [{problems: p.jsonl, scorers: [code]}]")
    command = ["eval", "--from", str(given), str(tmp_path / "tasks.yml")]
    refused = CliRunner().invoke(cli.main, command)
    assert refused.exit_code == 2
    assert_one_line(refused.stderr.strip(), "allow_code: true in this block, or --allow-code")
    done = CliRunner().invoke(cli.main, [*command, "--allow-code"])
    assert done.exit_code == 0, done.output
    assert "failed on" not in done.stdout
    [line] = (tmp_path / "s.judged.jsonl").read_text().splitlines()
    assert (json.loads(line)["score"], json.loads(line)["note"]) == (0.0, "AssertionError")


def test_the_table_says_what_failed() -> None:
    score = Score(0.5, 0.1, 0.3, 0.7, 4, {"longer than 64 tokens": 2, "took longer than 1 s": 1})
    entry = Entry("a", "expert", scores={"quality": score, "quality_pass@2": score})
    found = Results("study", "", {"quality": "max"}, {}, (entry,))
    assert failed_lines(found) == [
        "a: quality failed on 3 samples: 2 × longer than 64 tokens; 1 × took longer than 1 s"
    ]
