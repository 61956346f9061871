"""Pickles of weights, interpreted without running anything.

A pickle is a program for a small stack machine. This one knows the opcodes that torch.save has ever used for weights and the
names in values.py; any other is refused by name before it has an effect. Sources: Python's pickletools (what each opcode does);
torch/_weights_only_unpickler.py (which of them weights need).

What a pickle can cost: it has so many bytes (stream.py), so many opcodes, and so many containers; no opcode makes more than one
object or takes longer than what it was given. Nesting costs nothing, since nothing here is recursive.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from qconvd.checkpoints.files import quoted
from qconvd.checkpoints.torch.stream import FIX, Stream
from qconvd.checkpoints.torch.values import GLOBALS, Maker, Name, Storage, Tensor, Wrong, check_key, storage_of
from qconvd.errors import BadCheckpoint, Incomplete, QconvdError, Unsupported

OPCODES = 2_000_000
"""Steps of a pickle; a tensor takes about 25."""
CONTAINERS = 500_000
"""Tuples, lists, dicts and calls; a tensor takes about 6."""
TEXT_LIMIT = 1 << 16
"""Bytes of a name or another text."""
NUMBER_LIMIT = 16
"""Bytes of an integer."""
_MARK = object()
_TRUSTED = "take the safetensors of the same model; or, if you trust the file, save its weights alone with torch and "
_TRUSTED += "transformers: model.save_pretrained(folder)"


def load(stream: Stream, storages: dict[str, Storage] | None = None) -> Any:
    """The one object of the pickle that begins at the stream's position, made of plain data (values.py).

    The storages that it speaks of are added to `storages`, by key.

    Raises `Unsupported` for a global that weights do not need, `BadCheckpoint` for what is no pickle of weights, `Incomplete`
    where zeros stand in its place.
    """
    stream.begin()
    try:
        return _Machine(stream, {} if storages is None else storages).run()
    except Wrong as error:
        raise BadCheckpoint(f"is no checkpoint: its pickle {error}", where=stream.where, fix=FIX) from error


def asks_for(module: str, name: str, where: str) -> QconvdError:
    """The error for a global that is not in the table."""
    called = quoted(f"{module}.{name}")
    root = module.partition(".")[0]
    if root in ("__torch__", "torch.jit"):
        return Unsupported(f"is a TorchScript program: its pickle asks for {called}", where=where, fix=_TRUSTED)
    what = f"holds more than weights: its pickle asks for {called}, which is not run"
    return Unsupported(what, where=where, fix=_TRUSTED)


class _Machine:
    def __init__(self, stream: Stream, storages: dict[str, Storage]) -> None:
        self.stream = stream
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0

    def run(self) -> Any:
        read, steps = self.stream.read, _STEPS
        for _ in range(OPCODES):
            opcode = read(1)
            if opcode == b".":
                if len(self.stack) != 1 or self.marks:
                    raise Wrong("ends with something left over")
                return self.stack[0]
            step = steps.get(opcode)
            if opcode == b"\0":  # no opcode at all: a file of its full length that is still being filled
                what = f"has zeros from byte {self.stream.position - 1} on, inside its pickle, which is not written yet"
                raise Incomplete(what, where=self.stream.where, fix="wait for the copy to finish, or copy the file again")
            if step is None:
                raise Wrong(f"has the opcode 0x{opcode.hex()} at byte {self.stream.position - 1}, which weights do not need")
            step(self)
        raise Wrong(f"takes more than {OPCODES:,} steps")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Wrong("takes more from its stack than it put there")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise Wrong("goes back to a mark that it did not set")
        first = self.marks.pop()
        found = self.stack[first:]
        del self.stack[first:]
        return found

    def contain(self, value: Any, size: int = 0) -> None:
        """Push a container, counted; `size` are the elements that were copied into it."""
        self.spend(1 + size)
        self.stack.append(value)

    def spend(self, count: int) -> None:
        self.containers += count
        if self.containers > CONTAINERS:
            raise Wrong(f"makes more than {CONTAINERS:,} lists, dicts and tuples")

    def text(self, count: int) -> str:
        if count > TEXT_LIMIT:
            raise Wrong(f"has a text of {count} bytes")
        try:
            return self.stream.read(count).decode()
        except UnicodeDecodeError:
            raise Wrong("has a text that is not UTF-8") from None

    def integer(self, count: int) -> int:
        if count > NUMBER_LIMIT:
            raise Wrong(f"has a number of {count} bytes")
        return self.stream.number(count, signed=True)

    def named(self, module: Any, name: Any) -> Maker | Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Wrong("asks for a global without a name")
        found = GLOBALS.get(f"{module}.{name}") if "." not in name else None
        if found is None:
            raise asks_for(module, name, self.stream.where)
        return found

    def line(self) -> str:
        try:
            return self.stream.line().decode()
        except UnicodeDecodeError:
            raise Wrong("has a name that is not UTF-8") from None

    def remember(self, index: int) -> None:
        if not self.stack:
            raise Wrong("keeps what it does not have")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Wrong("asks for what it did not keep")
        self.stack.append(self.memo[index])

    # What the opcodes do, in the order of pickletools.

    def reduce(self) -> None:
        arguments, maker = self.pop(), self.pop()
        if not isinstance(maker, Maker) or not isinstance(arguments, tuple):
            called = maker.name if isinstance(maker, Name) else f"a {type(maker).__name__}"
            raise Wrong(f"calls {called}, which is no function of weights")
        # What is kept in the memo could be read, and copied, without end.
        self.spend(sum(len(a) for a in arguments if isinstance(a, list | tuple)))
        try:
            made = maker.make(*arguments)
        except TypeError:
            raise Wrong(f"calls {maker.name} with {len(arguments)} arguments") from None
        self.contain(made)

    def build(self) -> None:
        """Attributes of a state dict (`_metadata`) or of a tensor: nothing of the weights."""
        self.pop()
        if not self.stack or not isinstance(self.stack[-1], dict | Tensor):
            raise Wrong("gives attributes to what has none")

    def persistent(self) -> None:
        storage = storage_of(self.pop())
        known = self.storages.setdefault(storage.key, storage)
        if (known.kind, known.numel) != (storage.kind, storage.numel):
            raise Wrong(f"describes the storage {quoted(storage.key)} in two ways")
        self.contain(storage)

    def top(self, kind: type[Any]) -> Any:
        found = self.stack[-1] if self.stack else None
        if not isinstance(found, kind):
            raise Wrong(f"fills a {kind.__name__} that is none")
        return found

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.since_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.top(dict)[check_key(key)] = value

    def set_items(self) -> None:
        pairs = self.since_mark()
        if len(pairs) % 2:
            raise Wrong("has a key without a value")
        self.top(dict).update({check_key(key): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)})

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def protocol(self) -> None:
        if (said := self.stream.number(1)) > 5:
            raise Wrong(f"is of protocol {said}, which no Python writes")

    def of_line(self) -> None:
        module = self.line()
        self.stack.append(self.named(module, self.line()))

    def of_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(self.named(module, name))

    def last(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.contain(tuple(reversed(values)))


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value(m))


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": _Machine.protocol,
    b"\x95": lambda m: m.stream.read(8),  # FRAME: a length, of no use to whoever reads as he goes
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"N": _push(lambda _: None),
    b"\x88": _push(lambda _: True),
    b"\x89": _push(lambda _: False),
    b"J": _push(lambda m: m.stream.number(4, signed=True)),
    b"K": _push(lambda m: m.stream.number(1)),
    b"M": _push(lambda m: m.stream.number(2)),
    b"\x8a": _push(lambda m: m.integer(m.stream.number(1))),
    b"G": _push(lambda m: struct.unpack(">d", m.stream.read(8))[0]),
    b"X": _push(lambda m: m.text(m.stream.number(4))),
    b"\x8c": _push(lambda m: m.text(m.stream.number(1))),
    b"U": _push(lambda m: m.text(m.stream.number(1))),  # a str of Python 2
    b"T": _push(lambda m: m.text(m.stream.number(4))),
    b"]": lambda m: m.contain([]),
    b"}": lambda m: m.contain({}),
    b")": _push(lambda _: ()),
    b"t": lambda m: m.contain(tuple(m.since_mark())),
    b"\x85": lambda m: m.last(1),
    b"\x86": lambda m: m.last(2),
    b"\x87": lambda m: m.last(3),
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"q": lambda m: m.remember(m.stream.number(1)),
    b"r": lambda m: m.remember(m.stream.number(4)),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.recall(m.stream.number(1)),
    b"j": lambda m: m.recall(m.stream.number(4)),
    b"c": _Machine.of_line,
    b"\x93": _Machine.of_stack,
    b"Q": _Machine.persistent,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
