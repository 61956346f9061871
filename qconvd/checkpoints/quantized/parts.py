"""The tensors of a packed checkpoint, handed out part by part until what is left is stored plainly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from qconvd.checkpoints.base import TensorInfo
from qconvd.checkpoints.files import opened, quoted, read_at
from qconvd.dtypes import ELEMENT_BYTES
from qconvd.engine.expr import Cast, Expr, Read, Shape
from qconvd.errors import BadCheckpoint

_AGAIN = "copy or download the files again, from one revision of the model"


class Parts:
    """What lies in the files, and what has been made of it so far."""

    def __init__(self, folder: Path, stored: Mapping[str, TensorInfo]) -> None:
        self.folder = folder
        self._stored = stored
        self._made: dict[str, TensorInfo] = {}
        """By the name of the part that it takes the place of."""
        self._taken: set[str] = set()

    @property
    def found_any(self) -> bool:
        """Whether anything was packed at all."""
        return bool(self._made)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def ending(self, ending: str) -> Iterator[tuple[str, TensorInfo]]:
        """Every tensor of that ending, with the module that it is a part of."""
        for name, tensor in self._stored.items():
            if name.endswith(f".{ending}"):
                yield name.removesuffix(f".{ending}"), tensor

    def take(self, name: str, *shapes: Shape, dtypes: tuple[str, ...]) -> TensorInfo:
        """A part that must be there. Raises `BadCheckpoint` if it is not, or has another type or none of the shapes."""
        found = self.find(name, *shapes, dtypes=dtypes)
        if found is None:
            raise BadCheckpoint(f"the model lacks {quoted(name)}", where=str(self.folder), fix=_AGAIN)
        return found

    def find(self, name: str, *shapes: Shape, dtypes: tuple[str, ...]) -> TensorInfo | None:
        """As `take`, for a part that need not be there."""
        tensor = self._stored.get(name)
        if tensor is None:
            return None
        if tensor.dtype not in dtypes or (shapes and tensor.shape not in shapes):
            wanted = "".join(f" {list(shape)}" for shape in shapes)
            raise self.wrong(tensor, f"is {tensor.dtype} {list(tensor.shape)}, where {' or '.join(dtypes)}{wanted} is due")
        self._taken.add(name)
        return tensor

    def drop(self, name: str) -> None:
        """Leave a part out, if it is there: it says nothing of the weights."""
        if name in self._stored:
            self._taken.add(name)

    def make(self, name: str, first: TensorInfo, shape: Shape, made: Expr) -> None:
        """A tensor of the model in the place of its part `first`, in F32."""
        if name in self._stored and name != first.name:
            raise self.wrong(first, f"is packed, and {quoted(name)} is there as well")
        if 0 in shape:
            raise self.wrong(first, f"stands for weights of {list(shape)}, which are none")
        nbytes = ELEMENT_BYTES["F32"]
        for size in shape:
            nbytes *= size
        self._made[first.name] = TensorInfo(name, "F32", shape, first.file, first.offset, nbytes, made)

    def wrong(self, tensor: TensorInfo, what: str) -> BadCheckpoint:
        return BadCheckpoint(what, where=f"{self.folder / tensor.file}, tensor {tensor.name}", fix=_AGAIN)

    def numbers(self, tensor: TensorInfo) -> tuple[int, ...]:
        """The numbers of a small tensor of integers; all zero where they were not written yet, as in a folder of headers."""
        with opened(self.folder / tensor.file) as (descriptor, _):
            raw = read_at(descriptor, tensor.offset, tensor.nbytes)
        item = ELEMENT_BYTES[tensor.dtype]
        return tuple(int.from_bytes(raw[i : i + item], "little", signed=True) for i in range(0, tensor.nbytes, item))

    def meant(self) -> dict[str, TensorInfo]:
        """The tensors of the model: what was made, and what nobody took, in the order of the files."""
        found: dict[str, TensorInfo] = {}
        for name, tensor in self._stored.items():
            if name in self._made:
                found[self._made[name].name] = self._made[name]
            elif name not in self._taken:
                found[name] = tensor
        return found


def stored(tensor: TensorInfo) -> Read:
    """A part as it lies in the file."""
    return Read(tensor.name, tensor.dtype, tensor.shape)


def as_floats(x: Expr) -> Expr:
    """Scales in F32, whatever type they are stored in."""
    return x if x.dtype == "F32" else Cast(x, "F32")
