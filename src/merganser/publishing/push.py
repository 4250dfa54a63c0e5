"""Publish a merged folder, or the chosen points of a study, as repositories on the Hub.

:func:`prepare` decides what will be public, so that it can be shown first; :func:`send` sends it.
:func:`push` does both.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser import recipe
from merganser.engine.events import Listener, ignore
from merganser.errors import InputError, MerganserError, RecipeError, reraise_os_errors
from merganser.hub import publishing
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
        folder: the merged folder.
        repository: ``org/name``.
        files: by path in the repository: a file to send, or bytes to send in its place.
        licenses: the licence of each parent and adapter, by name; None if its card states none.
        disclosed: local paths that the files contain.
    """

    folder: Path
    repository: str
    files: Mapping[str, Path | bytes]
    licenses: Mapping[str, str | None]
    disclosed: tuple[Disclosed, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of every file in bytes, by path in the repository."""
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
        collection: the title of the collection that the repositories are added to; None for none.
    """

    packages: tuple[Package, ...]
    private: bool
    revision: str | None = None
    collection: str | None = None

    @property
    def disclosed(self) -> list[tuple[str, Disclosed]]:
        """All local paths that would become public, with their repositories."""
        return [
            (package.repository, path) for package in self.packages for path in package.disclosed
        ]


@dataclass(frozen=True, slots=True)
class State:
    """The state of the Hub before a push.

    Attributes:
        account: the account that the token belongs to.
        repositories: by name, the repository on the Hub; None if the push will create it.
    """

    account: str
    repositories: Mapping[str, publishing.Repository | None]

    def stale(self, package: Package) -> list[str]:
        """Weight files on the Hub that the package does not have; the push deletes them."""
        there = self.repositories[package.repository]
        return sorted(
            name
            for name in (there.files if there else ())
            if name not in package.files and any(fnmatch.fnmatch(name, w) for w in WEIGHTS)
        )


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a push.

    Attributes:
        commits: the URL of the commit, by repository.
        collection: the URL of the collection, or None.
    """

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
    """Everything that a push would publish, found without a request to the Hub.

    Every folder must be complete, and its tensors must match its manifest.

    Args:
        out: a merged folder, or the folder of a sweep. An evaluated study publishes its chosen points,
            another sweep all points.
        name: ``org/name``; for a sweep ``org`` or ``org/title``, and each point becomes ``org/POINT``.
        private: whether new repositories are private.
        public_names: replace local paths by names in card, recipe, manifest and config.
        collection: title of a collection. A sweep's default is the title in ``name``, or the study's name.
        revision: a branch; None for the main branch.
        on_event: called with events that show the progress of checking.

    Raises:
        InputError: when a folder is incomplete, or differs from its manifest.
        RecipeError: when a repository's name is invalid.
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
    for repository in names.values():
        publishing.check_name(repository)
    packages = tuple(_pack(folder, names[folder], public_names, on_event) for folder in folders)
    shown = collection or title or study or home.resolve().name
    return Publication(packages, private, revision, shown)


def look(publication: Publication) -> State:
    """The state of a publication's repositories on the Hub.

    Raises:
        MerganserError: when there is no token, the Hub cannot be reached, or a repository exists and is
            public, but ``private`` is set.
    """
    account = publishing.account()
    there = {
        package.repository: publishing.look(package.repository, publication.revision)
        for package in publication.packages
    }
    for name, repository in there.items():
        if publication.private and repository is not None and not repository.private:
            raise MerganserError(
                f"{name}: exists on the Hub and is public, which private=True does not change; "
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
    """Publish a merged folder, or the chosen points of a study, on the Hub. There is no confirmation.

    Repeat an interrupted push to resume it.

    Args:
        out: a merged folder, or the folder of a sweep. An evaluated study publishes its chosen points,
            another sweep all points.
        name: ``org/name``; for a sweep ``org`` or ``org/title``, and each point becomes ``org/POINT``.
        private: whether new repositories are private.
        collection: title of a collection. A sweep's default is the title in ``name``, or the study's name.
        revision: a branch; None for the main branch.
        public: replace local paths by names in card, recipe, manifest and config.
        with_paths: send files that contain local paths.
        progress: whether to draw progress bars on stderr.

    Returns:
        The URLs of the commits, by repository, and of the collection.

    Raises:
        InputError: when a folder is incomplete, or differs from its manifest.
        RecipeError: when a name is invalid, or files contain local paths and neither ``public`` nor
            ``with_paths`` is set. Nothing is sent.
        MerganserError: when there is no token, or the Hub refuses or cannot be reached.
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
        RecipeError: when the files contain local paths, and ``with_paths`` is off.
    """
    if publication.disclosed and not with_paths:
        raise RecipeError(
            f"nothing was sent, since the files hold {len(publication.disclosed)} local paths; public=True "
            "replaces them by names, with_paths=True sends them as they are"
            + (" (public=True cannot change these: edit the files)" if public else "")
        )


def send(publication: Publication, state: State, *, progress: bool = True) -> Published:
    """Send a publication: each repository in one commit, then the collection.

    Repeat an interrupted push to resume it: files on the Hub are not sent again.

    Args:
        publication: from :func:`prepare`.
        state: from :func:`look`.
        progress: whether to draw progress bars on stderr.

    Raises:
        MerganserError: when the Hub refuses or cannot be reached.
    """
    commits = {}
    for package in publication.packages:
        commits[package.repository] = publishing.send(
            package.repository,
            package.files,
            private=publication.private,
            message=f"Merged by Merganser {manifest.read(package.folder)['merganser']}",
            revision=publication.revision,
            remove=state.stale(package),
            progress=progress,
        )
    address = None
    if publication.collection is not None:
        namespace = publication.packages[0].repository.partition("/")[0]
        address = publishing.collect(
            publication.collection, namespace, list(commits), private=publication.private
        )
    return Published(commits, address)


def _points(home: Path) -> tuple[list[Path], str | None]:
    """The folders of a sweep to publish, and the study's name."""
    with reraise_os_errors(InputError, "read", home):
        merged = [
            subfolder
            for subfolder in sorted(home.iterdir())
            if (subfolder / manifest.NAME).is_file()
        ]
    complete = [subfolder for subfolder in merged if not _is_partial(subfolder)]
    if not (home / studies.JSON_NAME).is_file():
        if not complete:
            raise InputError(f"{home}: is not a merged folder, and contains none")
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
            raise InputError(
                f"{folder}: the study chose {name}, but its folder is not there; run the study again"
            )
        folders.append(folder)
    return folders, results.name


def _is_partial(folder: Path) -> bool:
    """Whether a folder is an unfinished merge, or is inside of one."""
    resolved = folder.resolve()
    return any(place.name.endswith(".partial") for place in (resolved, resolved.parent))


def _pack(folder: Path, repository: str, public_names: bool, on_event: Listener) -> Package:
    publishing.check_name(repository)
    if _is_partial(folder):
        raise InputError(f"{folder}: is an unfinished merge; merge it again, then push it")
    facts = manifest.read(folder)
    problems = verify(folder, may_differ=EDITED, on_event=on_event)
    if problems:
        raise InputError(
            f"{folder}: {problems[0]}; a folder that changed after the merge is not sent"
        )
    files: dict[str, Path | bytes] = dict(_files(folder))
    for name in ("config.json", card.NAME):
        if name not in files:
            raise InputError(f"{folder}: has no {name}; a published model needs one")
    if public_names:
        files |= _public(folder, facts, files)
    disclosed = local_paths.local_paths(files, facts)
    return Package(folder, repository, files, manifest.licenses(facts), tuple(disclosed))


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in UNSENT)
        for name in sorted(names):
            path = Path(home, name)
            if path.is_symlink():
                raise InputError(f"{path}: is a link; replace it by the file, or delete it")
            if name not in UNSENT:
                yield path.relative_to(folder).as_posix(), path
        for name in folders:
            if Path(home, name).is_symlink():
                raise InputError(f"{Path(home, name)}: is a link; delete it")


def _public(
    folder: Path, facts: dict[str, Any], files: Mapping[str, Path | bytes]
) -> dict[str, bytes]:
    """The contents to send in place of files with local paths."""
    recipes = recipe.load_all(folder / manifest.RECIPE, "lenient")
    changed = local_paths.made_public(files, facts, recipes)
    place = study_cards.find(folder)
    with reraise_os_errors(InputError, "read", folder / card.NAME):
        current = (folder / card.NAME).read_text(encoding="utf-8")
    if current == study_cards.text(folder, facts, place=place):
        last = naming.recipe_made_public(recipes[-1], naming.public_names(facts))
        text = study_cards.text(folder, naming.made_public(facts), last, place)
        changed[card.NAME] = text.encode()
    restated = manifest.restated(naming.made_public(facts), changed)
    return {**changed, manifest.NAME: manifest.as_text(restated).encode()}


def describe(publication: Publication) -> dict[str, Any]:
    """A publication as plain data, for JSON."""
    return {
        "private": publication.private,
        "revision": publication.revision,
        "collection": publication.collection,
        "repositories": [
            {
                "name": package.repository,
                "folder": str(package.folder),
                "files": package.sizes,
                "licenses": dict(package.licenses),
                "local_paths": [{"file": d.file, "path": d.path} for d in package.disclosed],
            }
            for package in publication.packages
        ],
    }
