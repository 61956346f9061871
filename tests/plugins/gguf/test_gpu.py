"""GGUF on a GPU: what is planned, what is refused in words, and that the units' encoder gives what the CPU's gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gguf_models
from gguf_files import planned
from imatrix_files import write_gguf
from qconvd.engine.plan import Device, Plan, Unit
from qconvd.engine.working_memory import working_memory
from qconvd.errors import QconvdError, Unsupported
from qconvd.plugins import plugins
from qconvd_ggml import cuda
from qconvd_gguf import gpu
from qconvd_gguf.encoder import BlockEncoder

GPU = Device("cuda", "GPU-1")


@pytest.fixture
def folder(smollm2: Path, tmp_path: Path) -> Path:
    """A Llama of two layers with rows of 256 and 512."""
    sizes = dict(hidden_size=256, intermediate_size=512, head_dim=64, num_attention_heads=4, num_key_value_heads=1)
    out = gguf_models.tiny(tmp_path / "Tiny", 49152, **sizes)
    (out / "tokenizer.json").write_bytes((smollm2 / "tokenizer.json").read_bytes())
    return out


def unit(plan: Plan, name: str) -> Unit:
    return next(u for u in plan.units if u.id == name)


def on_the_cpu(**more: int) -> gpu.GpuEncoder:
    """The encoder with a device that is the CPU."""
    pytest.importorskip("triton", reason="the test extra has it for x86-64 only")
    import torch

    from qconvd_ggml.cuda.staging import Staging

    return gpu.GpuEncoder(Staging(torch.device("cpu"), **more))


def test_auto_never_chooses_a_kernel_that_was_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Q4_K_M", "Q8_0", "IQ4_XS", "F16"):
        plan = planned(folder, name)
        encoded = {t.dtype for t in plan.tensors} - {"F32", "F16", "BF16"}
        for device in plan.measured_on:
            assert all(device in cuda.MEASURED.get(dtype, ()) for dtype in encoded), (name, device)
    # Were they measured, it could: but only where all of a file's types were, and where nothing needs what has no kernel.
    monkeypatch.setattr(cuda, "MEASURED", {"Q4_K": ("L4", "H100"), "Q6_K": ("H100",)})
    assert planned(folder, "Q4_K_M").measured_on == ("H100",)
    assert planned(folder, "Q4_K_M", tensor_types={"attn_k": "q5_k"}).measured_on == ()
    assert planned(folder, "IQ4_XS").measured_on == ()
    assert planned(folder, "F16").measured_on == ()


def test_an_importance_matrix_keeps_auto_on_the_cpu(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MEASURED", dict.fromkeys(cuda.TYPES, ("L4",)))
    path = write_gguf(tmp_path / "x", {"blk.0.attn_q.weight": ([np.ones(256)], [1])})
    assert planned(folder, "Q4_K_M", imatrix=str(path)).measured_on == ()
    assert planned(folder, "Q4_K_M").measured_on == ("L4",)


def test_the_plan_says_what_it_takes_of_a_gpu(folder: Path) -> None:
    plan = planned(folder, "Q4_K_M")
    assert unit(plan, "blk.0.attn_q.weight").memory["cuda"] == cuda.WORKING
    assert "cuda" not in unit(plan, "blk.0.attn_norm.weight").memory
    # Pieces have a fixed size there: more threads, or a larger tensor, take no more.
    needed = [working_memory(plan, threads)["cuda"] for threads in (1, 16)]
    assert needed[0] == needed[1] >= cuda.WORKING
    assert working_memory(planned(folder, "F16"), 1)["cuda"] == 0


def test_what_has_no_kernel_is_refused_when_planned_and_when_encoded(folder: Path, tmp_path: Path) -> None:
    gguf = plugins().formats["gguf"]
    path = write_gguf(tmp_path / "x", {"blk.0.attn_q.weight": ([np.ones(256)], [1])})
    without = r"blk\.0\.attn_q\.weight: cannot be made on a GPU: there are no kernels that use an importance matrix"
    for name, options, message in (
        ("IQ4_XS", {}, r"cannot be made on a GPU: there are kernels for Q4_0, .*, Q6_K, not for IQ4_XS"),
        ("Q4_K_M", {"imatrix": str(path)}, without),
    ):
        with pytest.raises(Unsupported, match=message) as error:
            planned(folder, name, device="cuda", **options)
        assert error.value.fix == "say device: auto or device: cpu"
        plan = planned(folder, name, **options)
        with pytest.raises(Unsupported, match=message):
            gguf.encoder(plan, GPU)
    assert planned(folder, "Q4_K_M", device="cuda") == planned(folder, "Q4_K_M")
    assert isinstance(gguf.encoder(planned(folder, "IQ4_XS"), Device()), BlockEncoder)


@pytest.mark.parametrize("missing", ["torch", "triton"])
def test_a_missing_library_is_named(missing: str) -> None:
    """In a process of its own: what this one has imported stays reachable."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from qconvd.errors import Unsupported\n"
        "from qconvd_gguf import gpu\n"
        "try:\n    gpu.encoder(())\n"
        "except Unsupported as error:\n    print(error.what, error.fix, sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    what, fix = done.stdout.strip().split("|")
    assert what == f"a GPU is used through torch and triton, and {missing} is not installed"
    assert fix == "pip install 'qconvd[cuda]', or say device: auto or device: cpu"


def test_units_become_what_the_cpu_makes_of_them(folder: Path) -> None:
    """In a type that needs no Triton; norms never go to the device."""
    encoder = on_the_cpu(piece=1024)
    plan = planned(folder, "Q5_1", pure=True)
    assert [told for told in encoder.prepare(plan) if "GPU" in told] == ["preparing Q5_1 on the GPU"]
    for name in ("blk.1.ffn_down.weight", "blk.0.attn_norm.weight"):
        one = unit(plan, name)
        rows, columns = one.shape
        source = one.inputs[0].dtype
        x = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
        x = x if source == "F32" else gguf_models.bfloat16(x)
        ours, theirs = (e.encode(one, (0, rows), [x], {}) for e in (encoder, BlockEncoder()))
        assert np.array_equal(ours.data[0], theirs.data[0]), name
        assert ours.report == pytest.approx(theirs.report, rel=1e-5)
        assert one.outputs[0].dtype == ("Q5_1" if "ffn" in name else "F32")


def test_weights_that_are_no_numbers_are_refused_if_so_asked(folder: Path) -> None:
    one = unit(planned(folder, "Q5_1", non_finite="refuse"), "blk.1.ffn_down.weight")
    x = np.full(one.shape, 0x7FC0, np.uint16)
    with pytest.raises(QconvdError, match=f"has {x.size} NaN and 0 infinite weights, and `non_finite: refuse` is set"):
        on_the_cpu().encode(one, (0, one.shape[0]), [x], {})
