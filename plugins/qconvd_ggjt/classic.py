"""gpt2, gptj and gpt_neox as ggml's examples read them: the checkpoint's own tensors, most under the checkpoint's own names.

Sources: ggml's examples gpt-2, gpt-j, gpt-neox and dolly-v2 (converters and loaders).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qconvd.api import FLOATS, Cast, Expr, LeftOut, ModelInfo, Read, Transpose, Unsupported
from qconvd_ggjt.contents import Contents, Held
from qconvd_ggjt.vocabulary import byte_level_tokens
from qconvd_gguf.tokenizer import tokenizer_metadata

_HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight")
"""Tensors that stand outside of the prefix."""
CAUSAL = "readers build the causal mask and the rotation's frequencies themselves"


@dataclass(frozen=True)
class Classic:
    """A family: `numbers` of the header by their keys in config.json, and what every tensor of the checkpoint is called."""

    name: str
    numbers: tuple[str | Callable[[Mapping[str, Any]], int], ...]
    tensors: Mapping[str, str]
    """Names in the checkpoint without prefix, `{i}` for a layer, to names in the file."""
    layers: str
    prefix: str
    transposed: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    """What stands for a tensor that the checkpoint has not, where its embeddings are tied: readers want both."""
    activations: tuple[str, ...] = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
    eps: str = "layer_norm_epsilon"


def _context(config: Mapping[str, Any]) -> int:
    return int(config.get("n_positions") or config.get("n_ctx") or 0)


def _rotated(config: Mapping[str, Any]) -> int:
    rope = config.get("rope_parameters") or {}
    share = config.get("rotary_pct", rope.get("partial_rotary_factor", 0.25))
    return int(share * (config["hidden_size"] // config["num_attention_heads"]))


def _parallel(config: Mapping[str, Any]) -> int:
    return int(bool(config.get("use_parallel_residual", True)))


def _both(*names: str) -> dict[str, str]:
    return {f"{name}.{part}": f"{name}.{part}" for name in names for part in ("weight", "bias")}


def _old(names: Mapping[str, str]) -> dict[str, str]:
    """gpt2's own spelling: `c_attn.weight` is `c_attn/w`, a norm's `ln_1/g`."""
    parts = {"weight": "w", "bias": "b"}
    return {
        f"{name}.{part}": f"{old}/{'g' if part == 'weight' and '/ln_' in old else parts[part]}"
        for name, old in names.items()
        for part in parts
    }


_GPT2_LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
GPT2 = Classic(
    "gpt2",
    ("vocab_size", _context, "n_embd", "n_head", "n_layer"),
    {"wte.weight": "model/wte", "wpe.weight": "model/wpe", "lm_head.weight": "model/lm_head"}
    | _old({"ln_f": "model/ln_f", "h.{i}.ln_1": "model/h{i}/ln_1", "h.{i}.ln_2": "model/h{i}/ln_2"})
    | _old({f"h.{{i}}.{name}": f"model/h{{i}}/{name.replace('.', '/')}" for name in _GPT2_LINEARS}),
    layers="n_layer",
    prefix="transformer.",
    transposed=frozenset(f"h.{{i}}.{name}.weight" for name in _GPT2_LINEARS),
    floats=frozenset({"model/wpe"}),
    optional=frozenset({"lm_head.weight"}),
)
GPTJ = Classic(
    "gptj",
    ("vocab_size", _context, "n_embd", "n_head", "n_layer", "rotary_dim"),
    {"wte.weight": "transformer.wte.weight"}
    | {f"{name}": f"transformer.{name}" for name in _both("ln_f", "h.{i}.ln_1", "h.{i}.mlp.fc_in", "h.{i}.mlp.fc_out")}
    | {f"h.{{i}}.attn.{name}_proj.weight": f"transformer.h.{{i}}.attn.{name}_proj.weight" for name in ("q", "k", "v", "out")}
    | _both("lm_head"),
    layers="n_layer",
    prefix="transformer.",
    tied={"lm_head.weight": "wte.weight"},
)
_NEOX_LAYER = ("input_layernorm", "post_attention_layernorm", "attention.query_key_value", "attention.dense",
               "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")  # fmt: skip
GPT_NEOX = Classic(
    "gpt_neox",
    ("vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers", _rotated, _parallel),
    {"embed_in.weight": "gpt_neox.embed_in.weight", "embed_out.weight": "embed_out.weight"}
    | {name: f"gpt_neox.{name}" for name in _both("final_layer_norm", *(f"layers.{{i}}.{n}" for n in _NEOX_LAYER))},
    layers="num_hidden_layers",
    prefix="gpt_neox.",
    tied={"embed_out.weight": "embed_in.weight"},
    activations=("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    eps="layer_norm_eps",
)
ARCHITECTURES = {"GPT2LMHeadModel": GPT2, "GPTJForCausalLM": GPTJ, "GPTNeoXForCausalLM": GPT_NEOX}


def contents(model: ModelInfo) -> Contents:
    """Raises `Unsupported` for what ggml's example of the family does not compute, and for tensors that do not fit."""
    family, config = ARCHITECTURES[model.architecture], model.config
    where = str(model.path / "config.json")
    numbers = [number(config) if callable(number) else _number(config, number, where) for number in family.numbers]
    _check(family, config, where)
    vocabulary = numbers[0]
    keys, notes = tokenizer_metadata(model, vocabulary, "default")
    found = {k: v for k, _, v in keys}
    if found["tokenizer.ggml.model"] != "gpt2":
        kind = found["tokenizer.ggml.model"]
        what = f"the vocabulary is of the kind {kind}; readers of {family.name} files know byte-level BPE only"
        raise Unsupported(what, where=str(model.path), fix="take gguf, which can say it")
    tensors, dropped = _tensors(family, model, _number(config, family.layers, where))
    return Contents(
        family=family.name,
        numbers=tuple(numbers),
        tokens=byte_level_tokens(found),
        scores=(),
        tensors=tensors,
        floats=family.floats,
        one_type=True,
        traits={},
        dropped=dropped,
        notes=tuple(note for note in notes if "tokenizer.ggml.pre" not in note),
    )


def _number(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Unsupported(
            f"{key} is {value!r}, which is no number", where=where, fix="take config.json from the model's repository"
        )
    return value


def _check(family: Classic, config: Mapping[str, Any], where: str) -> None:
    activation = config.get("activation_function") or config.get("hidden_act") or family.activations[0]
    if activation not in family.activations:
        raise Unsupported(f"the activation is {activation}; readers of {family.name} files compute GELU", where=where)
    for key, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if bool(config.get(key, usual)) != usual:
            what = (
                f"{key} is {config[key]}; readers of {family.name} files divide attention by the root of the head's width alone"
            )
            raise Unsupported(what, where=where)
    eps = config.get(family.eps, 1e-5)
    if abs(float(eps) - 1e-5) > 1e-9:
        raise Unsupported(f"the norms' epsilon is {eps}; readers of {family.name} files compute with 1e-05", where=where)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = config.get("rotary_emb_base") or rope.get("rope_theta") or config.get("rope_theta") or 10000
    if float(theta) != 10000 or str(rope.get("rope_type") or rope.get("type") or "default") != "default":
        what = f"the rotation has the base {theta:g} or is scaled; readers of {family.name} files take it for 10000 and plain"
        raise Unsupported(what, where=where, fix="take gguf, which can say it")
    inner, width = config.get("n_inner") or config.get("intermediate_size"), config.get("n_embd") or config.get("hidden_size")
    if inner is not None and width and inner != 4 * width:
        what = f"the MLP is {inner} wide; readers of {family.name} files take it for 4 times {width}"
        raise Unsupported(what, where=where)


def _tensors(family: Classic, model: ModelInfo, layers: int) -> tuple[tuple[Held, ...], tuple[LeftOut, ...]]:
    held, taken, missing = [], set(), []
    for pattern, new in family.tensors.items():
        for layer in range(layers) if "{i}" in pattern else (None,):
            name = pattern.replace("{i}", str(layer))
            source = _found(model, family, name)
            if source is None and name in family.tied and model.config.get("tie_word_embeddings"):
                source = _found(model, family, family.tied[name])
            if source is None:
                missing += [] if pattern in family.optional else [name if name in _HEADS else family.prefix + name]
                continue
            taken.add(source)
            expr = _expr(model, source)
            if pattern in family.transposed:
                expr = Transpose(expr)
            held.append(Held(new.replace("{i}", str(layer)), expr, layer, 64 if pattern in family.transposed else 1))
    if missing:
        what = f"the model lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise Unsupported(what, where=str(model.path))
    left = [name for name in model.tensors if name not in taken]
    unknown = [name for name in left if not re.search(r"\.(attn|attention)\.((masked_)?bias|rotary_emb\.inv_freq)$", name)]
    if unknown:
        raise Unsupported(f"{model.architecture} has no tensor {unknown[0]}", where=str(model.path))
    held.sort(key=lambda h: (0 if "emb" in h.name or "/w" in h.name[:8] or "wte" in h.name else 1 if h.layer is not None else 2,
                             h.layer or 0))  # fmt: skip
    return tuple(held), tuple(LeftOut(name, "dropped", CAUSAL) for name in left)


def _found(model: ModelInfo, family: Classic, name: str) -> str | None:
    """What the checkpoint calls a tensor."""
    return next((n for n in (family.prefix + name, name) if n in model.tensors), None)


def _expr(model: ModelInfo, name: str) -> Expr:
    info = model.tensors[name]
    if info.dtype not in FLOATS:
        fix = "start from the unquantized model"
        raise Unsupported(f"its type is {info.dtype}, not a float", where=f"{model.path}, tensor {name}", fix=fix)
    read = Read.of(info)
    return read if info.dtype in ("F32", "F16", "BF16") else Cast(read, "F32")
