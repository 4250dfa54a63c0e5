"""The command line: exit codes, what goes to stdout and stderr, and what starting it costs."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

import merganser
from checkpoints_on_disk import change_config, make_model, tree
from command_line import commands, load
from merganser import methods
from merganser.cli import main, program, progress_bars
from merganser.cli.mergekit_flags import MEANINGLESS
from merganser.engine import events
from merganser.merging import folders
from merganser.methods import registry
from messages import assert_one_line
from recipe_files import RecipeFile


def run(*arguments: str | Path, code: int = 0) -> Result:
    """Run a command, which must end with that exit code and no traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return result


def refusal(*arguments: str | Path, code: int) -> str:
    """Run a command that is refused with one line; the line without the program's name."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert_one_line(result.stderr)
    assert result.stderr.startswith("merganser: ")
    return result.stderr.removeprefix("merganser: ").rstrip("\n")


def printed(*arguments: str | Path, code: int = 0) -> Any:
    """Run a command with ``--json``: stdout holds nothing else."""
    return json.loads(run(*arguments, "--json", code=code).stdout)


# -- names that are easily mistyped ----------------------------------------------------------------


def test_a_path_that_looks_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "./-a" not in refusal("inspect", "-a", code=2)
    (tmp_path / "-a").mkdir()
    assert "write ./-a if you mean the path" in refusal("inspect", "-a", code=2)


def test_a_device_that_torch_does_not_know(tmp_path: Path) -> None:
    message = refusal("generate", make_model(tmp_path / "a"), "hi", "--device", "gpu", code=2)
    assert "device: 'gpu' is not available (devices are auto, cpu" in message


def test_a_weight_that_is_not_a_number_is_named_once(tmp_path: Path) -> None:
    models = [{"model": "a", "parameters": {"weight": "nan"}}]
    (tmp_path / "r.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    assert refusal("plan", tmp_path / "r.yml", code=2).endswith("nan is not a finite number")


# -- what commands print ---------------------------------------------------------------------------


def test_merge_tells_what_it_made(linear: Path, tmp_path: Path) -> None:
    result = run("merge", linear, tmp_path / "out")
    assert str(tmp_path / "out") in result.stdout
    for part in ("./a", "0.250", "./b", "0.750"):
        assert part in result.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_quiet_prints_nothing(linear: Path, tmp_path: Path) -> None:
    result = run("merge", linear, tmp_path / "out", "-q")
    assert (result.stdout, result.stderr) == ("", "")
    result = run("verify", tmp_path / "out", "--quiet")
    assert (result.stdout, result.stderr) == ("", "")


def test_merge_in_json(linear: Path, tmp_path: Path) -> None:
    data = printed("merge", linear, tmp_path / "out")
    assert data["out"] == str(tmp_path / "out")
    assert data["method"] == "linear"
    assert [m["given"] for m in data["effective_weights"]["models"]] == [0.25, 0.75]
    timings = data["timings"]
    assert set(timings) == {"plan_s", "engine_s", "finish_s", "total_s"}
    assert 0 < timings["plan_s"] < timings["total_s"]
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert {key: data[key] for key in manifest} == manifest


def test_warnings_go_to_stderr(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    file = recipe_file("merge_method: passthrough\nmodels: [{model: ./a}]\nlicense: mit\n")
    for command in (["plan", file], ["merge", file, tmp_path / "one", "-q"]):
        result = run(*command)
        assert_one_line(result.stderr, "warning: ", "recipe.yml:3: ", "license")
        assert "license" not in result.stdout
    result = run("merge", file, tmp_path / "two", "--json")
    assert_one_line(result.stderr, "warning: ")
    assert len(json.loads(result.stdout)["warnings"]) == 1


@pytest.mark.parametrize("sink", ["null", "digest"])
def test_dry_sinks_write_nothing(linear: Path, tmp_path: Path, sink: str) -> None:
    before = tree(tmp_path)
    result = run("merge", linear, "--sink", sink)
    assert tree(tmp_path) == before
    plan = merganser.plan(linear)
    lines = [line for line in result.stdout.splitlines() if line.startswith("mg1:")]
    named = [line.split("  ")[1] for line in lines]
    assert named == ([job.name for job in plan.jobs] if sink == "digest" else [])
    data = printed("merge", linear, "--sink", sink)
    assert data["out"] is None
    if sink == "digest":
        run("merge", linear, tmp_path / "out")
        written = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
        assert data["tensors"] == written["tensors"]


def test_plan_shows_what_a_merge_would_do(linear: Path) -> None:
    result = run("plan", linear)
    for part in (
        "Linear",
        "./a",
        "./b",
        "model.safetensors",
        "bfloat16",
        "0.25",
        merganser.plan(linear).digest[:16],
    ):
        assert part in result.stdout
    assert "model.layers.1.mlp.up_proj.weight" not in result.stdout
    assert "model.layers.1.mlp.up_proj.weight" in run("plan", linear, "-v").stdout
    data = printed("plan", linear, "--shard-size", "4kB")
    assert data["digest"] == merganser.plan(linear, shard_size="4kB").digest
    assert sum(shard["size"] for shard in data["shards"]) == data["output_bytes"]


def test_plan_shows_stacked_layers(pair: tuple[Path, Path], recipe_file: RecipeFile) -> None:
    file = recipe_file(
        """
        merge_method: passthrough
        slices:
        - sources: [{model: ./a, layer_range: [0, 2]}]
        - sources: [{model: ./b, layer_range: [1, 2]}]
        """
    )
    result = run("plan", file)
    rows = [line.split() for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert rows == [["0–1", "A", "0–1"], ["2", "B", "1"]]
    assert [layer[0]["layer"] for layer in printed("plan", file)["layers"]["default"]] == [0, 1, 1]


def test_inspect_is_a_fact_sheet(linear: Path, tmp_path: Path) -> None:
    data = printed("inspect", tmp_path / "a")
    expected = {
        "architecture": ["Qwen2ForCausalLM"],
        "layers": 2,
        "context_length": 131072,
        "vocabulary": 32,
        "tied_embeddings": False,
        "dtype_in_config": "bfloat16",
        "merge": None,
    }
    assert {key: data[key] for key in expected} == expected
    assert data["by_dtype"] == {"bfloat16": data["parameters"]}
    assert sum(data["by_role"].values()) == data["parameters"]
    assert "131,072" in run("inspect", tmp_path / "a").stdout
    assert (
        printed("inspect", tmp_path / "a" / "model.safetensors")["parameters"] == data["parameters"]
    )
    run("merge", linear, tmp_path / "out")
    assert printed("inspect", tmp_path / "out")["merge"]["models"] == "a + b"


def test_methods_are_listed_and_told(tmp_path: Path) -> None:
    result, data = run("methods"), printed("methods")
    assert [method["name"] for method in data] == methods.names()
    for name in methods.names():
        assert name in result.stdout
    [linear] = printed("methods", "linear")
    assert [p["name"] for p in linear["parameters"]] == ["weight", "normalize"]
    assert "2203.05482" in run("methods", "linear").stdout


def test_the_schema_is_json() -> None:
    schema = json.loads(run("schema").stdout)
    assert {"merge_method", "sweep"} <= set(schema["$defs"]["Recipe"]["properties"])


def test_verify_finds_damage(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("merge", linear, out)
    assert "every file and tensor" in run("verify", out).stdout
    assert printed("verify", out) == {"folder": str(out), "recomputed": False, "problems": []}
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model.safetensors").write_bytes(content)
    assert_one_line(refusal("verify", out, code=3), "tensor", "not what was merged")
    assert len(printed("verify", out, code=3)["problems"]) == 1


# -- flags -----------------------------------------------------------------------------------------


def test_flags_of_mergekit_yaml_are_taken(linear: Path, tmp_path: Path) -> None:
    flags = "--cuda --lazy-unpickle --copy-tokenizer --out-shard-size 5B --allow-crimes -v"
    result = run("merge", linear, tmp_path / "out", *flags.split())
    said = [line for line in result.stderr.splitlines() if "no meaning" in line]
    assert [line.split()[1] for line in said] == ["--cuda", "--lazy-unpickle", "--allow-crimes"]
    more = [f"--{name}" for name in MEANINGLESS] + [f"--no-{name}" for name in MEANINGLESS]
    more += [
        "--no-copy-tokenizer",
        "--random-seed",
        "7",
        "--num-threads",
        "2",
    ]
    run("merge", linear, tmp_path / "more", *more, "--no-write-model-card", "--quiet")
    assert set(tree(tmp_path / "more")).isdisjoint({"README.md", "tokenizer.json"})


def test_pickles_are_never_written(linear: Path, tmp_path: Path) -> None:
    assert run("merge", linear, tmp_path / "one", "--safe-serialization").stderr == ""
    result = run("merge", linear, tmp_path / "two", "--no-safe-serialization", "-q")
    assert_one_line(result.stderr, "--no-safe-serialization", "safetensors")
    assert list((tmp_path / "two").glob("*.safetensors"))


@pytest.mark.peer
def test_every_flag_of_mergekit_is_taken(linear: Path, tmp_path: Path) -> None:
    """As MergeKit's own command declares them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.options import add_merge_options

    @click.command()
    @add_merge_options
    def theirs(merge_options: Any) -> None: ...

    values = {"--device": "cpu", "--out-shard-size": "1M", "--lora-merge-dtype": "float32"}
    flags: list[str] = []
    for parameter in theirs.params:
        assert isinstance(parameter, click.Option)
        for name in [*parameter.opts, *parameter.secondary_opts]:
            flags += (
                [name] if parameter.is_flag or parameter.count else [name, values.get(name, "3")]
            )
    assert len(flags) > 40
    run("merge", linear, tmp_path / "out", *flags)


@pytest.mark.parametrize(
    ("size", "files"),
    [("5B", 1), ("0", 1), ("-1", 1), ("4K", 4), ("0.004M", 4), ("4000", 4), ("1", 27)],
)
def test_shard_sizes_of_mergekit(linear: Path, tmp_path: Path, size: str, files: int) -> None:
    run("merge", linear, tmp_path / "out", "--out-shard-size", size)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == files


def test_models_of_different_architectures_merge_if_their_tensors_fit(
    linear: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """MergeKit wants --allow-crimes for this."""
    change_config(pair[1], architectures=["MistralForCausalLM"], model_type="mistral")
    plain = run("merge", linear, tmp_path / "plain", "-q")
    assert plain.stderr == ""
    run("merge", linear, tmp_path / "crime", "--allow-crimes")
    mine, theirs = (tree(tmp_path / name) for name in ("plain", "crime"))
    assert mine["model.safetensors"] == theirs["model.safetensors"]
    assert b"Qwen2ForCausalLM" in mine["config.json"]


def test_options_reach_the_merge(linear: Path, tmp_path: Path) -> None:
    options = "--arithmetic mergekit --rounding stochastic --seed 5 --shard-size 4kB --threads 1"
    run("merge", linear, tmp_path / "out", *options.split(), "--memory", "1GB", "--public")
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    found = [manifest[key] for key in ("arithmetic", "rounding", "seed")]
    assert found == ["mergekit", "stochastic", 5]
    assert len(manifest["files"]) > 3
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    assert [model["model"] for model in recipe["models"]] == ["a", "b"]


METHOD = '''
from merganser import Combination, Weight, merge_method

@merge_method("cli_test_first")
def first(*, weight: Weight) -> Combination:
    """Only the first."""
    return Combination((1.0, *(0.0 for _ in weight[1:])))
'''


def test_a_method_from_a_file(
    pair: tuple[Path, Path],
    recipe_file: RecipeFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    recipe = recipe_file(
        """
        merge_method: cli_test_first
        models: [{model: ./a}, {model: ./b}]
        parameters: {weight: 1}
        """
    )
    assert "cli_test_first" in refusal("plan", recipe, code=2)
    file = tmp_path / "mine.py"
    file.write_text(METHOD)
    assert "Only the first." in run("methods", "--methods", file).stdout
    run("merge", recipe, tmp_path / "out", "--methods", file)
    merged, a = (
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "out", pair[0])
    )
    header = [8 + int.from_bytes(content[:8], "little") for content in (merged, a)]
    assert merged[header[0] :] == a[header[1] :]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("syntax error", ["SyntaxError"]),
        ("raise ValueError('one\\ntwo')", ["ValueError"]),
        ("from merganser import merge_method\n@merge_method('x')\ndef x(a): pass", ["TypeError"]),
        (None, ["no such"]),
    ],
)
def test_a_file_of_methods_that_does_not_load(
    tmp_path: Path, text: str | None, parts: list[str]
) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    assert_one_line(refusal("methods", "--methods", file, code=2), str(file), *parts)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["merge", "missing.yml", "out"], ["missing.yml"]),
        (["plan", "missing.yml"], ["missing.yml"]),
        (["plan", "."], ["."]),
        (["plan", "slip.yml"], ["slip.yml:3", "paramters", "'parameters'"]),
        (["plan", "warn.yml", "--strict"], ["warn.yml:3", "license"]),
        (["merge", "recipe.yml", "a"], ["a", "--force"]),
        (["merge", "recipe.yml", "a", "--force"], ["a", "input"]),
        (["merge", "recipe.yml", "out", "--memory", "much"], ["--memory", "much"]),
        (["merge", "recipe.yml", "out", "--shard-size", "5XB"], ["5XB"]),
        (["methods", "nonesuch"], ["nonesuch", "linear"]),
        (["inspect", "a+b+c"], ["a+b+c"]),
        (["inspect", ""], ["empty"]),
    ],
)
def test_wrong_usage_is_exit_code_2(
    linear: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(linear.parent)
    head = "merge_method: passthrough\nmodels: [{model: ./a}]\n"
    Path("slip.yml").write_text(head + "paramters: {}\n")
    Path("warn.yml").write_text(head + "license: mit\n")
    before = tree(linear.parent)
    assert_one_line(refusal(*arguments, code=2), *parts)
    assert tree(linear.parent) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["merge"],
        ["merge", "recipe.yml"],
        ["merge", "recipe.yml", "out", "--sink", "null"],
        ["merge", "recipe.yml", "out", "--threads", "0"],
        ["merge", "recipe.yml", "out", "--rounding", "up"],
        ["merge", "recipe.yml", "out", "--nonesuch"],
        ["nonesuch"],
        ["verify"],
    ],
)
def test_what_click_refuses_is_exit_code_2(
    linear: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(linear.parent)
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert_one_line(result.stderr.removesuffix("\n"), "merganser: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["merge", "gone.yml", "out"], "./gone"),
        (["merge", "cut.yml", "out"], "cut off"),
        (["plan", "cut.yml"], "cut off"),
        (["merge", "unlike.yml", "out"], "vocabularies"),
        (["inspect", "gone"], "gone"),
        (["inspect", "~nobody-of-that-name"], "nobody-of-that-name"),
        (["inspect", "cut"], "cut off"),
        (["inspect", "recipe.yml"], "not a model; plan and merge take recipes"),
        (["verify", "a"], "merge_manifest.json"),
        (["verify", "gone"], "gone"),
    ],
)
def test_missing_and_corrupt_inputs_are_exit_code_3(
    linear: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(linear.parent)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make_model(Path("unlike"), vocab=48)
    weights = make_model(Path("cut")) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for name in ("gone", "cut", "unlike"):
        models = f"models: [{{model: ./a}}, {{model: ./{name}}}]\n"
        Path(f"{name}.yml").write_text(f"merge_method: linear\n{models}parameters: {{weight: 1}}\n")
    before = tree(linear.parent)
    assert_one_line(refusal(*arguments, code=3), part)
    assert tree(linear.parent) == before


def test_too_little_memory_is_exit_code_4(linear: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_line(refusal("merge", linear, out, "--memory", "1MB", "-q", code=4), "memory")
    assert not out.exists()


def test_a_manifest_that_lacks_what_it_should_hold_is_exit_code_3(
    linear: Path, tmp_path: Path
) -> None:
    (tmp_path / "a" / "merge_manifest.json").write_text('{"format": 1, "tensors": {}}')
    assert_one_line(refusal("inspect", tmp_path / "a", code=3), "merge_manifest.json")


def test_an_interrupt_is_exit_code_130(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.engine, "run", interrupt)
    monkeypatch.setattr(program, "_leave_if_at_work", lambda: None)  # threads of other tests may be
    assert_one_line(refusal("merge", linear, tmp_path / "out", code=130), "interrupted")
    assert not list(tmp_path.glob("out*"))


# -- what it costs ---------------------------------------------------------------------------------

PROBE = """
import json, sys
from merganser.cli import main
for arguments in json.load(sys.stdin):
    main(arguments, standalone_mode=False)
heavy = ("torch", "numpy", "transformers", "rich", "huggingface_hub")
print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
"""


def loaded(*commands: list[str | Path]) -> set[str]:
    """The heavy libraries that commands import."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([list(map(str, command)) for command in commands]),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_names_every_command_in_a_whole_sentence_and_examples_are_commands() -> None:
    text = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert "...\n" not in text.partition("Options:")[2]
    assert max(map(len, text.splitlines())) <= 80
    for name, command in commands().items():
        assert f"  {name} " in text
        shown = CliRunner().invoke(main, [name, "--help"], prog_name="merganser").output
        examples = re.findall(rf"^    merganser {name}\b(.*)$", shown, re.M)
        assert len(examples) == shown.count("\n    merganser ")
        assert examples or name in ("inspect", "schema")
        for example in examples:
            command.make_context(name, shlex.split(re.sub(r"\s+#.*", "", example)))


def test_help_loads_nothing() -> None:
    assert loaded(["--help"], ["--version"], ["merge", "--help"], ["plan", "--help"]) == set()


def test_looking_things_up_loads_nothing() -> None:
    assert loaded(["schema"], ["methods", "--json"]) == set()


def test_planning_needs_no_torch(linear: Path) -> None:
    found = loaded(["plan", linear], ["plan", linear, "--json"])
    assert found.isdisjoint({"torch", "transformers"})


def test_inspecting_needs_no_torch(linear: Path) -> None:
    found = loaded(["inspect", linear.parent / "a"])
    assert found.isdisjoint({"torch", "transformers"})


RECIPES = {
    "linear": "models: [{model: ./a}, {model: ./b}]\nparameters: {weight: 1}\n",
    "passthrough": "models: [{model: ./a}]\n",
    "slerp": "base_model: ./a\nmodels: [{model: ./b}]\nparameters: {t: 0.5}\n",
    "task_arithmetic": "base_model: ./a\nmodels: [{model: ./b}]\nparameters: {weight: 1}\n",
}


def test_merging_and_verifying_need_no_torch(
    pair: tuple[Path, Path], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    commands: list[list[str | Path]] = []
    for name, text in RECIPES.items():
        recipe = recipe_file(f"merge_method: {name}\n{text}", f"{name}.yml")
        commands += [["merge", recipe, tmp_path / name], ["verify", tmp_path / name]]
    assert loaded(*commands).isdisjoint({"torch", "transformers"})
    assert all((tmp_path / name / "model.safetensors").is_file() for name in RECIPES)


def test_help_takes_less_than_a_third_of_a_second() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command = [sys.executable, "-m", "merganser", "--help"]
        subprocess.run(command, capture_output=True, check=True, env=dict(os.environ))
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(5, "Input/output error", "there"), "there: Input/output error"),
        (OSError("a library's\nown words"), "a library's own words"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_an_error_of_the_system_has_words(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_given: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("merganser.merging.verify.verify", fail)
    assert refusal("verify", tmp_path, code=4) == told


def test_off_a_terminal_lines_tell_the_rate_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: now)
    bar = progress_bars.ProgressBar()
    bar.listen(events.Started(40_000_000, 1, 1))
    now = 1.0
    bar.listen(events.Merged("a", 5_000_000))
    now = 20.0
    bar.listen(events.Merged("a", 20_000_000))
    assert capsys.readouterr().err.splitlines() == ["merging: 50%, 1 MB/s, 20 s left"]


def test_the_bar_of_a_merge_takes_the_place_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        progress_bars, "Console", lambda **_: Console(file=StringIO(), force_terminal=True)
    )
    bar = progress_bars.ProgressBar()
    for total in (10, 20):
        bar.listen(events.Started(total, 1, 1))
        bar.listen(events.Finished(0.1))
    assert bar.progress is not None
    assert [task.total for task in bar.progress.tasks] == [20]


# -- how commands are listed and loaded ------------------------------------------------------------


def test_help_repeats_the_first_sentence_of_each_command() -> None:
    for name, lazy in main.lazy.items():
        assert load(name).get_short_help_str(1000) == lazy.summary
        assert load(name).name == name


def test_a_command_imports_no_other() -> None:
    code = (
        "import sys\nfrom merganser.cli import main\n"
        "main(['diff', '--help'], standalone_mode=False)\n"
        "print(*[name for name in sys.modules if name.startswith('merganser.cli.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded_modules = set(done.stderr.split())
    assert "merganser.cli.differences" in loaded_modules
    others = {lazy.target.partition(":")[0] for lazy in main.lazy.values()}
    assert loaded_modules & others == {"merganser.cli.differences"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plann", "recipe.yml"], "there is no command 'plann'; did you mean 'plan'?"),
        (["swep"], "there is no command 'swep'; did you mean 'sweep'?"),
        (["qqq"], "there is no command 'qqq'; see merganser --help"),
        (["--nonesuch"], "no such option '--nonesuch'; see merganser --help"),
        (["merge"], "missing argument 'CONFIG'; see merganser merge --help"),
        (["power"], "missing argument 'STUDY'; see merganser power --help"),
        (
            ["generate", "nonesuch#w=0.7", "hello"],
            "nonesuch#w=0.7: a point of a sweep begins with the sweep's file, such as sweep.yml#w=0.7",
        ),
        (
            ["verify", "a", "--agianst", "b"],
            "no such option '--agianst'. Did you mean '--against'?",
        ),
        (
            ["merge", "a", ""],
            "invalid value for '[OUT]': the name is empty; see merganser merge --help",
        ),
        (
            ["merge", "a", "b", "-j", "0"],
            "invalid value for '-j' / '--threads' / '--num-threads': 0 is not in the range x>=1; "
            "see merganser merge --help",
        ),
    ],
)
def test_what_is_wrong_with_a_call_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert_one_line(result.stderr.removesuffix("\n"), f"merganser: {message}")


def test_outputs_are_named_from_the_current_folder_and_steer_no_terminal(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(main, ["merge", str(linear), "OUT"])
    assert "\nOUT: " in first.stdout
    second = CliRunner().invoke(main, ["merge", str(linear), "red\x1b[31m"])
    assert "red\\x1b[31m: " in second.stdout
    assert "\x1b" not in second.stdout
