"""What calibration must find: activations of the plain model, as transformers loads and runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn


class Plain:
    """A model in memory as a whole, in float32."""

    def __init__(self, folder: Path) -> None:
        transformers.logging.set_verbosity_error()
        config = transformers.AutoConfig.from_pretrained(folder)
        vision = hasattr(config, "vision_config")
        auto = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
        self.model: Any = auto.from_pretrained(folder, dtype=torch.float32).eval()
        count = config.get_text_config().num_hidden_layers
        decoder = self.model.get_decoder()
        self.layers = next(m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count)

    def run(self, tokens: np.ndarray) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
        """Each layer's input, then the last one's output: (samples, length, hidden). And by the module's name what it was fed:
        rows (tokens, columns); experts as `….experts.3.in` and `….experts.3.inner`."""
        states: list[np.ndarray] = []
        fed: dict[str, list[np.ndarray]] = {}
        with torch.no_grad(), self._hooks(states, fed):
            self.model(input_ids=torch.from_numpy(tokens), use_cache=False)
        return states, fed

    @contextmanager
    def _hooks(self, states: list[np.ndarray], fed: dict[str, list[np.ndarray]]) -> Iterator[None]:
        def before(_: Any, args: Any, kwargs: Any) -> None:
            states.append((args[0] if args else kwargs["hidden_states"]).numpy().copy())

        def after(_: Any, __: Any, out: Any) -> None:
            states.append((out[0] if isinstance(out, tuple) else out).numpy().copy())

        def saw(name: str) -> Any:
            return lambda _, args: fed.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]).numpy().copy())

        def experts(name: str) -> Any:
            def hook(module: Any, args: Any) -> None:
                hidden, index = args[0], args[1]
                for e in range(len(module.down_proj)):
                    x = hidden[(index == e).any(-1)]
                    gate, up = (x @ module.gate_up_proj[e].T).chunk(2, -1)
                    fed.setdefault(f"{name}.{e}.in", []).append(x.numpy())
                    fed.setdefault(f"{name}.{e}.inner", []).append((module.act_fn(gate) * up).numpy())

            return hook

        handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in self.layers]
        handles.append(self.layers[-1].register_forward_hook(after))
        for name, module in self.model.named_modules():
            if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
                handles.append(module.register_forward_pre_hook(experts(name)))
            elif (
                getattr(module, "weight", None) is not None and module.weight.ndim == 2 and not isinstance(module, nn.Embedding)
            ):
                handles.append(module.register_forward_pre_hook(saw(name)))
        yield
        for handle in handles:
            handle.remove()


def expected(fed: dict[str, list[np.ndarray]], name: str) -> tuple[np.ndarray, int]:
    """X^T X in float64, and how many rows."""
    x = np.concatenate(fed[name]).astype(np.float64)
    return x.T @ x, len(x)
