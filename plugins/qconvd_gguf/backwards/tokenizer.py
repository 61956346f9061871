"""A GGUF's tokenizer as the files that transformers reads: tokenizer.json, tokenizer.model, tokenizer_config.json.

SentencePiece vocabularies (`llama`) and byte-level BPE (`gpt2`) are written; of the others GGUF does not carry enough.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from qconvd.api import SideFile
from qconvd_gguf.backwards import sentencepiece_file
from qconvd_gguf.backwards.splitting import PRE_TOKENIZERS
from qconvd_gguf.tokenizer.files import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED

Keys = Mapping[str, Any]
ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep", "mask": "mask"}


def tokenizer_files(keys: Keys, context: int) -> tuple[list[SideFile], list[str]]:
    """The files, and what could not be written. `keys` are GGUF's metadata with whole arrays."""
    kind = keys.get("tokenizer.ggml.model")
    tokens = keys.get("tokenizer.ggml.tokens")
    if not tokens:
        return [], ["the file has no tokenizer: take the tokenizer's files from the original model"]
    if kind not in ("llama", "gpt2"):
        return [], [f"a tokenizer of the kind {kind} is not rebuilt: take the tokenizer's files from the original model"]
    notes: list[str] = []
    types = _types(keys)
    files = []
    if kind == "llama":
        data = _sentencepiece(keys, types)
        files.append(_json_file("tokenizer.json", data))
        model = sentencepiece_file.written(tokens, keys.get("tokenizer.ggml.scores") or [0.0] * len(tokens), types,
                                           space_prefix=_space_prefix(keys))  # fmt: skip
        if model is not None:
            files.append(SideFile("tokenizer.model", len(model), data=base64.b64encode(model).decode()))
    else:
        pre = str(keys.get("tokenizer.ggml.pre", "default"))
        if pre not in PRE_TOKENIZERS:
            what = f"the pre-tokenizer {pre} is not rebuilt: take the tokenizer's files from the original model"
            return [], [what]
        files.append(_json_file("tokenizer.json", _byte_level(keys, types, pre)))
    problem = _problem(files[0])
    if problem:
        return [], [
            f"the tokenizers library refuses what the file says of its tokenizer ({problem}): take the original's files"
        ]
    return [*files, _json_file("tokenizer_config.json", _settings(keys, context))], notes


def _types(keys: Keys) -> list[int]:
    found = keys.get("tokenizer.ggml.token_type")
    return list(found) if found else [NORMAL] * len(keys["tokenizer.ggml.tokens"])


def _sentencepiece(keys: Keys, types: list[int]) -> dict[str, Any]:
    """BPE over pieces. The merges are those that end in a piece, the piece with the best score first, as transformers makes
    them of a SentencePiece file (convert_slow_tokenizer)."""
    tokens = keys["tokenizer.ggml.tokens"]
    vocabulary = _vocabulary(tokens, types)
    scores = keys.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    prefix = _space_prefix(keys)
    normalizers = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = next((tokens[n] for n, kind in enumerate(types) if kind == UNKNOWN), None)
    return _whole(
        keys,
        types,
        normalizer={
            "type": "Sequence",
            "normalizers": [*normalizers, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model=_bpe(vocabulary, _merges(tokens, scores, types, vocabulary), unk_token=unknown, fuse_unk=True,
                   byte_fallback=BYTE in types),
        adds_bos=True,
    )  # fmt: skip


def _merges(tokens: list[str], scores: list[float], types: list[int], vocabulary: Mapping[str, int]) -> list[list[str]]:
    found: list[tuple[float, list[tuple[str, str]]]] = []
    for text, score, kind in zip(tokens, scores, types, strict=True):
        if kind == NORMAL and len(text) > 1:
            splits = ((text[:at], text[at:]) for at in range(1, len(text)))
            pairs = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
            found.append((score, sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))))
    found.sort(key=lambda entry: -entry[0])
    return [list(pair) for _, pairs in found for pair in pairs]


def _byte_level(keys: Keys, types: list[int], pre: str) -> dict[str, Any]:
    tokens = keys["tokenizer.ggml.tokens"]
    how = PRE_TOKENIZERS[pre]
    merges = [merge.split(" ", 1) for merge in keys.get("tokenizer.ggml.merges") or []]
    return _whole(
        keys,
        types,
        normalizer={"type": "NFC"} if how.nfc else None,
        pre_tokenizer=how.as_json(),
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=_bpe(_vocabulary(tokens, types), merges, ignore_merges=how.whole_words),
        adds_bos=False,
    )


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Texts and ids, special tokens among them: the library gives those that are not here ids of its own. Unused ids have no
    token, and of one text the first id counts."""
    found: dict[str, int] = {}
    for number, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind != UNUSED:
            found.setdefault(text, number)
    return found


def _bpe(vocabulary: Mapping[str, int], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    no = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {"type": "BPE", **nothing, **no, **more, "vocab": vocabulary, "merges": merges}


def _whole(keys: Keys, types: list[int], *, adds_bos: bool, **parts: Any) -> dict[str, Any]:
    tokens = keys["tokenizer.ggml.tokens"]
    added = [
        {"id": n, "content": tokens[n], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != USER_DEFINED}
        for n, kind in enumerate(types) if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]  # fmt: skip
    says = {name: keys.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos")}
    around = [_role(keys, "bos", adds_bos if says["bos"] is None else says["bos"]), _role(keys, "eos", says["eos"])]
    processor: dict[str, Any] | None = _template(keys, *around)
    if processor is None and parts["model"].get("unk_token") is None and not adds_bos:
        processor = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": parts["normalizer"]}
    return {**head, "pre_tokenizer": parts["pre_tokenizer"], "post_processor": processor, "decoder": parts["decoder"],
            "model": parts["model"]}  # fmt: skip


def _role(keys: Keys, name: str, wanted: Any) -> int | None:
    number = keys.get(f"tokenizer.ggml.{name}_token_id")
    return number if wanted and isinstance(number, int) and number < len(keys["tokenizer.ggml.tokens"]) else None


def _template(keys: Keys, bos: int | None, eos: int | None) -> dict[str, Any] | None:
    """What is put around a text."""
    if bos is None and eos is None:
        return None
    tokens = keys["tokenizer.ggml.tokens"]

    def special(number: int | None, kind: int) -> list[dict[str, Any]]:
        return [] if number is None else [{"SpecialToken": {"id": tokens[number], "type_id": kind}}]

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        return [*special(bos, kind), {"Sequence": {"id": name, "type_id": kind}}, *special(eos, kind)]

    known = {tokens[n]: {"id": tokens[n], "ids": [n], "tokens": [tokens[n]]} for n in (bos, eos) if n is not None}
    return {"type": "TemplateProcessing", "single": sequence("A", 0), "pair": sequence("A", 0) + sequence("B", 1),
            "special_tokens": known}  # fmt: skip


def _space_prefix(keys: Keys) -> bool:
    return bool(keys.get("tokenizer.ggml.add_space_prefix", True))


def _settings(keys: Keys, context: int) -> dict[str, Any]:
    tokens = keys["tokenizer.ggml.tokens"]
    found: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for theirs, ours in ROLES.items():
        number = keys.get(f"tokenizer.ggml.{theirs}_token_id")
        if isinstance(number, int) and number < len(tokens):
            found[f"{ours}_token"] = tokens[number]
    for name in ("bos", "eos"):
        said = keys.get(f"tokenizer.ggml.add_{name}_token")
        if isinstance(said, bool):
            found[f"add_{name}_token"] = said
    if context:
        found["model_max_length"] = context
    if isinstance(template := keys.get("tokenizer.chat_template"), str):
        found["chat_template"] = template
    return found


def _problem(file: SideFile) -> str:
    """What the tokenizers library says against a tokenizer.json; empty if nothing."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(file.text or "")
    except BaseException as error:  # the library raises bare Exception, and its panics are not even that
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return " ".join(str(error).split())[:200]
    return ""


def _json_file(path: str, data: Mapping[str, Any]) -> SideFile:
    text = json.dumps(data, indent=1 if path != "tokenizer.json" else None, ensure_ascii=False) + "\n"
    return SideFile(path, len(text.encode()), text=text)
