"""The kernels for a GPU, without one: run by Triton's interpreter, operation by operation, and compiled but not run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qconvd.api import UnitReport, Unsupported, cuda_device, row_bytes
from qconvd_ggml import cuda, kernels
from qconvd_ggml.cuda import SEARCHED, TYPES, contract, measured_on
from qconvd_ggml.decode import decode, error_bound

BITS = {"BF16": (torch.bfloat16, np.uint16), "F16": (torch.float16, np.uint16), "F32": (torch.float32, np.float32)}
COMPILE = r"""
import pathlib, re, subprocess, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from qconvd_ggml.cuda import SEARCHED, encode, k_types, search

tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

def compiled(kernel, lanes, *arguments, **constants):
    constants["LANES"] = search.LANES
    types = {a: "constexpr" if a in constants else "i32" if a == "lanes" else "*fp32" for a in kernel.arg_names}
    made = compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 80, 32), options=search.OPTIONS)
    text = made.asm["ptx"]
    assert "div.rn.f32" in text and "add.rn.f32" in text
    cubin = pathlib.Path(sys.argv[0]).with_name(dtype)
    cubin.write_bytes(made.asm["cubin"])
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True).stdout
    stack, local = re.search(r"STACK:(\d+)", usage)[1], re.search(r"LOCAL:(\d+)", usage)[1]
    print(dtype, "contracted", len(re.findall(r"\bfma", text)),
          "imprecise", len(re.findall(r"(?:div|sqrt|rcp)[.](?!rn)|[.]ftz", text)),
          "exchanged", len(re.findall(r"shfl|bar[.]sync|[.]shared", text)), "spilled", int(stack) + int(local))

k_types._launch = compiled  # with the constants of each type
for dtype in SEARCHED:
    encode.KERNELS[dtype](torch.ones(1, 256))
"""
ON_A_GPU = """
import numpy as np
from qconvd_ggml import cuda, kernels
from qconvd_ggml.cuda.contract import compare
from qconvd.api import cuda_device
from qconvd_ggml.cuda.staging import Staging

staging = Staging(cuda_device())
x = np.random.default_rng(7).standard_normal((64, 4096)).astype(np.float32)
for dtype in cuda.TYPES:
    found = compare(dtype, x, staging.encode(dtype, x, "F32")[0], kernels.encode(dtype, x, "F32")[0])
    print(dtype, "kept" if found.kept else found)
"""


@pytest.fixture(scope="module")
def device() -> Iterator[Any]:
    """The package's `encode` and its module `staging`, with kernels that numpy runs."""
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        pytest.importorskip("triton", reason="the test extra has it for x86-64 only")
        from qconvd_ggml.cuda import encode, search, staging

        # The interpreter takes its time per operation, whatever their width.
        patch.setattr(search, "LANES", 1024)
        yield SimpleNamespace(encode=encode.encode, staging=staging)


def tensor(x: np.ndarray, source_dtype: str = "F32") -> Any:
    return torch.from_numpy(x.copy()).view(BITS[source_dtype][0])


def rows(source_dtype: str, count: int = 5, columns: int = 768) -> np.ndarray:
    """Normal weights of very different sizes, an odd number of rows and of super-blocks."""
    x = np.random.default_rng(4).standard_normal((count, columns)) * np.logspace(-4, 1, count)[:, None]
    return (
        torch.from_numpy(x.astype(np.float32)).to(BITS[source_dtype][0]).view(torch.uint8).numpy().view(BITS[source_dtype][1])
    )


def compiled_and_run(code: str, folder: Path) -> list[str]:
    """The lines that `code` prints, in a process where Triton compiles its kernels."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(folder)}
    path = folder / "code.py"
    path.write_text(code)
    done = subprocess.run([sys.executable, str(path)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("dtype", TYPES)
def test_golden_blocks_give_llama_cpps_bytes(device: Any, blocks: dict[str, np.ndarray], dtype: str) -> None:
    data, report = device.encode(dtype, tensor(blocks["weights_bf16"], "BF16"))
    assert np.array_equal(data.numpy(), blocks[dtype])
    cpu, expected = kernels.encode(dtype, blocks["weights_bf16"], "BF16")
    assert np.array_equal(cpu, blocks[dtype])
    assert report == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_difficult_weights_give_the_cpus_bytes(device: Any, golden: Path, dtype: str) -> None:
    with np.load(golden / "ggml_hostile.npz") as file:
        x = file["weights"]
    data, report = device.encode(dtype, tensor(x))
    expected, told = kernels.encode(dtype, x, "F32")
    assert np.array_equal(data.numpy(), expected)
    assert report == pytest.approx(told, rel=1e-5)
    y = decode(dtype, data.numpy(), x.shape[1])
    finite = np.isfinite(y)
    assert report.overflows == (~finite).sum()
    assert (np.abs(y - x)[finite] <= error_bound(dtype, x)[finite]).all()


@pytest.mark.parametrize("dtype", ["Q5_1", "Q3_K", "Q6_K"])
@pytest.mark.parametrize("source_dtype", BITS)
def test_any_source_in_any_pieces_gives_the_cpus_bytes(device: Any, dtype: str, source_dtype: str) -> None:
    x = rows(source_dtype)
    x.flags.writeable = False
    expected, told = kernels.encode(dtype, x, source_dtype)
    # Pieces of two super-blocks, which no row is a multiple of.
    staging = device.staging.Staging(torch.device("cpu"), slots=1, piece=512)
    data, report = staging.encode(dtype, x, source_dtype)
    assert np.array_equal(data, expected)
    assert report == pytest.approx(told, rel=1e-5)


def test_more_threads_than_slots_take_turns(device: Any) -> None:
    """With a type that Triton has no part in: its interpreter runs one kernel at a time."""
    x = rows("F32")
    staging = device.staging.Staging(torch.device("cpu"), slots=2, piece=512)
    parts = [slice(None), slice(1), slice(1, 3), slice(0)] * 4
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(staging.encode, "Q4_0", x[part], "F32") for part in parts]
    for call, part in zip(calls, parts, strict=True):
        assert np.array_equal(call.result()[0], kernels.encode("Q4_0", x[part], "F32")[0])


@pytest.mark.parametrize("dtype", TYPES)
def test_nan_and_infinite_weights_are_counted_and_stay_in_their_super_block(device: Any, dtype: str) -> None:
    x = rows("F32", 3, 512)
    clean = kernels.encode(dtype, x, "F32")[0].reshape(6, -1)
    x[0, 3], x[2, 400] = np.nan, -np.inf
    data, report = device.encode(dtype, tensor(x))
    assert (report.nan, report.inf) == (1, 1)
    assert np.array_equal(data.numpy().reshape(6, -1)[[1, 2, 3, 4]], clean[[1, 2, 3, 4]])
    if dtype not in SEARCHED:
        assert np.array_equal(data.numpy(), kernels.encode(dtype, x, "F32")[0])


def test_no_rows_become_no_bytes(device: Any) -> None:
    for dtype in TYPES:
        data, report = device.encode(dtype, torch.zeros(0, 256))
        assert (data.shape, report) == ((0, row_bytes(dtype, 256)), UnitReport())


def test_what_cannot_be_encoded_is_refused(device: Any) -> None:
    with pytest.raises(ValueError, match="no kernel for IQ4_XS on a GPU"):
        device.encode("IQ4_XS", torch.zeros(1, 256))
    with pytest.raises(TypeError, match=r"weights come as bfloat16, float16 or float32, not as torch\.float64"):
        device.encode("Q4_K", torch.zeros(1, 256, dtype=torch.float64))
    with pytest.raises(Unsupported, match="a row of 992 weights is no multiple of Q4_K's block of 256"):
        device.encode("Q4_K", torch.zeros(1, 992))
    with pytest.raises(ValueError, match="1073742080 weights at once, where kernels count to 1073741824: encode fewer rows"):
        device.encode("Q4_K", torch.zeros(1, 1).expand((1 << 22) + 1, 256))


def test_the_contract_sees_a_row_that_is_worse_than_the_cpus() -> None:
    x = rows("F32", 4, 512)
    for dtype in TYPES:
        cpu, _ = kernels.encode(dtype, x, "F32")
        same = contract.compare(dtype, x, cpu, cpu)
        assert same == (0.0, 1.0, 1.0)
        assert same.kept
        worse = cpu.copy()
        # Row 1 becomes what encodes other weights, a hundredth larger.
        worse[1] = kernels.encode(dtype, x[1:2] * np.float32(1.01), "F32")[0][0]
        found = contract.compare(dtype, x, worse, cpu)
        assert 0 < found.differing <= 1 / 4
        assert found.worst_row > contract.LIMIT
        assert not found.kept
    exact = np.zeros((1, 32), np.float32)
    zero = kernels.encode("Q8_0", exact, "F32")[0]
    other = kernels.encode("Q8_0", exact + 1, "F32")[0]
    assert contract.compare("Q8_0", exact, zero, zero).kept
    assert not contract.compare("Q8_0", exact, other, zero).kept


def test_weights_count_in_the_contract_as_in_the_search() -> None:
    x = np.zeros((1, 256), np.float32)
    x[0, :2] = 4, 2
    weights = {t: contract._weights(t, x)[0, :3].tolist() for t in ("Q4_K", "Q3_K", "Q2_K", "Q8_0")}
    root = (20 / 32) ** 0.5
    assert weights["Q4_K"] == pytest.approx([4 + root, 2 + root, root])
    assert (weights["Q3_K"], weights["Q2_K"], weights["Q8_0"]) == ([16, 4, 0], [4, 2, 0], [1, 1, 1])


def test_machine_code_contracts_nothing_and_keeps_all_in_registers(tmp_path: Path) -> None:
    """Compiled for a GPU that is not here: no fma, no approximate quotients, no shuffles between threads, no spilling."""
    pytest.importorskip("triton", reason="the test extra has it for x86-64 only")
    assert compiled_and_run(COMPILE, tmp_path) == [
        f"{name} contracted 0 imprecise 0 exchanged 0 spilled 0" for name in SEARCHED
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and a torch that is built for one")
def test_a_gpu_keeps_the_contract(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the test extra has it for x86-64 only")
    assert compiled_and_run(ON_A_GPU, tmp_path) == [f"{name} kept" for name in TYPES]


def test_a_gpu_is_chosen_only_where_all_kernels_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(cuda.MEASURED) <= set(TYPES)
    assert measured_on([]) == ()
    for dtype in TYPES:
        assert measured_on([dtype]) == tuple(sorted(cuda.MEASURED.get(dtype, ())))
    monkeypatch.setattr(cuda, "MEASURED", {"Q4_K": ("L4", "H100"), "Q6_K": ("H100",)})
    assert measured_on(["Q4_K"]) == ("H100", "L4")
    assert measured_on(["Q4_K", "Q6_K"]) == ("H100",)
    assert measured_on(["Q4_K", "Q5_K"]) == ()


def test_a_torch_without_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(Unsupported, match=r"torch .* sees no GPU; it is built without CUDA") as error:
        cuda_device()
    assert error.value.fix == "install a torch that fits the GPU's driver, or say device: cpu"
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(Unsupported, match=r"it is built for CUDA 12\.8"):
        cuda_device()


def test_importing_the_package_imports_neither_torch_nor_triton() -> None:
    code = "import sys, qconvd_ggml.cuda, qconvd_gguf.gpu; print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
