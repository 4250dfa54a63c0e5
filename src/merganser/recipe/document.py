"""Read YAML as plain data with the line of every key. Nothing in it is executed."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import yaml

from merganser.errors import InputError, RecipeError

KeyPath = tuple[str | int, ...]
"""The path of an entry in a YAML document: keys, and indices of lists."""

MAX_BYTES = 256 * 1024
MAX_NODES = 200_000
MAX_DEPTH = 64


@dataclass(frozen=True)
class Document:
    """One YAML document.

    Attributes:
        data: plain dicts, lists and scalars.
        text: the text of the document, or None for one built in Python.
        file: the file's name in messages, or None.
        lines: line of every key and list entry by its path, counted from 1.
        repeated: lines of every key that occurs more than once, by its path; the last value counts,
            as in MergeKit.
    """

    data: object
    text: str | None = None
    file: str | None = None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    repeated: Mapping[KeyPath, Sequence[int]] = field(default_factory=dict)

    def error(self, message: str, path: KeyPath = ()) -> RecipeError:
        """An error with the file and the line of ``path``, or of the nearest part that has a line."""
        while path and path not in self.lines:
            path = path[:-1]
        return RecipeError(message, file=self.file, line=self.lines.get(path))

    def address(self, path: KeyPath) -> str:
        """``file:line`` of a path, for warnings; empty for a recipe built in Python."""
        return ":".join(str(part) for part in (self.file, self.lines.get(path)) if part is not None)

    def check_repeated(self, ignored: Container[KeyPath] = ()) -> None:
        """Check that no key is repeated.

        Ignored keys, and keys inside them, may be repeated: published recipes put their anchors under
        one repeated key.

        Raises:
            RecipeError: with the line of a key's second value.
        """
        for path, lines in self.repeated.items():
            if not any(path[: end + 1] in ignored for end in range(len(path))):
                message = f"the key {path[-1]!r} is given twice"
                raise replace(self, lines={path: lines[1]}).error(message, path)

    @contextmanager
    def addressed(self, path: KeyPath) -> Iterator[None]:
        """Prefix an InputError with the file and line of the recipe that name the input."""
        try:
            yield
        except InputError as error:
            address = self.address(path) if path else ""
            raise InputError(f"{address}: {error}" if address else str(error)) from None


def key_name(path: KeyPath) -> str:
    """A path as text: ``models[0].parameters.weight``."""
    name = ""
    for part in path:
        text = part if isinstance(part, str) and part.isprintable() else repr(part)
        name += f"[{part}]" if isinstance(part, int) else f".{text}" if name else text
    return name


def parse_document(text: str, file: str | None = None) -> Document:
    """Read a text with one YAML document; see :func:`parse_documents`.

    Raises:
        RecipeError: also when there are several documents.
    """
    first, *more = parse_documents(text, file)
    if more:
        raise RecipeError(
            f"the file has {1 + len(more)} recipes, and one is expected; "
            "`merganser merge` and `merganser plan` take them all",
            file=file,
            line=more[0].lines[()],
        )
    return first


def parse_documents(text: str, file: str | None = None) -> list[Document]:
    """Read the YAML documents of a text, separated by ``---``, without empty ones.

    Alias bombs and tags that build objects are errors. Lines are counted in the file. The caller
    calls :meth:`Document.check_repeated`, which knows which keys are ignored.

    Returns:
        At least one document.

    Raises:
        RecipeError: with file and line.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"the recipe is larger than {MAX_BYTES // 1024} KiB", file=file)
    loader = None
    try:
        loader = _Loader(text)
        reader = _Reader(loader, file)
        begins: list[int] = []
        documents: list[tuple[int, Document]] = []
        while loader.check_node():
            node = loader.get_node()
            begins.append(loader.begin if documents else 0)
            if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
                continue
            reader.lines, reader.repeated = {}, {}
            data = reader.read(node, ())
            document = Document(data, text, file, reader.lines, reader.repeated)
            documents.append((len(begins), document))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "cannot be read"
        raise RecipeError(
            f"not valid YAML: {problem}", file=file, line=mark.line + 1 if mark else None
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"not valid YAML: {reason}", file=file) from None
    finally:
        if loader is not None:
            loader.dispose()
    if not documents:
        raise RecipeError("the recipe is empty", file=file)
    if len(documents) == 1:
        return [documents[0][1]]
    cuts = [*begins, len(text)]
    return [
        replace(document, text=text[cuts[n - 1] : cuts[n]].removeprefix("---").strip() + "\n")
        for n, document in documents
    ]


class _Loader(yaml.SafeLoader):
    """A loader that knows where the current document begins."""

    begin = 0

    def compose_document(self) -> yaml.Node | None:
        self.begin = self.peek_event().start_mark.index  # type: ignore[no-untyped-call]
        return super().compose_document()


class _Reader:
    """Converts YAML nodes to plain data.

    PyYAML's constructor drops lines and repeated keys, so mappings and lists are built here; it
    constructs the scalars.
    """

    def __init__(self, loader: yaml.SafeLoader, file: str | None) -> None:
        self.loader = loader
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.repeated: dict[KeyPath, list[int]] = {}
        self.nodes = 0

    def read(self, node: yaml.Node, path: KeyPath) -> object:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.nodes += 1  # an alias counts each time it is used
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise RecipeError("the recipe is too large or too deep", file=self.file, line=line)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(f"the YAML tag {node.tag} cannot be used in a recipe", line)
        return self.scalar(node, line)

    def scalar(self, node: yaml.ScalarNode, line: int) -> object:
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, int) and abs(value) > 2**64:
                raise ValueError("a number is too large")
            if isinstance(value, str):
                value.encode("utf-8")  # YAML can write half a character, no file can
            return value
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML lets through whatever int(), float() and date() raise
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            error = getattr(error, "reason", None) or error
            raise self.error(f"{node.value[:40]!r} is no {tag} ({error})", line) from None

    def error(self, problem: str, line: int) -> RecipeError:
        return RecipeError(f"not valid YAML: {problem}", file=self.file, line=line)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        entries: dict[str, object] = {}
        inherited: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<": keys of other mappings
                lines = dict(self.lines)
                value = self.read(value_node, path)
                self.lines.clear()
                self.lines.update(lines)
                for mapping in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(mapping, dict):
                        raise RecipeError("'<<' takes a mapping", file=self.file, line=line)
                    inherited |= mapping
                continue
            key = self.key(key_node)
            if key in entries:
                first = self.lines[(*path, key)]
                self.repeated.setdefault((*path, key), [first]).append(line)
            self.lines[(*path, key)] = line
            entries[key] = self.read(value_node, (*path, key))
        return inherited | entries

    def key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            line = node.start_mark.line + 1
            braces = isinstance(node, yaml.MappingNode)  # what YAML makes of {{ w }}
            hint = '; expressions need quotes: "{{ w }}"' if braces else ""
            raise RecipeError(f"a key must be plain text{hint}", file=self.file, line=line)
        try:
            node.value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.error(
                "a key holds half of a surrogate pair", node.start_mark.line + 1
            ) from None
        return str(node.value)
