"""Runs in a reader's own environment: opens artifacts with that reader and keeps its logits.

    .envs/gptqmodel/bin/python tests/readers/gptq/read.py READER JOB.json

JOB.json: {"artifacts": {name: {"folder", "tokens": [ids]}}, "out": folder}. One line of JSON per artifact goes to standard
output, {"artifact", "reader", "seconds"} with "refused", the reader's own message, or with "dtype", what it computes in, and
"kernels", its classes that computed; `out`/name.npy then holds float32 (tokens, vocabulary). vLLM gives logarithms of
probabilities, the others logits. Nothing of qconvd is imported here.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GPTQMODEL_CPU_WORKERS="2")
os.environ.update(TORCH_COMPILE_DISABLE="1", OMP_NUM_THREADS="2", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR")
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_NO_USAGE_STATS="1")


def main() -> None:
    name, job = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    import numpy as np

    said = os.dup(1)  # what the readers print goes to standard error
    os.dup2(2, 1)
    with os.fdopen(said, "w") as answers:
        for artifact, about in job["artifacts"].items():
            started = time.monotonic()
            answer: dict[str, Any] = {"artifact": artifact, "reader": RELEASE[name]()}
            try:
                logits, kernels = READERS[name](about["folder"], about["tokens"])
                np.save(Path(job["out"]) / f"{artifact}.npy", logits)
                answer |= {"dtype": DTYPE[name], "kernels": sorted(kernels)}
            except Exception as refusal:  # noqa: BLE001  whatever a reader says is what is asked for
                answer["refused"] = message(refusal)
            gc.collect()
            answers.write(json.dumps(answer | {"seconds": round(time.monotonic() - started, 1)}) + "\n")
            answers.flush()


Read: TypeAlias = "tuple[Any, set[str]]"


def gptqmodel(folder: str, tokens: list[int]) -> Read:
    """GPTQModel with its torch kernel, which has half precision only."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    return forward(GPTQModel.load(folder, backend=BACKEND.TORCH, device="cpu", dtype=torch.float16).model, tokens)


def transformers(folder: str, tokens: list[int]) -> Read:
    """transformers, which asks optimum, which asks GPTQModel for whatever kernel it thinks best."""
    import torch
    from transformers import AutoModelForCausalLM

    return forward(AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32), tokens)


def forward(model: Any, tokens: list[int]) -> Read:
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([tokens])).logits[0].float().numpy()
    return logits, {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}


def vllm(folder: str, tokens: list[int]) -> Read:
    """vLLM's whole engine; what follows the last token is asked for beside what is said of the others."""
    import numpy as np
    from vllm import LLM, SamplingParams
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQLinearMethod

    vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    AutoGPTQLinearMethod._kernel_backends_being_used.clear()
    model = LLM(
        folder, dtype="float16", max_model_len=len(tokens) + 2, enforce_eager=True, max_num_seqs=1, max_logprobs=-1,
        disable_log_stats=True,
    )  # fmt: skip
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1, logprobs=-1)
    (answer,) = model.generate({"prompt_token_ids": tokens}, asked, use_tqdm=False)
    found = np.full((len(tokens), vocabulary), -np.inf, np.float32)
    for row, said in zip(found, [*answer.prompt_logprobs[1:], answer.outputs[0].logprobs[0]], strict=True):
        for token, value in said.items():
            row[token] = value.logprob
    (schemes,) = model.apply_model(lambda module: {type(m.scheme).__name__ for m in module.modules() if hasattr(m, "scheme")})
    return found, {*AutoGPTQLinearMethod._kernel_backends_being_used, *schemes}


READERS: dict[str, Callable[[str, list[int]], Read]] = {"gptqmodel": gptqmodel, "transformers": transformers, "vllm": vllm}
DTYPE = {"gptqmodel": "float16", "transformers": "float32", "vllm": "float16"}
RELEASE = {
    "gptqmodel": lambda: f"gptqmodel {version('gptqmodel')}",
    "transformers": lambda: f"transformers {version('transformers')} gptqmodel {version('gptqmodel')}",
    "vllm": lambda: f"vllm-cpu {version('vllm-cpu')}",
}


def message(error: Exception) -> str:
    """In one line, without the addresses and paths of this run."""
    text = " ".join(str(error).split())
    text = re.sub(r"\s*\[type=value_error.*$", "", text)  # pydantic's, which repeats all that it was given
    return f"{type(error).__name__}: {text}"[:400]


if __name__ == "__main__":
    main()
