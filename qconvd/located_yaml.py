"""YAML as plain data plus the line and column of every key and value, for error messages that point.

Only plain YAML: text, numbers, booleans, nulls, lists, mappings with text keys, anchors and merge keys. No tag makes an object.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import yaml

Path: TypeAlias = tuple[str | int, ...]
"""Where a value stands: `("recipes", "everyday", "targets", 0)`."""

NODE_LIMIT = 100_000
"""Values a document may expand to; aliases of aliases could ask for more than any memory holds."""


class Position(NamedTuple):
    """Line and column of a value, counted from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """One mistake: where it stands in the file, the path of the key, and a sentence."""

    position: Position
    path: Path
    message: str


@dataclass
class Document:
    """A parsed YAML text. `data` is None for an empty one or one that cannot be parsed at all."""

    data: Any = None
    keys: dict[Path, Position] = field(default_factory=dict)
    values: dict[Path, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def value(self, path: Path) -> Position:
        """Where the value at `path` starts; for a path that is not there, its nearest parent."""
        while path not in self.values and path:
            path = path[:-1]
        return self.values.get(path, Position(1, 1))

    def key(self, path: Path) -> Position:
        """Where the key of `path` starts; for a list item, where the item does."""
        return self.keys.get(path) or self.value(path)


def parse(text: str) -> Document:
    """Parse `text`. Never raises for bad YAML: every mistake found becomes a `Problem` of the document."""
    document = Document()
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None:
            document.data = _Builder(loader, document).build(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _position(mark) if mark else Position(1, 1)
        sentence = ", ".join(str(s) for s in (error.context, error.problem) if s)
        document.data = None
        document.problems.append(Problem(place, (), f"is not valid YAML: {sentence}{_hint(text, error)}"))
    except RecursionError:
        document.data = None
        document.problems.append(Problem(Position(1, 1), (), "is nested too deeply to be read"))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Position(before.count("\n") + 1, error.position - before.rfind("\n"))
        document.problems.append(
            Problem(place, (), f"holds a character that YAML does not allow: U+{ord(text[error.position]):04X}")
        )
    return document


def dotted(path: Path) -> str:
    """`recipes.everyday.targets[1].gguf.types`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


class _Builder:
    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self.loader, self.document = loader, document
        self.open: set[int] = set()
        self.nodes = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.nodes += 1
        if id(node) in self.open or self.nodes > NODE_LIMIT:
            raise yaml.MarkedYAMLError(
                problem="an alias that contains itself, or far too many of them", problem_mark=node.start_mark
            )
        self.document.values[path] = _position(node.start_mark)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]
            return self.number_or_text(node, path)
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged |= self.merge(value_node, path)
                continue
            key = self.scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            if key is True and key_node.value == "on":
                key = "on"  # a truth value to YAML 1.1 alone, and one of our keys
            if not isinstance(key, str):
                shown = f"the key {key_node.value!r}" if isinstance(key_node, yaml.ScalarNode) else "this key"
                self.problem(key_node, path, f"{shown} is not text; put it in quotes")
                continue
            here = (*path, key)
            if key in made:
                first = self.document.keys[here].line
                self.problem(key_node, here, f"this key stands here twice; it was first set on line {first}")
                continue
            self.document.keys[here] = _position(key_node.start_mark)
            made[key] = self.build(value_node, here)
        return merged | made

    def merge(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        """`<<: *base`: the base's keys, which the mapping's own keys override."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                self.problem(node, path, "a merge key (<<) wants a mapping")
                continue
            if id(source) in self.open:
                raise yaml.MarkedYAMLError(problem="an alias that contains itself", problem_mark=node.start_mark)
            merged |= self.mapping(source, path)
        return merged

    def number_or_text(self, node: yaml.Node, path: Path) -> Any:
        """A value. `1:30` is 90 to YAML 1.1, which nobody means who does not know it."""
        value = self.scalar(node, path)
        if isinstance(value, int | float) and ":" in node.value:
            self.problem(
                node, path, f"to YAML {node.value} is {value}, a number in base 60; write the number or one with a unit, as 90m"
            )
            return None
        return value

    def scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            value = self.loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError):
            self.problem(
                node,
                path,
                f"the tag {node.tag} or its value is not allowed here; write plain text, a number, true, false or null",
            )
            return None
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            self.problem(node, path, "an escape here is half of a character (a lone surrogate)")
            return None
        # A bare date is a datetime to YAML; in a config it can only have been meant as text.
        return value if isinstance(value, str | int | float | bool | None) and isinstance(value, Hashable) else node.value

    def problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.document.problems.append(Problem(_position(node.start_mark), path, message))


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _hint(text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    lines = text.splitlines()
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        return " (there is a tab on this line; YAML wants spaces)"
    return ""
