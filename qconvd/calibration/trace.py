"""What the model's own forward pass hands to each of its layers, and what flows into each linear.

The model runs once on inputs of the right shape with every layer replaced by its shapes alone (the meta device). So masks,
positions and all else that a family gives its layers are its own, and nothing of it is repeated here; and every linear that
text goes through is seen before a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from qconvd.calibration.errors import unsupported
from qconvd.calibration.experts import VERIFIED, experts_of, group_of, is_fused, observed
from qconvd.calibration.network import Network, blamed_on_config


@dataclass(frozen=True)
class Call:
    """What a layer is called with beside hidden states: masks, positions and whatever its family wants."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output for `hidden`, (samples, length, hidden)."""
        out = layer(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


@dataclass
class LayerTrace:
    """A layer: how it is called, and its groups of linears that are fed the same activations."""

    call: Call = Call()
    rest: tuple[Any, ...] | None = None
    """What it gives beside its output; None if it gives that alone."""
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By the checkpoint's tensor, its group; for a stack of experts one for each."""
    columns: list[int] = field(default_factory=list)
    """Of each group."""
    leaders: dict[int, nn.Module] = field(default_factory=dict)
    """The module whose input is that of the whole group; none for experts."""
    fused: dict[nn.Module, int] = field(default_factory=dict)
    """Modules of fused experts, and the first group of each."""
    width: int = 0
    """Columns of all that its linears are fed and give, for one token."""

    def returned(self, hidden: torch.Tensor) -> Any:
        """Hidden states in the form that the layer gives them back in."""
        return hidden if self.rest is None else (hidden, *self.rest)


def trace(network: Network, length: int, device: torch.device, dtype: torch.dtype) -> Sequence[LayerTrace]:
    """Run the decoder on one sample of zeros, and its layers on the meta device alone.

    Its modules outside of the layers must be loaded (to `device`), and no layer may be.
    """
    found = [LayerTrace() for _ in network.layers]

    def run(one: LayerTrace, layer: Any, hidden: torch.Tensor, args: Any, kwargs: Any) -> None:
        # Parameters alone: a layer's own buffers (frequencies) stay as precise as transformers has them.
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(dtype)
        with _Watch(network, layer, one):
            out = type(layer).forward(layer, hidden.to("meta"), *_meta(args), **_meta(kwargs))
        one.rest = out[1:] if isinstance(out, tuple) else None

    # Sizes that do not fit each other first show when they are computed with.
    with blamed_on_config(network.model, f"transformers' {type(network.whole).__name__} cannot run as its config.json says"):
        _outer_pass(network, (1, length), device, dtype, found, run)
    return found


def calls(
    network: Network, traces: Sequence[LayerTrace], samples: int, length: int, device: torch.device, dtype: torch.dtype
) -> Sequence[Call]:
    """How each layer is called for so many samples at once."""
    found = [LayerTrace(rest=trace.rest) for trace in traces]
    _outer_pass(network, (samples, length), device, dtype, found, lambda *_: None)
    return [one.call for one in found]


def _outer_pass(
    network: Network, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, found: Sequence[LayerTrace], run: Any
) -> None:
    called = 0
    with ExitStack() as stack, torch.no_grad():
        for one, layer in zip(found, network.layers, strict=True):

            def forward(hidden: torch.Tensor, *args: Any, _one: LayerTrace = one, _layer: Any = layer, **kwargs: Any) -> Any:
                nonlocal called
                called += 1
                _one.call = Call(args, kwargs)
                run(_one, _layer, hidden, args, kwargs)
                return _one.returned(hidden)

            layer.forward = forward
            stack.callback(layer.__dict__.pop, "forward")
        embedded = torch.zeros(*shape, network.hidden, device=device, dtype=dtype)
        network.decoder(inputs_embeds=embedded, use_cache=False)
    if called != len(found):
        what = f"transformers' {type(network.whole).__name__} calls layers {called} times, and has {len(found)}"
        raise unsupported(network.model, what)


class _Watch:
    """Notes what goes into every matrix of a layer while it runs."""

    def __init__(self, network: Network, layer: nn.Module, found: LayerTrace) -> None:
        self._network = network
        self._found = found
        self._handles: list[Any] = []
        self._fused: list[Any] = []
        # Kept, so that no two inputs have one id.
        self._inputs: dict[int, tuple[torch.Tensor, int]] = {}
        for module in layer.modules():
            if is_fused(module):
                self._experts(module)
            elif isinstance(weight := module._parameters.get("weight"), nn.Parameter) and weight.ndim == 2:
                self._handles.append(module.register_forward_hook(self._saw))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._fused:
            module.__dict__.pop("forward")
        self._inputs.clear()

    def _saw(self, module: Any, args: tuple[Any, ...], out: Any) -> None:
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or x.shape[-1] not in module.weight.shape:
            return
        if id(x) not in self._inputs:
            self._inputs[id(x)] = (x, len(self._found.columns))
            self._found.leaders[len(self._found.columns)] = module
            self._found.columns.append(int(x.shape[-1]))
            self._found.width += int(x.shape[-1])
        self._found.width += int(out.shape[-1]) if isinstance(out, torch.Tensor) else 0
        tensor = self._network.tensor(f"{self._network.name(module)}.weight")
        self._found.groups[tensor] = (self._inputs[id(x)][1],)

    def _experts(self, module: Any) -> None:
        name = type(module).__name__
        if name not in VERIFIED:
            known = ", ".join(sorted(VERIFIED))
            what = f"the experts of {name} are not known to calibration, which knows {known}"
            raise unsupported(self._network.model, what)
        first, found = len(self._found.columns), self._found
        found.fused[module] = first
        found.columns += [int(module.gate_up_proj.shape[2]), int(module.down_proj.shape[2])] * experts_of(module)
        found.width += int(module.gate_up_proj.shape[1] + module.gate_up_proj.shape[2] + 2 * module.down_proj.shape[2])
        for leaf, origin in self._network.origins(module).items():
            for expert, tensors in enumerate(origin.experts):
                found.groups |= {tensor: (group_of(first, expert, leaf),) for tensor in tensors}
            if not origin.experts:
                found.groups[origin.tensors[0]] = tuple(group_of(first, e, leaf) for e in range(experts_of(module)))
        module.forward = observed(module, first, lambda *_: None)
        self._fused.append(module)


def _meta(tree: Any) -> Any:
    return tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, tree)
