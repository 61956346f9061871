"""What a pickle of weights may speak of, as plain data: storages, tensors that view them, and the names that make these.

Nothing here is a class or a function of torch. A global of the pickle is looked up in a table of names and stands for what
qconvd makes of it; a name that is not in the table is refused. The names are those that torch's own pickles use
(torch/_utils.py, torch/_tensor.py, torch/_weights_only_unpickler.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qconvd.dtypes import ELEMENT_BYTES

AXES = 32
LARGEST = 1 << 62


class Wrong(Exception):
    """The pickle does not mean what a pickle of weights means; the text completes "its pickle …"."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of elements. The storage of torch's untyped ones is counted in bytes."""

    dtype: str
    """As safetensors calls it; empty for what has no name there."""
    torch: str
    untyped: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the file, `numel` of them, known by its `key`."""

    kind: Kind
    key: str
    numel: int
    first: int = 0
    """Where a view of a storage begins, in elements (files from before torch 0.4)."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Elements of a storage: the first at `offset`, each step along an axis `strides` elements further."""

    storage: Storage
    kind: Kind
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Maker:
    """A function of the pickle, which `REDUCE` may call with plain data."""

    name: str
    make: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Name:
    """A global that may be mentioned and not called: torch.Tensor, torch.float16."""

    name: str
    kind: Kind | None = None


def storage_of(pid: Any) -> Storage:
    """The storage that a persistent id speaks of: ("storage", type, key, location, count of elements[, view])."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise Wrong("refers to something that is no storage")
    _, name, key, _, numel, *rest = pid
    if not isinstance(name, Name) or name.kind is None or not isinstance(key, str) or not _size(numel):
        raise Wrong("describes a storage in a way that torch does not")
    if not rest or rest[0] is None:
        return Storage(name.kind, key, numel)
    view = rest[0]
    if not isinstance(view, tuple) or len(view) != 3 or not _size(view[1]) or not _size(view[2]) or sum(view[1:]) > numel:
        raise Wrong("describes a view of a storage in a way that torch does not")
    return Storage(name.kind, key, numel, view[1])


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, kind: Kind | None = None) -> Tensor:
    if not isinstance(storage, Storage) or not _size(offset) or not _sizes(shape) or not _sizes(strides):
        raise Wrong("describes a tensor in a way that torch does not")
    if len(shape) != len(strides) or len(shape) > AXES:
        raise Wrong(f"describes a tensor of {len(shape)} axes with {len(strides)} strides")
    if storage.kind.untyped and kind is None:
        raise Wrong("gives a tensor no type of elements")
    return Tensor(storage, kind or storage.kind, offset, shape, strides)


def _tensor_v1(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,  # noqa: ARG001
    hooks: Any,  # noqa: ARG001
    about: Any = None,
) -> Tensor:
    if about:
        raise Wrong("has a tensor that is a conjugate or negated view")
    return _tensor(storage, offset, shape, strides)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,  # noqa: ARG001
    hooks: Any,  # noqa: ARG001
    dtype: Any,
    about: Any = None,
) -> Tensor:
    if about or not isinstance(dtype, Name) or dtype.kind is None:
        raise Wrong("describes a tensor in a way that torch does not")
    return _tensor(storage, offset, shape, strides, dtype.kind)


def _parameter(data: Any, grad: Any = None, hooks: Any = None, state: Any = None) -> Tensor:  # noqa: ARG001
    if not isinstance(data, Tensor):
        raise Wrong("has a parameter that is no tensor")
    return data


def _of_type(make: Any, kind: Any, arguments: Any, state: Any = None) -> Any:  # noqa: ARG001
    """A tensor with attributes of its own, which are left out."""
    plain = isinstance(kind, Name) and kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter")
    if (
        not plain
        or not isinstance(make, Maker)
        or not make.name.startswith("torch._utils.")
        or not isinstance(arguments, tuple)
    ):
        raise Wrong("has a tensor of a class of its own")
    return make.make(*arguments)


def _ordered(pairs: Any = ()) -> dict[str | int, Any]:
    """collections.OrderedDict, which torch makes empty and fills afterwards; Python 2 gave it a list of pairs."""
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise Wrong("fills an OrderedDict in a way that torch does not")
    return {check_key(key): value for key, value in pairs}


def _shape(sizes: Any = ()) -> tuple[int, ...]:
    if not _sizes(tuple(sizes) if isinstance(sizes, list) else sizes):
        raise Wrong("has a torch.Size that is no list of sizes")
    return tuple(sizes)


def _device(kind: Any = "", index: Any = None) -> None:
    """Where a tensor lay; of no interest."""
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise Wrong("has a torch.device that is none")


def check_key(key: Any) -> str | int:
    """A key of a dict: text or a small number. Others could take ages to hash (a tuple of tuples, numbers that collide)."""
    if isinstance(key, str) or (type(key) is int and abs(key) < 1 << 31):
        return key
    raise Wrong(f"has a dict with a {type(key).__name__} as a key")


def _size(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _sizes(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(_size, value))


_STORAGES = {
    "Double": ("F64", "float64"), "Float": ("F32", "float32"), "Half": ("F16", "float16"), "BFloat16": ("BF16", "bfloat16"),
    "Long": ("I64", "int64"), "Int": ("I32", "int32"), "Short": ("I16", "int16"), "Char": ("I8", "int8"),
    "Byte": ("U8", "uint8"), "Bool": ("BOOL", "bool"), "ComplexDouble": ("", "complex128"), "ComplexFloat": ("", "complex64"),
    "QInt8": ("", "qint8"), "QUInt8": ("", "quint8"), "QInt32": ("", "qint32"),
}  # fmt: skip
_NEWER = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "float8_e4m3fnuz": "", "float8_e5m2fnuz": "", "complex32": "",
}  # fmt: skip


def _globals() -> dict[str, Maker | Name]:
    made: dict[str, Callable[..., Any]] = {
        "torch._utils._rebuild_tensor": _tensor_v1,
        "torch._utils._rebuild_tensor_v2": _tensor_v2,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._tensor._rebuild_from_type_v2": _of_type,
        "collections.OrderedDict": _ordered,
        "torch.Size": _shape,
        "torch.device": _device,
    }
    found: dict[str, Maker | Name] = {name: Maker(name, make) for name, make in made.items()}
    for name in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        found[name] = Name(name)
    for prefix, (dtype, torch) in _STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            found[f"{module}.{prefix}Storage"] = Name(f"{module}.{prefix}Storage", Kind(dtype, torch))
    for name in ("torch.UntypedStorage", "torch.storage.UntypedStorage", "torch.storage._UntypedStorage"):
        found[name] = Name(name, Kind("U8", "uint8", untyped=True))
    for torch, dtype in [(t, d) for d, t in _STORAGES.values()] + list(_NEWER.items()):
        found[f"torch.{torch}"] = Name(f"torch.{torch}", Kind(dtype, torch))
    return found


GLOBALS = _globals()


def element_bytes(kind: Kind) -> int:
    """Bytes of an element; raises KeyError for what safetensors has no name for."""
    return ELEMENT_BYTES[kind.dtype]
