"""Attacks made by hand: one line and exit code 2 or 3, in bounded time and memory, nothing run or touched."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import pytest
from click.testing import CliRunner

from checkpoints_on_disk import make_model, tree
from hostile import ATTACKS, HARMLESS, HEAD, linked
from merganser.checkpoints import open_checkpoint, torch_pickle
from merganser.cli import main
from merganser.errors import InputError
from merganser.merging.merge import merge
from merganser.release import card, manifest
from merganser.tensors import DTYPES

_SEARCH = """
search: {over: {w: {from: 0, to: 1}}, objectives: {accuracy: max}, method: random, budget: 2}
evaluate:
  tasks: [{name: sums, problems: sums.jsonl, scorers: [accuracy]}]
"""

SECONDS = 5
MEMORY = 2**30


def in_a_process(folder: Path) -> tuple[int, str, int]:
    """The command's exit code, what it prints as an error, and the memory that it took: with a limit
    on memory, and none on the mistakes it may make."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors = folder.parent / "errors.txt"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = _merge(folder, errors)
        except BaseException:
            errors.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, errors.read_text(), max(0, usage.ru_maxrss - before) * 1024


def _merge(folder: Path, errors: Path) -> int:
    os.chdir(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY + 2**28, resource.RLIM_INFINITY))
    signal.alarm(4 * SECONDS)
    is_sweep = "sweep:" in Path("recipe.yml").read_text(errors="replace")
    with errors.open("w") as stream:
        sys.stderr = stream
        arguments = ["sweep" if is_sweep else "merge", "recipe.yml", "out", "-q"]
        code = main(arguments, standalone_mode=False)
        return int(code or 0)


@pytest.fixture(scope="module")
def pair_of_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all attacks spoil; merged once, so that all that this needs is there before processes are
    forked."""
    import huggingface_hub
    import jinja2  # noqa: F401

    import merganser.study.sweep  # noqa: F401

    assert huggingface_hub.__version__
    folder = tmp_path_factory.mktemp("hostile")
    for seed, name in enumerate("ab"):
        make_model(folder / name, hidden=8, seed=seed)
    (folder / "recipe.yml").write_text(HEAD % 1)
    arguments = ["merge", str(folder / "recipe.yml"), str(folder / "out"), "-q"]
    assert not main(arguments, standalone_mode=False)
    shutil.rmtree(folder / "out")
    return folder


@pytest.fixture
def models(tmp_path: Path, pair_of_models: Path) -> Path:
    return Path(shutil.copytree(pair_of_models, tmp_path / "work"))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_is_refused_in_one_line(models: Path, name: str) -> None:
    ATTACKS[name](models)
    before = {name: data for name, data in tree(models).items() if len(data) < 2**20}
    code, told, memory = in_a_process(models)
    assert code in (2, 3), (code, told[-2000:])
    lines = [line for line in told.splitlines() if "warning:" not in line]
    assert len(lines) == 1, told[-2000:]
    assert lines[0].startswith("merganser: ")
    assert lines[0].isprintable()
    assert len(lines[0].replace(str(models), "")) < 650
    assert memory < MEMORY
    shutil.rmtree(
        models / "out.partial", ignore_errors=True
    )  # which a refusal may leave, to go on from
    after = {name: data for name, data in tree(models).items() if len(data) < 2**20}
    assert after == before
    assert sorted(entry.name for entry in models.parent.iterdir()) == ["errors.txt", "work"]


def test_a_link_elsewhere_is_refused_before_anything_is_merged(models: Path) -> None:
    linked("vocab.txt", "passwd")(models)
    before = tree(models)
    with pytest.raises(InputError, match=r"vocab\.txt: is a link out of its folder"):
        merge(models / "recipe.yml", models / "out", shard_size="1kB")
    assert tree(models) == before  # several files could have been whole by then


@pytest.mark.parametrize("file", ["vocab.txt", "generation_config.json"])
@pytest.mark.parametrize("block", ["", "sweep: {w: [0.5, 0.7]}\n", _SEARCH])
def test_a_plan_tells_of_a_link_elsewhere_as_the_merge_does(
    models: Path, file: str, block: str
) -> None:
    linked(file, "passwd")(models)
    (models / "sums.jsonl").write_text('{"id": "1", "problem": "1 + 1 =", "answer": "2"}\n')
    recipe = models / "recipe.yml"
    with pytest.raises(InputError) as refusal:
        merge(recipe, models / "out")
    recipe.write_text(block + HEAD % ('"{{ w }}"' if block else "1"))
    told = CliRunner().invoke(main, ["plan", str(recipe)])
    assert (told.exit_code, told.stdout) == (3, "")
    assert told.stderr == f"merganser: {refusal.value}\n"
    assert f"{file}: is a link out of its folder" in told.stderr
    code = CliRunner().invoke(main, ["plan", str(recipe), "--no-copy-tokenizer"]).exit_code
    assert code == (0 if file == "vocab.txt" else 3)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_an_attack_that_comes_to_nothing(models: Path, name: str) -> None:
    HARMLESS[name](models)
    code, told, memory = in_a_process(models)
    assert code == 0, told
    assert memory < MEMORY
    assert sorted(entry.name for entry in models.iterdir()) == ["a", "b", "out", "recipe.yml"]
    assert sorted(entry.name for entry in models.parent.iterdir()) == ["errors.txt", "work"]
    assert "<script" not in (models / "out/README.md").read_text()


# -- what the fuzzer and the corpus found, each by itself --------------------------------------------


def test_messages_are_one_printable_line_of_bounded_length() -> None:
    told = str(InputError("a\nb\x1b[2J\ud800" + "x" * 10**6 + "end"))
    assert told.isprintable()
    assert len(told) < 700
    assert told.startswith("a b\\x1b[2J\\ud800xxx")
    assert told.endswith("end")


def test_a_pickle_cannot_change_what_all_share(tmp_path: Path) -> None:
    before = repr(DTYPES)
    for code in (b"ctorch\nfloat32\n]\x8c\x04evilab.", b"ctorch\nFloatStorage\n]Nab."):
        with pytest.raises(InputError, match="no state"):
            torch_pickle.unpickle(b"\x80\x02" + code, tmp_path / "x.pt")
    assert repr(DTYPES) == before


def test_messages_name_what_a_pickle_names_and_nothing_of_ours(tmp_path: Path) -> None:
    form = torch_pickle.record("ZeroStageEnum")
    names = {("a", "ZeroStageEnum"): form, ("a", "call"): torch_pickle.Function(len)}
    told = torch_pickle.unpickle(
        b"\x80\x02]ca\nZeroStageEnum\naca\nZeroStageEnum\n)Raca\ncall\na.", tmp_path, names
    )
    assert str(told) == "[ZeroStageEnum, a ZeroStageEnum, a function]"
    assert repr(torch_pickle.Dictionary) == "Dictionary"


def test_links_into_a_hubs_cache_and_to_files_of_the_same_name_work(tmp_path: Path) -> None:
    home = tmp_path / "models--x--y"
    made = make_model(tmp_path / "made", hidden=8)
    snapshot = home / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    (tmp_path / "same").mkdir()
    for number, file in enumerate(sorted(made.iterdir())):
        file.rename(home / f"blobs/{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    opened = open_checkpoint(snapshot)
    assert opened.config["model_type"] == "qwen2"
    opened.close()
    plain = make_model(tmp_path / "plain", hidden=8)
    for file in sorted(plain.iterdir()):
        (tmp_path / "same" / file.name).symlink_to(file)
    open_checkpoint(tmp_path / "same").close()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../../elsewhere")
    (tmp_path / "elsewhere").write_text("{}")
    with pytest.raises(InputError, match="link out of its folder"):
        open_checkpoint(snapshot)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("license: mit", "mit"),
        ("license: 'apache-2.0'  # as it was", "apache-2.0"),
        ("x: 1\nlicense: mit\ny: 2", "mit"),
        ("a: &a [1]\nlicense: *a", None),
        ("license: [mit]", None),
        ("license: <script>", None),
    ],
)
def test_a_parents_licence_is_one_plain_line(tmp_path: Path, text: str, found: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n# x\n")
    assert manifest._license(tmp_path) == found


def test_text_in_a_card_cannot_become_markup() -> None:
    shown = card.inline("a|b [x](javascript:y) `c`\n# **d** <b>")
    assert shown == "a\\|b \\[x\\](javascript:y) \\`c\\` # \\*\\*d\\*\\* &lt;b&gt;"
