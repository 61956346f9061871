"""A model as transformers' own class on torch's meta device: the code of its forward pass, without a weight.

Weights come from the checkpoint a layer at a time, so a model larger than memory runs. Code that comes with a model is never
run: the class is transformers' own or there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import configuration_auto, modeling_auto

from qconvd.calibration.errors import unsupported
from qconvd.calibration.names import expert_linears, spellings
from qconvd.checkpoints.base import ModelInfo
from qconvd.errors import QconvdError

OTHER_CONFIG = "copy or download config.json again, or choose a format without calibration"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a parameter is made of: one tensor of the checkpoint, or for every expert some that are stacked on each other."""

    tensors: tuple[str, ...]
    experts: tuple[tuple[str, ...], ...] = ()


class Network:
    """The decoder of a causal language model, on the meta device."""

    def __init__(self, model: ModelInfo) -> None:
        """Raises `Unsupported` for a model whose class transformers does not have, or whose tensors are not that class's."""
        transformers.logging.set_verbosity_error()  # what it warns of is checked here, or does not matter
        self.model = model
        self.config = _config(model)
        self.whole: Any = _built(model, _class(model, self.config), self.config)
        self.text = self.config.get_text_config()
        self.decoder: Any = self.whole.get_decoder()
        self.layers = self._layers()
        self.embedding: Any = self.decoder.get_input_embeddings()
        self.head: Any = self.whole.get_output_embeddings()
        self.hidden = int(self.text.hidden_size)
        self._names: dict[int, str] = {id(module): name for name, module in self.whole.named_modules()}

    def name(self, module: nn.Module) -> str:
        """A module's name in the whole model."""
        return self._names[id(module)]

    @property
    def head_tensor(self) -> str:
        """The checkpoint's tensor behind the output layer: the embedding's where the two are tied. Empty if it has none."""
        tensor = self._spelled(f"{self.name(self.head)}.weight") if self.head is not None else None
        return tensor or self._spelled(f"{self.name(self.embedding)}.weight") or ""

    def outer(self) -> Iterator[tuple[str, nn.Module]]:
        """The decoder's modules outside of its layers and embedding, with their names in the whole model."""
        inner = {id(m) for layer in (*self.layers, self.embedding) for m in layer.modules()}
        for module in self.decoder.modules():
            if id(module) not in inner:
                yield self.name(module), module

    def origins(self, module: nn.Module) -> Mapping[str, Origin]:
        """Where the parameters and stored buffers below a module come from, by their names below it. Raises `Unsupported`."""
        stored = dict(module.named_parameters())
        kept = module.state_dict(keep_vars=True).keys()
        stored |= {name: buffer for name, buffer in module.named_buffers() if name in kept}
        return {name: self.origin(f"{self.name(module)}.{name}", tuple(value.shape)) for name, value in stored.items()}

    def tensor(self, name: str) -> str:
        """The checkpoint's tensor behind a parameter of this name. Raises `Unsupported`."""
        parameter = self.whole.get_parameter(name)
        return self.origin(name, tuple(parameter.shape)).tensors[0]

    def origin(self, name: str, shape: tuple[int, ...]) -> Origin:
        """Where a parameter of the whole model comes from. Raises `Unsupported`."""
        found = self._spelled(name)
        if found:
            if self.model.tensors[found].shape != shape:
                have = self.model.tensors[found].shape
                raise unsupported(self.model, f"{found} is {_by(have)}, and transformers' {self._class} wants {_by(shape)}")
            return Origin((found,))
        if len(shape) == 3 and (experts := self._experts(name, shape)):
            return Origin(tuple(t for one in experts for t in one), experts)
        raise unsupported(
            self.model,
            f"transformers' {self._class} has the parameter {name}, and the checkpoint nothing that is known to hold it",
        )

    def _spelled(self, name: str) -> str | None:
        names = spellings(name, self.config.model_type, self.whole.base_model_prefix)
        return next((found for found in names if found in self.model.tensors), None)

    def _experts(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
        found = []
        for expert in range(shape[0]):
            for linears in expert_linears(name, expert):
                spelled = [self._spelled(linear) for linear in linears]
                tensors = tuple(s for s in spelled if s)
                if len(tensors) == len(linears):
                    rows = sum(self.model.tensors[t].shape[0] for t in tensors)
                    if (rows, *self.model.tensors[tensors[0]].shape[1:]) == shape[1:]:
                        found.append(tensors)
                        break
        return tuple(found) if len(found) == shape[0] else ()

    def _layers(self) -> nn.ModuleList:
        count = int(self.text.num_hidden_layers)
        for module in self.decoder.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise unsupported(self.model, f"transformers' {self._class} has no list of {count} decoder layers")

    @property
    def _class(self) -> str:
        return type(self.whole).__name__


def _config(model: ModelInfo) -> Any:
    kind = model.config.get("model_type")
    known = configuration_auto.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        if model.config.get("auto_map"):
            what = f"{model.architecture} is not in transformers; it would need the code that comes with the model, "
            raise unsupported(model, f"{what}which qconvd never runs")
        raise unsupported(model, f"transformers {transformers.__version__} does not know the model type {kind!r}")
    wanted = {k: v for k, v in model.config.items() if k not in ("auto_map", "quantization_config")}
    with blamed_on_config(model, "transformers cannot read its config.json"):
        config = known[kind].from_dict(wanted)
        layers = config.get_text_config().num_hidden_layers
    if layers > len(model.tensors):  # said now, for it would take as long to build as there are layers
        what = f"its config.json says {layers} layers, and the checkpoint has {len(model.tensors)} tensors in all"
        raise unsupported(model, what, OTHER_CONFIG)
    return config


def _built(model: ModelInfo, kind: Any, config: Any) -> Any:
    with blamed_on_config(model, f"transformers cannot build {kind.__name__} from its config.json"), torch.device("meta"):
        return kind(config).eval()


@contextmanager
def blamed_on_config(model: ModelInfo, what: str) -> Iterator[None]:
    """Whatever a config.json may make of transformers' classes becomes `Unsupported`."""
    try:
        yield
    except (QconvdError, MemoryError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise unsupported(model, f"{what}: {why}", OTHER_CONFIG) from error


def _class(model: ModelInfo, config: Any) -> Any:
    """The class of a causal language model, of those that transformers registers for this model type."""
    for mapping in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        found = mapping.get(config.model_type)
        if found and (found.lower() == model.architecture.lower() or not found.endswith("ForConditionalGeneration")):
            return getattr(transformers, found)
    raise unsupported(model, f"calibration needs a causal language model; {model.architecture} is none in transformers")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
