"""The weights in what a torch file holds: a state dict, or a dict that has one under a usual name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvd.checkpoints.files import quoted
from qconvd.checkpoints.torch.values import Tensor
from qconvd.errors import BadCheckpoint, Unsupported

WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
"""Keys under which training programs keep the state dict."""
TRAINING = ("optimizer", "optimizer_states", "optimizer_state_dict", "optimizers", "optim", "param_groups", "lr_schedulers",
            "lr_scheduler", "scheduler", "scheduler_state_dict")  # fmt: skip
_PARALLEL = "module."
"""What torch's DataParallel puts before every name."""


def weights_of(whole: Any, where: str) -> dict[str, Tensor]:
    """The tensors by name, in their order. Raises `Unsupported` for a training state and whatever else is no state dict."""
    found, holds = whole, _Holding()
    for _ in range(len(WRAPPERS)):
        if not isinstance(found, dict):
            break
        _refuse_training(found, where)
        inner = next((key for key in WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None or holds(found):
            break
        others = [key for key, value in found.items() if key != inner and holds(value)]
        if others:
            what = f"holds two sets of weights, under {quoted(inner)} and {quoted(str(others[0]))}"
            raise Unsupported(what, where=where, fix=_ALONE)
        found = found[inner]
    if not isinstance(found, dict):
        raise Unsupported(f"holds {_called(found)} where a state dict should be", where=where, fix=_ALONE)
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            if not isinstance(name, str):
                raise Unsupported(f"has weights under {name!r}, which is no name", where=where, fix=_ALONE)
            weights[name] = value
        elif holds(value):
            raise Unsupported(f"has {_called(value)} under {quoted(str(name))}, not weights", where=where, fix=_ALONE)
    if not weights:
        raise BadCheckpoint("holds no tensors", where=where, fix=_ALONE)
    if all(name.startswith(_PARALLEL) for name in weights):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in weights.items()}
    return weights


_ALONE = "save its weights alone with torch and transformers, model.save_pretrained(folder), or take its safetensors"


def _refuse_training(found: Mapping[Any, Any], where: str) -> None:
    key = next((key for key in TRAINING if isinstance(found.get(key), dict | list)), None)
    if key:
        raise Unsupported(f"is the state of a training run, as its key {quoted(key)} shows", where=where, fix=_ALONE)


class _Holding:
    """Whether dicts and lists hold tensors themselves; what they nest is not looked at, which could take for ever.

    So could one list under many names: each is looked through once.
    """

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}

    def __call__(self, value: Any) -> bool:
        if not isinstance(value, dict | list | tuple):
            return False
        if id(value) not in self._known:
            inside = value.values() if isinstance(value, dict) else value
            self._known[id(value)] = any(isinstance(one, Tensor) for one in inside)
        return self._known[id(value)]


def _called(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    return "nothing" if value is None else f"a {type(value).__name__}"
