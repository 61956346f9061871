"""An importance matrix in a recipe: what the plan makes of it, how it comes to the kernels, and what is told of gaps in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_models
from gguf_files import converted, differences, metadata, planned, tensor_bytes, tensors
from imatrix_files import chunks, write_dat, write_gguf
from qconvd.engine.plan import Plan, StatRequest
from qconvd.errors import QconvdError, Unsupported
from qconvd.plugins import plugins
from qconvd_ggml.kernels import encode
from qconvd_gguf.encoder import BlockEncoder

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture
def folder(smollm2: Path, tmp_path: Path) -> Path:
    """A Llama of two layers with rows of 256 and 512."""
    sizes = dict(hidden_size=256, intermediate_size=512, head_dim=64, num_attention_heads=4, num_key_value_heads=1)
    out = gguf_models.tiny(tmp_path / "Tiny", 49152, **sizes)
    (out / "tokenizer.json").write_bytes((smollm2 / "tokenizer.json").read_bytes())
    return out


def entries(skip: str = " ", count: float = 2) -> dict[str, tuple[Any, Any]]:
    """Something for every linear of the model but those whose names hold `skip`."""
    found = {}
    for layer in range(2):
        for name in LINEARS:
            columns = 512 if name == "ffn_down" else 256
            full = f"blk.{layer}.{name}.weight"
            if skip not in full:
                found[full] = ([np.linspace(0.1, 9, columns)], [count])
    return found


def weighted(plan: Plan) -> set[str]:
    assert all(u.statistics in ((), (StatRequest(u.id, "mean_square"),)) for u in plan.units)
    return {u.id for u in plan.units if u.statistics}


def keys(plan: Plan) -> dict[str, Any]:
    return {k: v for k, _, v in plan.container.metadata if k.startswith("quantize.")}


def test_tensors_whose_type_looks_at_it_ask_for_it(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.imatrix", entries() | {"token_embd.weight": ([[1, 2]], [1])})
    plan = planned(folder, "Q4_K_M", imatrix=str(path), tensor_types={"attn_k": "q8_0"})
    assert weighted(plan) == {n for n in entries() if "attn_k" not in n}
    (file,) = plan.statistics
    assert (file.path, file.kind, file.without) == (str(path), "imatrix", ("token_embd.weight",))
    assert plan.container.metadata[-4:] == (
        ("quantize.imatrix.file", "str", "tiny.imatrix"), ("quantize.imatrix.dataset", "str", "made-up"),
        ("quantize.imatrix.entries_count", "u32", 15), ("quantize.imatrix.chunks_count", "u32", 1),
    )  # fmt: skip
    assert not any("imatrix" in note for note in plan.notes)
    down = next(u for u in plan.units if u.id == "blk.0.ffn_down.weight")
    plain = next(u for u in planned(folder, "Q4_K_M").units if u.id == "blk.0.ffn_down.weight")
    assert down.memory["cpu"] == plain.memory["cpu"] + 4 * 512


def test_types_change_as_llama_quantizes_do(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", entries())
    types = {u.id: u.outputs[0].dtype for u in planned(folder, "IQ3_XXS", imatrix=str(path)).units}
    assert types["blk.1.ffn_down.weight"] == "IQ3_XXS"  # Q3_K without, but that is refused


def test_older_files_and_what_they_do_not_say(folder: Path, tmp_path: Path) -> None:
    older = {name: (1, list(sums[0])) for name, (sums, _) in entries().items()}
    path = write_dat(tmp_path / ("ü" * 100 + ".dat"), older, chunks(0, "/data/" + "x" * 200))
    plan = planned(folder, "Q4_K_M", imatrix=str(path))
    assert weighted(plan) == set(older)
    assert keys(plan) == {
        "quantize.imatrix.file": "ü" * 63,
        "quantize.imatrix.dataset": "/data/" + "x" * 121,
        "quantize.imatrix.entries_count": 14,
    }


def test_plain_files_have_no_use_for_it(folder: Path, tmp_path: Path) -> None:
    gguf = plugins().formats["gguf"]
    path = write_gguf(tmp_path / "x", entries())
    options = gguf.Options.model_validate({"types": "f16, q8_0", "imatrix": str(path), "tensor_types": {"ffn": "q8_0"}})
    f16, q8_0 = gguf.expand(options)
    assert f16 == gguf.Options.model_validate({"types": "f16"})
    assert f16.model_dump(mode="json", exclude_defaults=True) == {"types": ["F16"]}
    assert q8_0.imatrix == options.imatrix
    # Nothing in a Q8_0 file looks at it, but llama-quantize says so all the same.
    plan = planned(folder, "Q8_0", imatrix=str(path))
    assert weighted(plan) == set()
    assert keys(plan)["quantize.imatrix.entries_count"] == 14


def test_gaps_are_told(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", entries(skip="ffn_up"))
    plan = planned(folder, "Q4_K_M", imatrix=str(path))
    assert (
        "2 of 15 tensors are quantized without importance, as x holds nothing for them: "
        "blk.0.ffn_up.weight, blk.1.ffn_up.weight"
    ) in plan.notes
    assert plan.statistics[0].without == ("token_embd.weight", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    assert weighted(plan) == set(entries(skip="ffn_up"))


def test_what_is_useless_without_importance_is_not_made(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"IQ2_XS needs an importance matrix: without one blk.0.attn_k.weight would be"):
        planned(folder, "IQ2_XS")
    path = write_gguf(tmp_path / "x", entries(skip="1.ffn_up"))
    with pytest.raises(Unsupported) as caught:
        planned(folder, "IQ2_XS", imatrix=str(path))
    assert "x: holds nothing for blk.1.ffn_up.weight, which would be useless as IQ2_XS without" in str(caught.value)
    plan = planned(folder, "IQ2_XS", imatrix=str(path), tensor_types={r"blk\.1\.ffn_up": "q2_k"})
    assert "blk.1.ffn_up.weight" in plan.statistics[0].without


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"blk.7.x": ([[1]], [1])}, r"holds nothing for any of the 15 tensors that would use it\n  name an importance matrix"),
        ({"blk.0.attn_q.weight": ([[1, 2]], [1])}, "has 2 values for blk.0.attn_q.weight, which needs 256"),
        ({"blk.0.attn_q.weight": ([[float("nan")] * 256], [1])}, "says nan of column 0 of 'blk.0.attn_q.weight'"),
    ],
)
def test_matrices_of_other_models_are_refused(folder: Path, tmp_path: Path, held: Any, message: str) -> None:
    path = write_gguf(tmp_path / "x", held)
    with pytest.raises(QconvdError, match=message):
        planned(folder, "Q4_K_M", imatrix=str(path))


def test_a_file_that_changed_since_the_recipe_was_read(folder: Path, tmp_path: Path) -> None:
    gguf = plugins().formats["gguf"]
    path = write_gguf(tmp_path / "x", entries())
    options = gguf.Options.model_validate({"types": "q4_0", "imatrix": str(path)})
    write_gguf(path, entries(count=3))
    assert gguf.Options.model_validate({"types": "q4_0", "imatrix": str(path)}).imatrix != options.imatrix
    with pytest.raises(QconvdError, match="x: changed since the recipe was read"):
        planned(folder, "Q4_0", imatrix=options.imatrix.model_dump())


def test_the_kernels_get_the_tensors_values(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x", entries())
    made = converted(folder, ["Q4_0"], tmp_path / "out", imatrix=str(path))["Q4_0"]
    name, shape = "model.layers.1.mlp.down_proj.weight", (256, 512)
    x = gguf_models.bfloat16(gguf_models.weights(name, shape))
    importance = np.linspace(0.1, 9, 512).astype(np.float32) / np.float32(2)
    ours = tensor_bytes(made, "blk.1.ffn_down.weight")
    assert ours == encode("Q4_0", x, "BF16", importance=importance)[0].tobytes()
    assert ours != encode("Q4_0", x, "BF16")[0].tobytes()


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_matrices_of_llama_imatrix_make_llama_quantizes_files(glass: Path, golden: Path, tmp_path: Path, kind: str) -> None:
    """Both files are llama-imatrix's own, of this model; what is compared was made with them by llama-quantize."""
    path = golden / f"glass_en.imatrix.{kind}"
    with gzip.open(golden / "glass_en_imatrix.json.gz") as file:
        theirs = json.load(file)["types"]
    made = converted(glass, ["Q4_0", "Q5_0"], tmp_path / "out", imatrix=str(path))
    for type_, ours in made.items():
        assert differences(tensors(ours), theirs[f"{type_}.{kind}"]["tensors"]) == []
        said = {key: value for key, value in metadata(ours).items() if key.startswith("quantize.")}
        assert said == theirs[f"{type_}.{kind}"]["metadata"]


def test_rows_of_an_expert_get_its_values() -> None:
    from dataclasses import replace

    from qconvd.api import OutputTensor, Read, RowSplit, TensorInfo, Unit, row_bytes

    shape = (3, 5, 64)
    read = Read.of(TensorInfo("w", "F32", shape, "f", 0, 4 * 3 * 5 * 64))
    output = OutputTensor("w", "Q4_0", shape, 15 * row_bytes("Q4_0", 64))
    request = StatRequest("w", "mean_square")
    unit = Unit("w", 0, (read,), (output,), RowSplit(), (request,))
    random = np.random.default_rng(3)
    x = random.standard_normal((15, 64), np.float32)
    importance = random.uniform(0.01, 9, (3, 64)).astype(np.float32)
    stats = {request.key: importance.reshape(-1)}
    wanted = np.concatenate([encode("Q4_0", x[5 * e : 5 * e + 5], "F32", importance=importance[e])[0] for e in range(3)])
    for first, last in ((0, 15), (0, 5), (3, 12), (4, 6), (10, 15), (14, 15), (7, 7)):
        made = BlockEncoder().encode(unit, (first, last), [x[first:last]], stats)
        assert np.array_equal(made.data[0], wanted[first:last]), (first, last)
        assert made.report.weights == (last - first) * 64
    plain = BlockEncoder().encode(replace(unit, statistics=()), (0, 15), [x], {})
    assert not np.array_equal(plain.data[0], wanted)
