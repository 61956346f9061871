"""GPTQ by other people's software, for benchmarks/gptq.py; runs in their own environments and imports nothing of qconvd.

    PYTHON peer_gptq.py gptqmodel|llmcompressor quantize MODEL OUT SAMPLES.npy BITS GROUP
    PYTHON peer_gptq.py gptqmodel|llmcompressor solve LINEAR.npz BITS GROUP OUT.npy
    PYTHON peer_gptq.py llmcompressor logits MODEL WINDOWS.npy OUT.npy

SAMPLES.npy: int64 (samples, length) token ids. LINEAR.npz: `w` float32 (rows, columns), linears with the same inputs one below
the other, `rows` of each; `h` float32 (columns, columns), the sum of x x^T over `tokens`; OUT.npy then is what became of w, and
a line of JSON says the seconds, wall and CPU, of solving alone.
Grids are symmetric; all else is left at their defaults, which order columns by activation and keep groups contiguous, but
`solve` takes columns as they stand.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GPTQMODEL_CPU_WORKERS=str(len(os.sched_getaffinity(0))))

import numpy as np
import torch


def gptqmodel_quantize(model: str, out: str, samples: str, bits: str, group: str) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    loaded = GPTQModel.load(model, QuantizeConfig(bits=int(bits), group_size=int(group)), device="cpu")
    examples = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in np.load(samples)]
    loaded.quantize(examples, batch_size=1)
    loaded.save(out)


def llmcompressor_quantize(model: str, out: str, samples: str, bits: str, group: str) -> None:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    ids = np.load(samples)
    weights = QuantizationArgs(num_bits=int(bits), symmetric=True, strategy="group", group_size=int(group))
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    oneshot(
        model=loaded, recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
        dataset=Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}),
        num_calibration_samples=len(ids), max_seq_length=ids.shape[1], shuffle_calibration_samples=False, pipeline="sequential",
    )  # fmt: skip
    loaded.save_pretrained(out, save_compressed=True)


def gptqmodel_solve(linear: str, bits: str, group: str, out: str) -> None:
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    given = np.load(linear)

    def prepared() -> Callable[[], Any]:
        tasks = []
        for w in weights(given):
            module = torch.nn.Linear(w.shape[1], len(w), bias=False)
            module.weight.data = w
            task = GPTQ(module, QuantizeConfig(bits=int(bits), group_size=int(group), desc_act=False, act_group_aware=False))
            task.quantizer.configure(perchannel=True)
            task.H = torch.from_numpy(given["h"]) * (2 / int(given["tokens"]))
            task.nsamples = int(given["tokens"])
            tasks.append(task)
        return lambda: [task.quantize() for task in tasks]

    np.save(out, np.concatenate([found[0].float().numpy() for found in timed(prepared)]))


def weights(given: Any) -> list[Any]:
    """Of each linear."""
    return [torch.from_numpy(w) for w in np.split(given["w"], given["rows"].cumsum()[:-1])]


def llmcompressor_solve(linear: str, bits: str, group: str, out: str) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    given = np.load(linear)
    h = torch.from_numpy(given["h"])[None] * (2 / int(given["tokens"]))
    arguments = QuantizationArgs(num_bits=int(bits), symmetric=True, strategy="group", group_size=int(group))
    # The scales that its observer of least and greatest weights finds; that is not timed.
    given_scales = []
    for w in weights(given):
        scale = w[None].abs().unflatten(-1, (-1, int(group))).amax(-1) * (2 / (2 ** int(bits) - 1))
        given_scales.append((w[None], scale, torch.zeros_like(scale, dtype=torch.int8)))
    found = timed(lambda: lambda: [quantize_weight(w.clone(), h.clone(), s, z, None, arguments) for w, s, z in given_scales])
    np.save(out, np.concatenate([one[0][0].float().numpy() for one in found]))


def llmcompressor_logits(model: str, windows: str, out: str) -> None:
    """Of every window in float32: float32 (windows, length, vocabulary)."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        np.save(out, np.stack([loaded(torch.from_numpy(ids)[None]).logits[0].numpy() for ids in np.load(windows)]))


def timed(prepared: Callable[[], Callable[[], Any]]) -> Any:
    """The second of two: in a job there are hundreds."""
    with torch.inference_mode():
        prepared()()
    solve = prepared()
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        found = solve()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))
    return found


if __name__ == "__main__":
    globals()["_".join(sys.argv[1:3])](*sys.argv[3:])
