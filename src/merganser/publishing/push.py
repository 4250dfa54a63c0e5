"""Publish a merged folder, or the chosen points of a study, as repositories on the Hub.

:func:`prepare` decides everything, so that it can be shown; :func:`push` sends it.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser import hub, recipe
from merganser.engine.events import Listener, ignore
from merganser.errors import InputError, MerganserError, RecipeError, reraise_os_errors
from merganser.merging.verify import verify
from merganser.publishing import study_cards
from merganser.release import card, local_paths, manifest
from merganser.release import public_names as naming
from merganser.release.local_paths import Disclosed
from merganser.results import scores as studies

EDITED = (card.NAME, "config.json", "generation_config.json")
"""Files that may be edited before publishing; all others must be as merged."""

UNSENT = (".git", ".cache", "__pycache__", ".DS_Store")
"""Names of files and folders that are never sent."""

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")
"""Weight files of an earlier push, which would be loaded if they stayed."""


@dataclass(frozen=True, slots=True)
class Package:
    """One folder to publish.

    Attributes:
        folder: the folder.
        repository: ``org/name``.
        files: the files to send by their paths in the repository: a file, or other content for it.
        licenses: licences of the parents and adapters by name; None if a card states none.
        disclosed: local paths in the files.
    """

    folder: Path
    repository: str
    files: Mapping[str, Path | bytes]
    licenses: Mapping[str, str | None]
    disclosed: tuple[Disclosed, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            name: content.stat().st_size if isinstance(content, Path) else len(content)
            for name, content in self.files.items()
        }


@dataclass(frozen=True, slots=True)
class Publication:
    """Everything that one push publishes.

    Attributes:
        packages: one per repository.
        private: whether new repositories are private.
        revision: the branch; None for the main branch.
        collection: title of a collection for the repositories, or None.
    """

    packages: tuple[Package, ...]
    private: bool
    revision: str | None = None
    collection: str | None = None

    @property
    def disclosed(self) -> list[tuple[str, Disclosed]]:
        """Every local path that would become public, with its repository."""
        return [(each.repository, path) for each in self.packages for path in each.disclosed]


@dataclass(frozen=True, slots=True)
class State:
    """The state of the Hub before a push.

    Attributes:
        account: the account of the token.
        repositories: existing repositories by name; None for those to create.
    """

    account: str
    repositories: Mapping[str, hub.Repository | None]

    def stale(self, package: Package) -> list[str]:
        """Weights that are there and are none of the package's: they are taken away."""
        there = self.repositories[package.repository]
        return sorted(
            name
            for name in (there.files if there else ())
            if name not in package.files and any(fnmatch.fnmatch(name, w) for w in WEIGHTS)
        )


@dataclass(frozen=True, slots=True)
class Published:
    """What a push did: the address of every repository's commit, and of the collection."""

    commits: Mapping[str, str]
    collection: str | None


def prepare(
    out: str | Path,
    name: str,
    *,
    private: bool = False,
    public_names: bool = False,
    collection: str | None = None,
    revision: str | None = None,
    on_event: Listener = ignore,
) -> Publication:
    """Decide what a push would publish, without asking the Hub.

    Every folder is checked: it must be complete, and its tensors must match its manifest.

    Args:
        out: a merged folder, or a sweep's with the folders of its points. Of an evaluated study the chosen
            points are published, of another sweep all.
        name: ``org/name``; for a sweep ``org`` or ``org/title``, and each point is called ``org/POINT``.
        private: whether only the owners see new repositories.
        public_names: send names in place of local paths in card, recipe, manifest and config.
        collection: title of a collection; for a sweep by default the name behind ``org/``, or the study's.
        revision: a branch.
        on_event: told of the progress of checking.

    Raises:
        InputError: a folder is incomplete, or differs from its manifest.
        RecipeError: when a name cannot be.
    """
    home = Path(out)
    if not home.is_dir():
        raise InputError(f"{home}: no such folder")
    if (home / manifest.NAME).is_file() or _is_partial(home):
        package = _pack(home, name, public_names, on_event)
        return Publication((package,), private, revision, collection)
    folders, study = _points(home)
    organisation, _, title = name.partition("/")
    names = {folder: f"{organisation}/{folder.name}" for folder in folders}
    for each in names.values():
        hub.check_name(each)
    packages = tuple(_pack(folder, names[folder], public_names, on_event) for folder in folders)
    shown = collection or title or study or home.resolve().name
    return Publication(packages, private, revision, shown)


def look(publication: Publication) -> State:
    """Return what the Hub already has of a publication.

    Raises:
        MerganserError: when there is no token, the Hub cannot be reached, or a repository is public that
            should be private.
    """
    account = hub.account()
    there = {
        each.repository: hub.look(each.repository, publication.revision)
        for each in publication.packages
    }
    for name, found in there.items():
        if publication.private and found is not None and not found.private:
            raise MerganserError(
                f"{name}: is there already and public, and private=True would not change that; "
                "make it private in its settings first, or choose another name"
            )
    return State(account, there)


def push(
    out: str | Path,
    name: str,
    *,
    private: bool = False,
    public: bool = False,
    with_paths: bool = False,
    collection: str | None = None,
    revision: str | None = None,
    progress: bool = False,
) -> Published:
    """Publish a merged folder, or the chosen points of a study, on the Hub, without asking again.

    Repeat an interrupted push to resume it.

    Args:
        out: a merged folder, or a sweep's with the folders of its points. From an evaluated study the
            chosen points are published, from another sweep all.
        name: ``org/name``; for a sweep ``org`` or ``org/title``, and each point is called ``org/POINT``.
        private: only the owners see new repositories.
        collection: title of a collection; for a sweep by default the name after ``org/``, or the study's.
        revision: a branch.
        public: send names in place of local paths in card, recipe, manifest and config.
        with_paths: send local paths as they are.
        progress: whether bars are drawn on stderr.

    Raises:
        MerganserError: in one line, with what to do; nothing is sent where the files hold local paths
            and nobody said what becomes of them.
    """
    publication = prepare(
        out,
        name,
        private=private,
        public_names=public,
        collection=collection,
        revision=revision,
    )
    check_paths(publication, public=public, with_paths=with_paths)
    return send(publication, look(publication), progress=progress)


def check_paths(publication: Publication, *, public: bool, with_paths: bool) -> None:
    """Check that no local paths are sent without consent.

    Raises:
        RecipeError: when the files hold some.
    """
    if publication.disclosed and not with_paths:
        raise RecipeError(
            f"the files hold {len(publication.disclosed)} local paths; nothing was sent. public=True "
            "sends names in their place, with_paths=True sends them as they are"
            + (" (what public=True cannot change, take out by hand)" if public else "")
        )


def send(publication: Publication, state: State, *, progress: bool = True) -> Published:
    """Send it: a repository after the other, each in one commit; then the collection.

    Repeat an interrupted push to resume it: existing files are not sent twice.

    Args:
        publication: what :func:`prepare` decided.
        state: what :func:`look` found.
        progress: whether bars are drawn on stderr.

    Raises:
        MerganserError: in one line, with what to do.
    """
    commits = {}
    for each in publication.packages:
        commits[each.repository] = hub.send(
            each.repository,
            each.files,
            private=publication.private,
            message=f"Merged by Merganser {manifest.read(each.folder)['merganser']}",
            revision=publication.revision,
            remove=state.stale(each),
            progress=progress,
        )
    address = None
    if publication.collection is not None:
        namespace = publication.packages[0].repository.partition("/")[0]
        address = hub.collect(
            publication.collection, namespace, list(commits), private=publication.private
        )
    return Published(commits, address)


def _points(home: Path) -> tuple[list[Path], str | None]:
    """The folders of a sweep to publish, and the study's name."""
    with reraise_os_errors(InputError, "read", home):
        merged = [each for each in sorted(home.iterdir()) if (each / manifest.NAME).is_file()]
    complete = [each for each in merged if not _is_partial(each)]
    if not (home / studies.JSON_NAME).is_file():
        if not complete:
            raise InputError(f"{home}: is no merged folder, and holds none")
        return complete, None
    results = studies.read(home)
    if not results.chosen:
        if not complete:
            raise InputError(f"{home}: none of the study's points was chosen and written")
        return complete, results.name
    entries = {entry.name: entry for entry in results.points}
    folders = []
    for name in results.chosen:
        folder = home / ((entries[name].folder if name in entries else None) or name)
        if not (folder / manifest.NAME).is_file():
            raise InputError(f"{folder}: the study chose {name}, and it is not written there")
        folders.append(folder)
    return folders, results.name


def _is_partial(folder: Path) -> bool:
    """Whether a folder is an unfinished merge, or is inside of one."""
    own = folder.resolve()
    return any(place.name.endswith(".partial") for place in (own, own.parent))


def _pack(folder: Path, repository: str, public_names: bool, on_event: Listener) -> Package:
    hub.check_name(repository)
    if _is_partial(folder):
        raise InputError(f"{folder}: is not finished; merge it again, then push it")
    made = manifest.read(folder)
    problems = verify(folder, may_differ=EDITED, on_event=on_event)
    if problems:
        raise InputError(f"{folder}: {problems[0]}; nothing is sent of a folder that changed")
    files: dict[str, Path | bytes] = dict(_files(folder))
    for name in ("config.json", card.NAME):
        if name not in files:
            raise InputError(f"{folder}: has no {name}; a published model needs one")
    if public_names:
        files |= _public(folder, made, files)
    disclosed = local_paths.local_paths(files, made)
    return Package(folder, repository, files, manifest.licenses(made), tuple(disclosed))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in UNSENT)
        for name in sorted(names):
            path = Path(home, name)
            if path.is_symlink():
                raise InputError(f"{path}: is a link; put the file itself there, or take it away")
            if name not in UNSENT:
                yield path.relative_to(folder).as_posix(), path
        for name in folders:
            if Path(home, name).is_symlink():
                raise InputError(f"{Path(home, name)}: is a link; take it away")


def _public(
    folder: Path, made: dict[str, Any], files: Mapping[str, Path | bytes]
) -> dict[str, bytes]:
    """The contents to send in place of files with local paths."""
    recipes = recipe.load_all(folder / manifest.RECIPE, "lenient")
    changed = local_paths.made_public(files, made, recipes)
    place = study_cards.find(folder)
    with reraise_os_errors(InputError, "read", folder / card.NAME):
        current = (folder / card.NAME).read_text(encoding="utf-8")
    if current == study_cards.text(folder, made, place=place):
        last = naming.recipe_made_public(recipes[-1], naming.public_names(made))
        text = study_cards.text(folder, naming.made_public(made), last, place)
        changed[card.NAME] = text.encode()
    restated = manifest.restated(naming.made_public(made), changed)
    return {**changed, manifest.NAME: manifest.as_text(restated).encode()}


def describe(publication: Publication) -> dict[str, Any]:
    """A publication as plain data."""
    return {
        "private": publication.private,
        "revision": publication.revision,
        "collection": publication.collection,
        "repositories": [
            {
                "name": each.repository,
                "folder": str(each.folder),
                "files": each.sizes,
                "licenses": dict(each.licenses),
                "local_paths": [{"file": d.file, "path": d.path} for d in each.disclosed],
            }
            for each in publication.packages
        ],
    }
