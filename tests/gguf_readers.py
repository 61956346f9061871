"""GGUF files opened by llama.cpp, in two builds that are not ours: cyllama for logits and tokens, xllamacpp for generating.

Recipes for both: cyllama gives raw logits at every position; xllamacpp wraps llama.cpp's server and a newer llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Llama:
    """A file held open by cyllama."""

    path: Path

    def __post_init__(self) -> None:
        from cyllama.llama import llama_cpp

        class Model(llama_cpp.LlamaModel):  # type: ignore[misc]
            n_vocab = property(lambda self: self.get_vocab().n_vocab)

        parameters = llama_cpp.LlamaModelParams()
        parameters.n_gpu_layers = 0
        self._lib: Any = llama_cpp
        self._model = Model(str(self.path), parameters)

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text; `special` adds BOS where the file says so, and sees control tokens in the text."""
        return list(self._model.get_vocab().tokenize(text, special, special))

    def logits(self, tokens: Sequence[int], context: int = 512) -> np.ndarray:
        """float32 [tokens, vocabulary]; `context` tokens are what llama.cpp makes room for."""
        lib = self._lib
        parameters = lib.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = context
        state = lib.LlamaContext(self._model, parameters)
        batch = lib.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        batch.set_batch(list(tokens), n_past=0, logits_all=True)
        state.decode(batch)
        return np.stack([np.asarray(state.get_logits_ith(i), np.float32) for i in range(len(tokens))])

    def embeddings(self, tokens: Sequence[int]) -> np.ndarray:
        """What an encoder makes of every token, not pooled: float32 [tokens, width]."""
        state = self._encoded(tokens, embeddings=True)
        return np.stack([np.asarray(state.get_embeddings_ith(i), np.float32) for i in range(len(tokens))])

    def answers(self, tokens: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """Logits of an encoder and decoder that reads `tokens` and goes on after `answer`: float32 [answer, vocabulary]."""
        state = self._encoded(tokens, embeddings=False)
        batch = self._lib.LlamaBatch(n_tokens=len(answer), embd=0, n_seq_max=1)
        batch.set_batch(list(answer), n_past=0, logits_all=True)
        state.decode(batch)
        return np.stack([np.asarray(state.get_logits_ith(i), np.float32) for i in range(len(answer))])

    def _encoded(self, tokens: Sequence[int], *, embeddings: bool) -> Any:
        parameters = self._lib.LlamaContextParams()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
        if embeddings:
            parameters.embeddings, parameters.pooling_type = True, 0
        state = self._lib.LlamaContext(self._model, parameters)
        batch = self._lib.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        batch.set_batch(list(tokens), n_past=0, logits_all=True)
        state.encode(batch)
        return state


def generated(path: Path, prompt: str, count: int = 8) -> str:
    """What a current llama.cpp writes after a prompt, greedily."""
    server = _server(path)
    answer = server.handle_completions({"prompt": prompt, "max_tokens": count, "temperature": 0.0})
    return str(answer["choices"][0]["text"])


def embedded(path: Path, texts: Sequence[str]) -> np.ndarray:
    """What a current llama.cpp makes of texts, pooled as the file says and of length one: float32 [texts, width]."""
    answer = _server(path, embedding=True).handle_embeddings({"input": list(texts), "model": "any"})
    return np.array([entry["embedding"] for entry in answer["data"]], np.float32)


def reranked(path: Path, query: str, texts: Sequence[str]) -> np.ndarray:
    """The score that a current llama.cpp gives each text for the query: float32 [texts]."""
    server = _server(path, embedding=True, pooling_type=4)
    answer = server.handle_rerank({"query": query, "documents": list(texts), "model": "any"})
    found = {entry["index"]: entry["relevance_score"] for entry in answer["results"]}
    return np.array([found[i] for i in range(len(texts))], np.float32)


def _server(path: Path, **settings: Any) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 2
    parameters.warmup = False
    for name, value in settings.items():
        setattr(parameters, name, getattr(xllamacpp.llama_pooling_type, value) if isinstance(value, str) else value)
    return xllamacpp.Server(parameters)


def reference(folder: Path, tokens: Sequence[int]) -> np.ndarray:
    """transformers' logits on the source in float32: [tokens, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = "vision_config" in json.loads((folder / "config.json").read_text())
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([list(tokens)])).logits[0].numpy())


def mean_kl(theirs: np.ndarray, ours: np.ndarray) -> float:
    """Mean over positions of KL(theirs || ours) in nats, from logits."""
    p, q = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))
