"""Command lines for a page's requests: a page can do nothing that the command line cannot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from merganser.errors import RecipeError
from merganser.results.scores import JSON_NAME, PARTIAL_NAME
from merganser.studio import recipes, study_files
from merganser.studio.library import Library
from merganser.studio.sweeps import Axes, make
from merganser.studio.sweeps import Given as _Asked

NO_NETWORK = "the studio was started without --network"

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


@dataclass(frozen=True)
class Command:
    """A command line of Merganser.

    Attributes:
        title: a short description.
        words: the arguments, without the program.
        result: whether stdout is JSON for the page.
        network: whether the command may use the network if the studio may, or cannot run without.
        kind: the kind of request that it answers.
        folder: the folder that it writes; None if it writes none.
    """

    title: str
    words: Sequence[str]
    result: bool = False
    network: Literal["none", "allowed", "needed"] = "none"
    kind: str = ""
    folder: str | None = None


class Merge(_Asked):
    """Write a blend: the recipe ``NAME.yml``, and the merged model in the folder ``NAME``."""

    kind: Literal["merge"]
    text: str
    name: str

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        recipes.read_plan(self.text, library)
        library.new(self.name)
        library.save(f"{self.name}.yml", self.text)
        words = ["merge", f"{self.name}.yml", self.name]
        return Command(f"write {self.name}", words, kind=self.kind, folder=self.name)


class Sweep(Axes):
    """Merge and score a blend's models at many weights, by one or several methods."""

    kind: Literal["sweep"]
    name: str

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        recipes.read_plan(self.text, library)
        file = make(self, library)
        library.new(self.name)
        library.save(f"{self.name}.yml", file.text)
        return _sweep(self.name, network=file.network)


class Again(_Asked):
    """Run the file of a study, or resume it where it stopped: ``NAME.yml`` into the folder ``NAME``.

    With ``write`` the merges that its rule chooses are written too.
    """

    kind: Literal["again"]
    name: str
    write: bool = False

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        library.output(self.name)
        network = study_files.check(f"{self.name}.yml", library)
        return _sweep(_plain(self.name), network=network, write=self.write)


class Differences(_Asked):
    """Compare two models, by layer and kind of tensor."""

    kind: Literal["diff"]
    first: str
    second: str
    base: str | None = None
    ulp: Literal["bfloat16", "float16", "float32"] | None = None

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        chosen = [self.first, self.second, *([self.base] if self.base else [])]
        for model in chosen:
            _check_readable(model, library)
        words = ["diff", _plain(self.first), _plain(self.second)]
        words += ["--base", _plain(self.base)] if self.base else []
        words += ["--ulp", self.ulp] if self.ulp else []
        title = f"compare {self.first} with {self.second}"
        return Command(title, [*words, "--json"], result=True, kind=self.kind)


def _check_readable(model: str, library: Library) -> None:
    """Check that a model, or all models of a recipe, are the library's.

    Raises:
        MerganserError: a model is missing, broken, or elsewhere.
    """
    if not model.endswith((".yml", ".yaml")):
        recipes.read_model(model, library)
        return
    text = library.inside(model).read_text(encoding="utf-8", errors="replace")
    recipes.read_plan(text, library)


class Report(_Asked):
    """Draw the report of a study, as it is published."""

    kind: Literal["report"]
    name: str

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        if not any(library.has(f"{self.name}/{file}") for file in (JSON_NAME, PARTIAL_NAME)):
            library.inside(f"{self.name}/{JSON_NAME}")
        return Command(f"report on {self.name}", ["report", _plain(self.name)], kind=self.kind)


class Publish(_Asked):
    """List what publishing a folder would make public; with ``send``, publish it."""

    kind: Literal["publish"]
    folder: str
    repository: str
    private: bool = True
    public: bool = True
    send: bool = False

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        library.model(self.folder)
        if not _REPOSITORY.fullmatch(self.repository):
            raise RecipeError(f"{self.repository[:100]!r} is no ORG/NAME")
        words = ["push", _plain(self.folder), self.repository]
        words += ["--private"] * self.private + ["--hide-paths"] * self.public
        if self.send:
            title = f"publish {self.folder}"
            return Command(title, [*words, "--yes"], network="needed", kind="push")
        title = f"show what {self.folder} would publish"
        return Command(title, [*words, "--dry-run", "--json"], result=True, kind=self.kind)


class Search(_Asked):
    """Search the Hub for models."""

    kind: Literal["search"]
    text: str = Field(min_length=1, max_length=100)

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        words = ["models", "--json", "--", self.text]
        title = f"search the Hub for {self.text}"
        return Command(title, words, result=True, network="needed", kind=self.kind)


class Fetch(_Asked):
    """Download a model from the Hub into its cache."""

    kind: Literal["fetch"]
    repository: str

    def command(self, library: Library) -> Command:
        """See :func:`command_of`."""
        if not _REPOSITORY.fullmatch(self.repository):
            raise RecipeError(f"{self.repository[:100]!r} is no ORG/NAME")
        title = f"download {self.repository}"
        return Command(title, ["inspect", self.repository], network="needed", kind=self.kind)


Asked = Merge | Sweep | Again | Differences | Report | Publish | Search | Fetch


def command_of(asked: Asked, library: Library) -> Command:
    """Return the command for a page's request, and write the recipe that it needs.

    Raises:
        MerganserError: an input is missing or wrong, or an output exists already.
    """
    return asked.command(library)


def _sweep(name: str, *, network: bool, write: bool = False) -> Command:
    """Return the command that scores a study's models; ``network`` allows it to fetch public problems."""
    return Command(
        f"sweep {name}",
        ["sweep", f"{name}.yml", name, *([] if write else ["--no-write"])],
        network="allowed" if network else "none",
        kind="sweep",
        folder=name,
    )


def _plain(path: str) -> str:
    """Return a path that cannot be mistaken for an option."""
    return f"./{path}" if path.startswith("-") else path
