"""Cut merges off at every moment, and see that nothing is lost: ``docs/reliability.md``.

    python tests/robustness/torture.py [--kills 300] [--seed 0] [--only kills,faults,flips,disk,together] [--write]

Every attempt is a child forked from this process, which has imported all and compiled the kernels: a
start costs milliseconds. Faults are injected below Python, by a library in C that is put in front of
the system's (``LD_PRELOAD``), so that the program under test is the one that users run.

What counts as wrong: a folder that has its final name and is not, byte for byte, what an undisturbed
merge writes (or what was there before); a merge that cannot go on; an error without a message, or
with a traceback, or with an exit code of no error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from merganser.cli import main as command_line
from merganser.errors import InputError
from merganser.merging.merge import merge
from merganser.merging.verify import verify
from merganser.study.sweep import sweep

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
SHARDS = "256kB"

WORKERS = 2
"""Processes that share the work of a chapter."""


@dataclass(frozen=True)
class Line:
    """One line of the table: what was done, how often, and what came of it."""

    what: str
    times: str
    found: str
    good: bool


# -- models ----------------------------------------------------------------------------------------


def make_model(folder: Path, seed: int, side: int, layers: int) -> Path:
    """A model of the shape of Llama's, of random bfloat16."""
    random_bits = np.random.default_rng(seed)
    names = {"model.embed_tokens.weight": (64, side), "model.norm.weight": (side,)}
    for i in range(layers):
        names[f"model.layers.{i}.self_attn.q_proj.weight"] = (side, side)
        names[f"model.layers.{i}.mlp.up_proj.weight"] = (2 * side, side)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in names.items():
        numbers = (0.05 * random_bits.standard_normal(shape)).astype(np.float32)
        stored = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        place = [len(data), len(data) + len(stored)]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": place}
        data += stored
    text = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": side,
        "num_hidden_layers": layers,
        "vocab_size": 64,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"vocab": {}}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    return folder


def write_recipes(home: Path, side: int = 128, layers: int = 12) -> tuple[Path, Path]:
    """Two models, a recipe that merges them, and a sweep."""
    home.mkdir(exist_ok=True)
    for seed, name in enumerate("ab"):
        make_model(home / name, seed, side, layers)
    models = [{"model": f"./{n}", "parameters": {"weight": w}} for n, w in (("a", 0.3), ("b", 0.7))]
    recipe = {"merge_method": "linear", "models": models, "dtype": "bfloat16"}
    points = [
        {"model": "./a", "parameters": {"weight": "{{ 1 - w }}"}},
        {"model": "./b", "parameters": {"weight": "{{ w }}"}},
    ]
    several = recipe | {"name": "m_w{{ w }}", "sweep": {"w": [0.2, 0.5, 0.8]}, "models": points}
    (home / "recipe.yml").write_text(yaml.safe_dump(recipe))
    (home / "sweep.yml").write_text(yaml.safe_dump(several))
    return home / "recipe.yml", home / "sweep.yml"


def finished(folder: Path) -> dict[str, Any]:
    """All of what is finished in a folder, but what in manifests tells of time and place."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and ".partial/" not in str(file.relative_to(folder)):
            data: Any = file.read_bytes()
            if file.name == "merge_manifest.json":
                data = json.loads(data)
                del data["log"]
            found[str(file.relative_to(folder))] = data
    return found


# -- processes -------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> int:
    """Start doing something in a forked process; its number."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
    except BaseException as error:
        os.write(1, f"    {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def in_process(
    *arguments: str | Path,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> tuple[int, str]:
    """The command line in a forked process, warm: exit code, and what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 99
        try:
            before()
            command_line([str(each) for each in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-6:]
            places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(where))
            print(f"Traceback: {error!r} in {places}", file=sys.stderr)
        finally:
            after()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as stream:
        told = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), told


# -- kill -9 ---------------------------------------------------------------------------------------


def kills(home: Path, count: int, seed: int) -> list[Line]:
    """Kill merges and sweeps at random moments, as often as it takes to finish them."""
    recipe, several = write_recipes(home)
    chance = random.Random(seed)

    def one(out: Path) -> object:
        return merge(recipe, out, shard_size=SHARDS, threads=2, resume=True)

    def replace(out: Path) -> object:
        return merge(recipe, out, shard_size=SHARDS, threads=2, resume=True, force=True)

    def many(out: Path) -> object:
        return sweep(several, out, shard_size=SHARDS, threads=2)

    lines = []
    for label, work, share in (
        ("a merge", one, 2),
        ("a merge over an old folder (`--force`)", replace, 1),
        ("a sweep of three points", many, 1),
    ):
        work(home / "undisturbed" / "out")
        wanted = finished(home / "undisturbed" / "out")
        began = time.perf_counter()
        work(home / "timed")
        usual = time.perf_counter() - began
        wrong = resumed = done = cut = 0
        while done < count * share // 4:
            out = home / "out"
            if work is replace:
                shutil.copytree(home / "a", out)
            old = finished(out) if out.exists() else {}
            for _ in range(1000):
                child = in_child(partial(work, out))
                time.sleep(chance.uniform(0, 1.3 * usual))
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                killed = os.WIFSIGNALED(status)
                done, cut = done + killed, cut + killed
                now = finished(out) if out.exists() else {}
                points = {name.split("/")[0] for name in now} if work is many else set()
                part = {n: d for n, d in wanted.items() if not points or n.split("/")[0] in points}
                if now not in ({}, old, part if now else {}):
                    wrong += 1
                if now == wanted:
                    break
                if not killed:
                    wrong += 1
                    break
                if done >= count * share // 4:
                    work(out)
                    break
            resumed += cut if finished(out) == wanted else 0
            wrong += finished(out) != wanted
            cut = 0
            for each in (out, home / "out.partial"):
                shutil.rmtree(each, ignore_errors=True)
        found = f"{wrong} wrong folders, {resumed} resumed to identical bytes"
        lines.append(
            Line(f"`kill -9` of {label}", str(done), found, wrong == 0 and resumed == done)
        )
        for name in ("undisturbed", "timed"):
            shutil.rmtree(home / name)
    return lines


# -- faults ----------------------------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Once armed, call number `at` of the kind on a file below `home` fails with an error, or does only
   half of it if that is 0; all such calls are counted. */

static int counted = 0, at = -1, fault = 0, armed = 0;
static char kind[32], home[4096];

void fault_arm(const char *k, const char *h, int a, int f) {
    strncpy(kind, k, sizeof kind - 1); strncpy(home, h, sizeof home - 1);
    at = a; fault = f; counted = 0; armed = 1;
}
int fault_disarm(void) { armed = 0; return counted; }

static int is_ours(const char *path) { return path && strstr(path, home) != NULL; }

static int is_ours_open(int descriptor) {
    if (!armed) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static int hit(const char *now, int ours) {
    if (!armed || !ours || strcmp(kind, now)) return 0;
    return __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST) == at;
}

#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)
#define FAIL { errno = fault; return -1; }

typedef ssize_t (*io_t)(int, void *, size_t);
typedef ssize_t (*pio_t)(int, void *, size_t, off_t);
typedef ssize_t (*piov_t)(int, const struct iovec *, int, off_t);
typedef int (*fd_t)(int);
typedef int (*two_t)(const char *, const char *);
typedef int (*open_t)(const char *, int, ...);
typedef int (*openat_t)(int, const char *, int, ...);
typedef int (*mkdir_t)(const char *, mode_t);

ssize_t write(int d, const void *b, size_t n) {
    REAL("write", io_t);
    if (d > 2 && hit("write", is_ours_open(d))) { if (fault) FAIL; n = n > 1 ? n / 2 : n; }
    return real(d, (void *)b, n);
}
ssize_t pwrite64(int d, const void *b, size_t n, off_t o) {
    REAL("pwrite64", pio_t);
    if (hit("write", is_ours_open(d))) { if (fault) FAIL; n = n > 1 ? n / 2 : n; }
    return real(d, (void *)b, n, o);
}
ssize_t pwrite(int d, const void *b, size_t n, off_t o) { return pwrite64(d, b, n, o); }
ssize_t read(int d, void *b, size_t n) {
    REAL("read", io_t);
    if (d > 2 && hit("read", is_ours_open(d))) { if (fault) FAIL; n = n > 1 ? n / 2 : n; }
    return real(d, b, n);
}
ssize_t preadv64(int d, const struct iovec *v, int c, off_t o) {
    REAL("preadv64", piov_t);
    if (hit("read", is_ours_open(d))) {
        if (fault) FAIL;
        struct iovec half = { v->iov_base, v->iov_len > 1 ? v->iov_len / 2 : v->iov_len };
        return real(d, &half, 1, o);
    }
    return real(d, v, c, o);
}
ssize_t preadv(int d, const struct iovec *v, int c, off_t o) { return preadv64(d, v, c, o); }
int fsync(int d) { REAL("fsync", fd_t); if (hit("fsync", is_ours_open(d))) FAIL; return real(d); }
int ftruncate64(int d, off_t n) {
    typedef int (*t)(int, off_t); REAL("ftruncate64", t);
    if (hit("truncate", is_ours_open(d))) FAIL; return real(d, n);
}
int ftruncate(int d, off_t n) { return ftruncate64(d, n); }
int rename(const char *a, const char *b) {
    REAL("rename", two_t); if (hit("rename", is_ours(a))) FAIL; return real(a, b);
}
int mkdir(const char *a, mode_t m) {
    REAL("mkdir", mkdir_t); if (hit("mkdir", is_ours(a))) FAIL; return real(a, m);
}
int unlink(const char *a) {
    typedef int (*t)(const char *); REAL("unlink", t);
    if (hit("unlink", is_ours(a))) FAIL; return real(a);
}
int close(int d) {
    REAL("close", fd_t);
    if (hit("close", is_ours_open(d))) { real(d); FAIL; }
    return real(d);
}
int stat64(const char *a, struct stat64 *s) {
    typedef int (*t)(const char *, struct stat64 *); REAL("stat64", t);
    if (hit("stat", is_ours(a))) FAIL; return real(a, s);
}
int lstat64(const char *a, struct stat64 *s) {
    typedef int (*t)(const char *, struct stat64 *); REAL("lstat64", t);
    if (hit("stat", is_ours(a))) FAIL; return real(a, s);
}
int fstat64(int d, struct stat64 *s) {
    typedef int (*t)(int, struct stat64 *); REAL("fstat64", t);
    if (hit("stat", is_ours_open(d))) FAIL; return real(d, s);
}
int fstatat64(int d, const char *a, struct stat64 *s, int f) {
    typedef int (*t)(int, const char *, struct stat64 *, int); REAL("fstatat64", t);
    if (hit("stat", is_ours(a))) FAIL; return real(d, a, s, f);
}
int stat(const char *a, struct stat *s) { return stat64(a, (struct stat64 *)s); }
int lstat(const char *a, struct stat *s) { return lstat64(a, (struct stat64 *)s); }
int fstat(int d, struct stat *s) { return fstat64(d, (struct stat64 *)s); }
int fstatat(int d, const char *a, struct stat *s, int f) {
    return fstatat64(d, a, (struct stat64 *)s, f);
}
DIR *opendir(const char *a) {
    typedef DIR *(*t)(const char *); REAL("opendir", t);
    if (hit("list", is_ours(a))) { errno = fault; return NULL; } return real(a);
}
int open64(const char *path, int flags, ...) {
    REAL("open64", open_t);
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest);
    if (hit("open", is_ours(path))) FAIL;
    return real(path, flags, mode);
}
int open(const char *path, int flags, ...) {
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest);
    return open64(path, flags, mode);
}
int openat64(int d, const char *path, int flags, ...) {
    REAL("openat64", openat_t);
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest);
    if (hit("open", is_ours(path))) FAIL;
    return real(d, path, flags, mode);
}
"""

KINDS = {
    "open": (5, 13),
    "read": (5, 0),
    "write": (5, 28, 0),
    "fsync": (5,),
    "close": (5,),
    "truncate": (5,),
    "rename": (5,),
    "mkdir": (28,),
    "unlink": (5,),
    "list": (5,),
    "stat": (5,),
}
"""Calls, and what becomes of each: EIO, ENOSPC, EACCES, or only half of what was asked (0)."""

NAMES = {5: "EIO", 28: "ENOSPC", 13: "EACCES", 0: "half of it"}


@dataclass(frozen=True)
class Command:
    """A command whose calls fail in turn.

    Attributes:
        words: what it is called with; ``RECIPE``, ``SWEEP`` and ``OUT`` stand for paths.
        makes: where an ``out`` lies that is like what it makes.
        again: what is added to go on with it.
        old: whether ``OUT`` was there before.
    """

    words: str
    makes: str
    again: str = ""
    old: bool = False


COMMANDS = (
    Command("merge RECIPE OUT --shard-size 32kB -j 1 -q", "merged", "--resume"),
    Command("merge RECIPE OUT --shard-size 32kB -j 1 -q --force", "merged", "--resume", old=True),
    Command("sweep SWEEP OUT --shard-size 32kB -j 1 -q", "swept"),
    Command("verify OUT -q", "old", old=True),
)


def faults(home: Path, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Line]:
    """Let every single call of some commands fail in turn, in two processes that have the library in
    front of the system's; only calls of some kinds where that is asked for."""
    if shutil.which("gcc") is None:
        return [Line("I/O faults", "0", "skipped: there is no gcc", True)]
    (home / "shim.c").write_text(SHIM)
    library = home / "shim.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(home / "shim.c"), "-ldl"],
        check=True,
    )
    workers = []
    for part in range(WORKERS):
        place = home / f"worker{part}"
        recipe, several = write_recipes(place, side=64, layers=2)
        merge(recipe, place / "merged/out", shard_size="32kB", threads=1)
        sweep(several, place / "swept/out", shard_size="32kB", threads=1)
        shutil.copytree(place / "swept/out/m_w0.2", place / "old/out")
        command = [sys.executable, __file__, "--faults", str(place), "--part", str(part)]
        command += ["--calls", ",".join(kinds)]
        workers.append(subprocess.Popen(command, env=os.environ | {"LD_PRELOAD": str(library)}))
    if any([worker.wait() for worker in workers]):
        return [Line("I/O faults", "0", "the harness broke", False)]
    parts = [json.loads((home / f"worker{part}/tally.json").read_text()) for part in range(WORKERS)]
    lines = []
    for name in parts[0]:
        counts = {key: sum(part[name][key] for part in parts) for key in parts[0][name]}
        found = (
            f"{counts['wrong']} wrong folders, {counts['unclear']} unclear errors; "
            f"{counts['finished']} finished anyway, {counts['resumed']} on retry"
        )
        good = counts["wrong"] == counts["unclear"] == 0
        lines.append(Line(name, str(counts["calls"]), found, good))
    return lines


def fault_worker(home: Path, part: int, kinds: Sequence[str]) -> None:
    """A process with the library: forks a command for every call that is to fail."""
    import ctypes

    library = ctypes.CDLL(None)
    count = home.with_suffix(".count")
    merge(home / "recipe.yml", home / "warm", shard_size="32kB", threads=1)
    verify(home / "warm")
    # Errors of the system must get their words where they arise: the last resort is taken away.
    vars(sys.modules["merganser.cli.program"])["OSError"] = KeyboardInterrupt

    def attempt(words: list[str], kind: str, at: int, fault: int) -> tuple[int, str, int]:
        code, told = in_process(
            *words,
            before=lambda: library.fault_arm(kind.encode(), str(home).encode(), at, fault),
            after=lambda: count.write_text(str(library.fault_disarm())),
        )
        return code, told, int(count.read_text())

    results = {}
    for kind in kinds:
        for fault in KINDS[kind]:
            tally = dict.fromkeys(("calls", "wrong", "unclear", "finished", "resumed"), 0)
            name = f"`{kind}` returns {NAMES[fault]}"
            failing = partial(attempt, kind=kind, fault=fault)
            for command in COMMANDS:
                _let_fail(command, home, part, name, failing, tally)
            results[name] = tally
    (home / "tally.json").write_text(json.dumps(results))


def _let_fail(
    command: Command,
    home: Path,
    part: int,
    name: str,
    attempt: Callable[..., tuple[int, str, int]],
    tally: dict[str, int],
) -> None:
    """Let calls of a kind fail in turn: every one of a part of them."""
    out = home / "out"
    places = {"RECIPE": "recipe.yml", "SWEEP": "sweep.yml", "OUT": "out"}
    words = [str(home / places[word]) if word in places else word for word in command.words.split()]
    wanted = finished(home / command.makes / "out")
    old = finished(home / "old/out") if command.old else {}

    def begin() -> None:
        for each in (out, home / "out.partial"):
            shutil.rmtree(each, ignore_errors=True)
        if command.old:
            shutil.copytree(home / "old/out", out)

    begin()
    code, told, calls = attempt(words, at=-1)
    assert code == 0, told
    for at in range(part, calls, WORKERS):
        begin()
        code, told, _ = attempt(words, at=at)
        now = finished(out) if out.exists() else {}
        points = {name.split("/")[0] for name in now} if command.makes == "swept" else set()
        some = {n: d for n, d in wanted.items() if n.split("/")[0] in points}
        wrong = now not in (old, wanted, some if points else old) or (code == 0 and now != wanted)
        lines = told.splitlines()
        clear = code in (2, 3, 4) and all(line.startswith("merganser: ") for line in lines)
        clear = clear and (len(lines) == 1 or (lines != [] and words[0] == "verify"))
        tally["calls"] += 1
        tally["finished"] += code == 0
        tally["unclear"] += code != 0 and not clear
        if code != 0:
            again, more = in_process(*words, *command.again.split())
            done = again == 0 and finished(out) == wanted
            tally["resumed"] += done
            wrong = wrong or not done
            told += more
        tally["wrong"] += wrong
        if wrong or (code != 0 and not clear):
            print(f"    {command.words}: {name}, call {at}: {code}: {told[-600:]}", file=sys.stderr)
    begin()


# -- flipped bits ----------------------------------------------------------------------------------


def flips(home: Path, seed: int) -> list[Line]:
    """Flip every bit of a small folder in turn."""
    recipe, _ = write_recipes(home, side=16, layers=1)
    out = home / "out"
    merge(recipe, out)
    places = []
    for file in sorted(each for each in out.rglob("*") if each.is_file()):
        size = file.stat().st_size
        places += [(file.relative_to(out), at, bit) for at in range(size) for bit in range(8)]
    copies = [home / str(worker) for worker in range(WORKERS)]
    children = []
    for worker, copy in enumerate(copies):
        shutil.copytree(out, copy / "out")
        children.append(in_child(partial(_flip, copy, places[worker :: len(copies)])))
    for child in children:
        os.waitpid(child, 0)
    missed = [line for copy in copies for line in (copy / "missed").read_text().splitlines()]
    for line in missed:
        print(f"    not named: {line}", file=sys.stderr)
    sizes = sum(file.stat().st_size for file in out.rglob("*"))
    what = f"flipped bits of a folder of {sizes:,} bytes, every one"
    found = f"{len(missed)} missed by `verify`"
    return [Line(what, f"{len(places):,}", found, not missed)]


def _flip(home: Path, places: list[tuple[Path, int, int]]) -> None:
    """Flip bits of a folder in turn, and write down those that are not found."""
    missed = []
    for name, place, bit in places:
        descriptor = os.open(home / "out" / name, os.O_RDWR)
        byte = os.pread(descriptor, 1, place)
        os.pwrite(descriptor, bytes([byte[0] ^ (1 << bit)]), place)
        if not _named(home / "out", name.name):
            missed.append(f"{name} {place} {bit}")
        os.pwrite(descriptor, byte, place)
        os.close(descriptor)
    if verify(home / "out"):
        missed.append("the folder is not what it was")
    (home / "missed").write_text("\n".join(missed))


def _named(out: Path, name: str) -> bool:
    try:
        found = verify(out)
    except InputError as error:
        found = [str(error)]
    part = "tensor" if name.endswith(".safetensors") else name
    return any(part in each or name in each for each in found)


# -- full disks ------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes, if one may be mounted here."""
    place.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
            capture_output=True,
        ).returncode
        == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def disk(home: Path, seed: int) -> list[Line]:
    """Fill a disk at ten moments of a merge, then make room and go on."""
    recipe, _ = write_recipes(home)
    merge(recipe, home / "undisturbed" / "out", shard_size=SHARDS)
    wanted = finished(home / "undisturbed" / "out")
    total = sum(f.stat().st_size for f in (home / "undisturbed").rglob("*"))
    good = 0
    for moment in range(10):
        with small_disk(home / f"disk{moment}", 2 * total + 2**20) as mounted:
            if not mounted:
                return [Line("full disk", "0", "skipped: nothing may be mounted here", True)]
            place = home / f"disk{moment}"
            left = total * moment // 10
            filler = place / "filler"
            free = shutil.disk_usage(place).free
            with filler.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, max(1, free - left))
            arguments = ["merge", recipe, place / "out", "--shard-size", SHARDS, "-q", "-j", "1"]
            child = in_child(partial(_without_check, arguments))
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            clean = code == 4 and not (place / "out").exists()
            filler.unlink()
            again = in_child(partial(_without_check, [*arguments, "--resume"]))
            os.waitpid(again, 0)
            good += clean and finished(place / "out") == wanted
    found = f"{good} clean errors (exit code 4), resumed to identical bytes once there is room"
    return [Line("full disk, at ten moments", "10", found, good == 10)]


def _without_check(arguments: list[str | Path]) -> None:
    """A merge whose check of the disk was passed before others filled it."""
    from merganser.merging import output_folder

    output_folder.check_space = lambda _plans: None
    try:
        command_line([str(each) for each in arguments])
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)


# -- many at once ----------------------------------------------------------------------------------


def together(home: Path, seed: int) -> list[Line]:
    """Eight merges at once, each held to a bound on its memory by the system."""
    recipe, _ = write_recipes(home, side=1024, layers=8)
    merge(recipe, home / "undisturbed" / "out")
    wanted = finished(home / "undisturbed" / "out")
    bound = 300 * 2**20
    limit, kind = limited(bound)
    command = [*limit, sys.executable, "-m", "merganser", "merge", str(recipe), "-q"]
    began = time.perf_counter()
    running = [
        subprocess.Popen([*command, str(home / str(i) / "out"), "--memory", str(bound)])
        for i in range(8)
    ]
    peaks = dict.fromkeys(range(8), 0)
    while any(each.poll() is None for each in running):
        for i, each in enumerate(running):
            peaks[i] = max(peaks[i], _resident(each.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    good = sum(
        each.returncode == 0 and finished(home / str(i) / "out") == wanted
        for i, each in enumerate(running)
    )
    most = max(peaks.values())
    found = (
        f"{good} finished with identical bytes in {seconds:.0f} s, each held to 300 MiB by {kind}; "
        f"the largest was resident with {most / 2**20:.0f} MiB"
    )
    what = "merges at once, with `--memory 300MiB` each"
    return [Line(what, "8", found, good == 8 and most <= bound)]


def limited(bound: int) -> tuple[list[str], str]:
    """What goes before a command so that the system gives it no more memory, and what that is called."""
    scope = ["systemd-run", "--scope", "--quiet", "--collect"]
    scope += ["-p", f"MemoryMax={bound}", "-p", "MemorySwapMax=0"]
    private = ["prlimit", f"--data={bound}"]
    for prefix, kind in (
        (scope, "a cgroup (`MemoryMax`)"),
        (private, "the system (`ulimit -d`: memory of its own; no cgroup could be made here)"),
    ):
        with suppress(FileNotFoundError):
            if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
                return prefix, kind
    return [], "Merganser alone (the system has no limits here)"


def _resident(process: int) -> int:
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


# -- the page --------------------------------------------------------------------------------------


def page(lines: list[Line], seconds: float) -> str:
    """The table, and what it says."""
    rows = "".join(f"| {line.what} | {line.times} | {line.found} |\n" for line in lines)
    return f"""# What happens when things break

`make torture` measured this page in one go on {date.today():%-d %B %Y} ({seconds / 60:.0f} minutes on
{len(os.sched_getaffinity(0))} cores that had other work too). The tests have short versions.

| event | times | outcome |
|---|---|---|
{rows}
- A folder with its final name is *wrong* if it cannot be finished, or differs in a byte from what an
  undisturbed merge writes (or from what was there before). That includes weights, config, tokenizer,
  card, and the manifest except for its `log`.
- Kills come at random moments of the complete command, after imports. Each merge is resumed, and
  killed again, until it is done.
- Faults are injected into every single call of a kind in turn, below Python, by a library in front of
  C's: in a merge, a merge with `--force` over an old folder, a sweep of three points, and `verify`. Then
  the command runs again, with `--resume` if it is a merge. An error is clear if it is one line without a
  traceback, has the exit code of its kind, and comes from the code that met the fault: the command
  line's last resort is switched off. `verify` may print several lines. Calls that do half of what was
  asked must make no difference. `list` is reading a folder.
- Bits are every bit of every file, including the manifest and the card.
- The disk fills up during the merge, after its check. A disk that is too small from the start is an
  error before anything is written.
"""


def main() -> None:
    """Do it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="kills,faults,flips,disk,together")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    parser.add_argument("--faults", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--calls", default=",".join(KINDS), help="only faults of these")
    asked = parser.parse_args()
    if asked.faults:
        fault_worker(asked.faults, asked.part, asked.calls.split(","))
        return
    chapters: dict[str, Callable[[Path], list[Line]]] = {
        "kills": lambda home: kills(home, asked.kills, asked.seed),
        "faults": lambda home: faults(home, asked.seed, asked.calls.split(",")),
        "flips": lambda home: flips(home, asked.seed),
        "disk": lambda home: disk(home, asked.seed),
        "together": lambda home: together(home, asked.seed),
    }
    began = time.perf_counter()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as temporary:
        for name in asked.only.split(","):
            home = Path(temporary) / name
            home.mkdir()
            for line in chapters[name](home):
                lines.append(line)
                state = "" if line.good else "  <-- BAD"
                print(f"{line.what}: {line.times}: {line.found}{state}", flush=True)
    if asked.write:
        PAGE.write_text(page(lines, time.perf_counter() - began), encoding="utf-8")
    if not all(line.good for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
