"""The plan of an artifact: which tensors become what, to the byte, from headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from qconvd.api import (
    FLOATS,
    ContainerSpec,
    Kept,
    LeftOut,
    Linear,
    ModelInfo,
    Plan,
    Reader,
    TensorInfo,
    Unit,
    Unsupported,
    carried_files,
    config_with,
    container,
    decided_by,
    in_float32,
    in_order,
    kept_as,
    linears,
    note_on_types,
    rest_unit,
    safetensors_index,
    unmatched_patterns,
)  # fmt: skip
from qconvd_compressed import stored
from qconvd_compressed.config_json import quantization_config
from qconvd_compressed.options import GROUP_SIZES, QuantizedOptions
from qconvd_compressed.readers import READERS, hindrance, note
from qconvd_compressed.schemes import Floats, Integers, Scheme

NO_MODULE = re.compile(r"embed|wte$|wpe$|norm|conv")
"""Matrices that are no linears: nothing needs to be told about them."""
HEAD = "lm_head"


def plan(model: ModelInfo, options: QuantizedOptions, format: str) -> Plan:
    """One unit per tensor, in the order of the layers. Raises `Unsupported`."""
    scheme = options.scheme_of_one
    sorted_out = [_decided(x, scheme, options) if isinstance(x, Linear) else x for x in linears(model, format)]
    chosen = {x.tensor.name: x for x in sorted_out if isinstance(x, Linear)}
    kept = [x for x in sorted_out if isinstance(x, Kept)]
    if not chosen:
        why = f"; of {len(kept)} linears none can be: {kept[0].module}: {kept[0].reason}" if kept else ""
        raise Unsupported(f"has no linears that can be quantized{why}", where=str(model.path))
    said = {"non_finite": options.non_finite} if options.non_finite != "report" else {}
    cast = in_float32(x.tensor for x in chosen.values())
    units: list[Unit] = []
    for tensor in in_order(model.tensors.values()):
        x = chosen.get(tensor.name)
        units += stored.units(x, scheme, dict(said)) if x else [rest_unit(tensor, format, cast, said)]
    outputs = [o for u in units for o in u.outputs]
    spec = ContainerSpec("safetensors", (("format", "str", "pt"),), {"max_shard_size": options.max_shard_size})
    files = container("safetensors").layout(spec, outputs)
    index = safetensors_index(files, outputs)
    readers, notes = _readers(options, scheme, list(chosen.values()), [k.module for k in kept])
    dtype = "bfloat16" if next(iter(chosen.values())).tensor.dtype == "BF16" else "float16"
    config = quantization_config(scheme, _ignored(model, chosen), dtype)
    return Plan(
        container=spec,
        files=files,
        units=tuple(units),
        name=options.name_parts,
        side_files=(
            config_with(model.config, config, dtype if cast or _says_another(model, dtype) else None),
            *carried_files(model, ("config.json",)),
            *([index] if index else []),
        ),
        left_out=tuple(LeftOut(k.tensor.name, kept_as(k.tensor, cast), k.reason) for k in kept),
        loads_with=readers,
        notes=(
            *notes,
            *_smaller_groups(scheme, chosen.values(), kept),
            *note_on_types(cast),
            *unmatched_patterns(options.modules, model),
        ),
    )


def _says_another(model: ModelInfo, dtype: str) -> bool:
    """Whether a config names another type than all weights have: transformers would cast what is not quantized to it."""
    alike = len({t.dtype for t in model.tensors.values() if t.dtype in FLOATS}) == 1
    return alike and any(model.config.get(key) not in (None, dtype) for key in ("dtype", "torch_dtype"))


def _decided(x: Linear, scheme: Scheme, options: QuantizedOptions) -> Linear | Kept:
    if decided_by(options.modules, x.module):
        return Kept(x.tensor, x.module, "left out by `modules`")
    reason = stored.hindrance(x, scheme)
    return Kept(x.tensor, x.module, reason) if reason else x


def _readers(
    options: QuantizedOptions, scheme: Scheme, chosen: Sequence[Linear], left_out: Sequence[str]
) -> tuple[tuple[Reader, ...], tuple[str, ...]]:
    """Who loads it; and in a sentence who does not, and why. Raises `Unsupported` if one of `for` does not."""
    good, bad = [], []
    for reader, shown in READERS.items():
        why = hindrance(reader, scheme, chosen, left_out)
        if not why:
            good.append(Reader(shown, note(reader, scheme)))
            continue
        bad.append(f"does not load with {shown}: {why}")
        if reader in options.for_:
            raise Unsupported(f"{shown} would not load it: {why}", fix=f"change that, or leave {reader} out of `for`")
    names = " and ".join(f"{r.name} ({r.note})" if r.note else r.name for r in good) or "nothing known"
    return tuple(good), (f"loads with {names}", *bad)


def _ignored(model: ModelInfo, chosen: dict[str, Linear]) -> list[str]:
    """Modules that readers would otherwise take for quantized linears. The head is one of them even where it is not stored."""
    found = [_module(t) for t in model.tensors.values() if t.name not in chosen and _may_be_linear(t)]
    return list(dict.fromkeys([*found, HEAD]))


def _may_be_linear(tensor: TensorInfo) -> bool:
    return len(tensor.shape) in (2, 3) and not tensor.name.endswith("bias") and not NO_MODULE.search(_module(tensor))


def _module(tensor: TensorInfo) -> str:
    return tensor.name.removesuffix(".weight")


def _smaller_groups(scheme: Scheme, chosen: Collection[Linear], kept: Sequence[Kept]) -> tuple[str, ...]:
    """What to say if the group size or the blocks leave linears out that others would not."""
    if isinstance(scheme, Floats) and scheme.blocks and (left := [k for k in kept if k.reason.startswith("blocks of")]):
        widths = _widths(k.tensor.shape[1] for k in left)
        return (f"blocks leave out {len(left)} of {len(kept) + len(chosen)} linears (inputs: {widths}); `fp8` takes them all",)
    if not isinstance(scheme, Integers) or scheme.group_size < 0:
        return ()
    odd = [k.tensor.shape[1] for k in kept if k.reason.startswith("the group size")]
    fits = [g for g in GROUP_SIZES if 0 < g < scheme.group_size and all(n % g == 0 for n in odd)]
    if not odd or not fits:
        return ()
    widths = _widths(odd)
    count = f"{len(odd)} of {len(odd) + len(chosen)} linears"
    return (
        f"the group size {scheme.group_size} leaves out {count} (inputs: {widths}); group_size: {max(fits)} takes them all",
    )


def _widths(columns: Iterable[int]) -> str:
    """Numbers of inputs, the most frequent first."""
    return ", ".join(str(n) for n, _ in Counter(columns).most_common())
