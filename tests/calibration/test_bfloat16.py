"""Models that are run in bfloat16: the sums of products, and statistics that differ from float32's by rounding only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import calibration_kit as kit
from qconvd.calibration import bfloat16, kernels, products
from qconvd.calibration.bfloat16 import add_products, computed_in
from qconvd.calibration.gather import Sum
from qconvd.calibration.products import add_rounded_products
from qconvd.engine.plan import CalibrationSpec, Device, StatRequest

CPU = torch.device("cpu")


def activations(tokens: int, columns: int) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens + columns)).bfloat16()


def exact(x: torch.Tensor) -> np.ndarray:
    return (x.double().T @ x.double()).numpy()


def check(tokens: int, columns: int) -> None:
    """Against float64, on top of what is there."""
    x = activations(tokens, columns)
    sums = torch.full((columns, columns), 3.0)
    add_products(x, sums)
    above = np.triu_indices(columns)
    wanted = exact(x)[above] + 3
    # Two roundings for each pair of tokens, in blocks of 256.
    np.testing.assert_allclose(sums.numpy()[above], wanted, rtol=0, atol=2e-6 * (tokens + 3) + 1e-6)


@pytest.fixture(params=["tiles", "dots"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """AMX, and what a processor without it does."""
    if request.param == "dots":
        monkeypatch.setattr(kernels, "tiled", lambda: False)
    elif not kernels.tiled():
        pytest.skip("needs a processor with AMX")


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("columns", [1, 47, 63, 64, 65, 341])
@pytest.mark.parametrize("tokens", [1, 2, 31, 33, 255, 256, 257, 1300])
def test_products_are_those_of_float64(tokens: int, columns: int) -> None:
    check(tokens, columns)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("columns", [(1, 1), (16, 33), (64, 64), (100, 130), (512, 70)])
@pytest.mark.parametrize("rows", [1, 31, 32, 511, 512, 1025])
def test_rectangles_are_products_of_what_was_rounded(rows: int, columns: tuple[int, int]) -> None:
    random = np.random.default_rng(rows)
    x, y = (random.standard_normal((rows + 2, n + 5)).astype("f4")[1:-1, 3:-2] for n in columns)
    exact = rounded(x).T @ rounded(y) + 3
    whole = np.full((columns[0], columns[1] + 7), 3, np.float32)
    add_rounded_products(x, y, whole[:, 4:-3])
    np.testing.assert_allclose(whole[:, 4:-3], exact, rtol=0, atol=2e-6 * (rows + 3) + 1e-6)
    assert (whole[:, :4] == 3).all() and (whole[:, -3:] == 3).all()
    across = np.full(columns, 3, np.float32)
    add_rounded_products(np.asfortranarray(x), np.asfortranarray(y), across)
    np.testing.assert_array_equal(across, whole[:, 4:-3])


@pytest.mark.usefixtures("instructions")
def test_what_is_no_number_stays_none() -> None:
    x, y = np.ones((3, 70), np.float32), np.ones((3, 66), np.float32)
    # Rounding alone would make the first of these -0.
    x[0, 3], x[1, 7] = np.array([0x7FFFFFFF, 0x7F800000], np.uint32).view(np.float32)
    sums = np.zeros((70, 66), np.float32)
    add_rounded_products(x, y, sums)
    assert np.isnan(sums[3]).all() and np.isposinf(sums[7]).all()
    assert (np.delete(sums, [3, 7], 0) == 3).all()


def test_what_does_not_fit_is_refused_before_anything_is_written() -> None:
    x, y, sums = np.ones((4, 3), np.float32), np.ones((4, 40), np.float32), np.zeros((3, 40), np.float32)
    for left, right, out, what in (
        (x, y[:3], sums, r"products of \(4, 3\) and \(3, 40\) do not go into \(3, 40\)"),
        (x, y, sums[:, :20], r"products of \(4, 3\) and \(4, 40\) do not go into \(3, 20\)"),
        (x, y[:, :20], sums[:, ::2], "rows of sums do not lie together"),
    ):
        with pytest.raises(ValueError, match=what):
            add_rounded_products(left, right, out)
    assert not sums.any()
    add_rounded_products(x[:, :0], y, sums[:0])
    add_rounded_products(x, y[:, :0], sums[:, :0])


def rounded(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().double().numpy()


def test_threads_and_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, before = activations(2100, 341), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3, 7):
            torch.set_num_threads(threads)
            for scratch in (1, 1 << 20, 64 << 20):
                monkeypatch.setattr(products, "SCRATCH", scratch)
                found.append(torch.zeros(341, 341))
                add_products(x, found[-1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize(
    ("tiles", "feature", "vendor", "wanted"),
    [
        (True, "", "GenuineIntel", True),
        (False, "avx512bf16", "GenuineIntel", False),
        (False, "avx512bf16", "AuthenticAMD", True),
        (False, "", "AuthenticAMD", False),
    ],
)
def test_feedback_is_rounded_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, feature: str, vendor: str, wanted: bool
) -> None:
    monkeypatch.setattr(kernels, "tiled", lambda: tiles)
    monkeypatch.setattr("qconvd.calibration.kernels.products.compiled_with", lambda f: f == feature)
    monkeypatch.setattr("qconvd.kernel_cache._cpu", lambda: f"vendor_id : {vendor}")
    assert products.bfloat16_pays.__wrapped__() is wanted


def test_processors_without_the_instruction_do_without() -> None:
    code = (
        "import test_bfloat16 as t; t.check(700, 100); t.check(33, 48); t.test_what_is_no_number_stays_none(); "
        "t.kernels.CACHE.warm(t.kernels.ready)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "NUMBA_CPU_NAME": "generic", "PYTHONPATH": ":".join(p for p in sys.path if p)},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_sum_is_symmetric_and_knows_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvd.calibration.gather.multiplies_bfloat16", lambda: True)
    gathered = Sum(100, {"hessian", "mean_square"}, CPU)
    batches = [activations(n, 100) for n in (40, 21)]
    for batch in batches:
        gathered.add(batch.reshape(1, -1, 100))
    assert gathered.tokens == 61 and gathered.finite
    whole = torch.cat(batches)
    np.testing.assert_allclose(gathered.mean_squares(), exact(whole).diagonal() / 61, rtol=1e-6)
    products = gathered.products()
    np.testing.assert_array_equal(products, products.T)
    np.testing.assert_allclose(products, exact(whole), atol=1e-3)
    broken = Sum(100, {"hessian"}, CPU)
    broken.add(torch.where(torch.arange(100) == 7, torch.tensor(float("nan")), whole))
    assert not broken.finite


@pytest.mark.parametrize(
    ("dtype", "kind", "multiplies", "wanted"),
    [
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cpu", False, torch.float32),
        ("auto", "cuda", False, torch.bfloat16),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_the_type_is_what_the_device_is_fast_with_unless_said(
    monkeypatch: pytest.MonkeyPatch, dtype: str, kind: str, multiplies: bool, wanted: torch.dtype
) -> None:
    monkeypatch.setattr(bfloat16, "multiplies_bfloat16", lambda: multiplies)
    assert computed_in(CalibrationSpec("default", "", dtype=dtype), Device(kind)) is wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("name", kit.FAMILIES)
def test_a_family_in_bfloat16_differs_by_rounding_only(tmp_path: Path, name: str) -> None:
    model = kit.family(tmp_path, name)
    names = kit.linears(model)
    requests = [StatRequest(n, "mean_square") for n in names]
    requests += [StatRequest(n, "hessian") for n in names if "experts" not in n and "block_sparse_moe" not in n]
    found = []
    for dtype in ("float32", "bfloat16"):
        made = kit.calibration(model, requests, tmp_path / dtype, kit.spec_of(model, dtype=dtype))
        found.append(kit.gathered(made))
        assert made.about["dtype"] == f"torch.{dtype}"
        made.close()
    for key, wanted in found[0].items():
        # Rounding sends single tokens to other experts, whose figures then differ altogether.
        if "experts" not in key and "block_sparse_moe" not in key:
            a, b = (getattr(each, "array", each) for each in (found[1][key], wanted))
            assert np.linalg.norm(a - b) < 0.15 * np.linalg.norm(b), key


def test_buffers_that_decide_between_nearly_equal_scores_stay_in_float32(tmp_path: Path) -> None:
    model = kit.family(tmp_path, "deepseek3")
    request = StatRequest(kit.linears(model)[0], "mean_square")
    made = kit.calibration(model, [request], tmp_path / "work", kit.spec_of(model, dtype="bfloat16"))
    layer = next(i for i, layer in enumerate(made._network.layers) if dict(layer.named_buffers()))
    made._stream.load(layer)
    module = made._network.layers[layer]
    (bias,) = [b for n, b in module.named_buffers() if n.endswith("e_score_correction_bias")]
    assert bias.dtype == torch.float32
    np.testing.assert_array_equal(bias.numpy(), kit.read(model, f"model.layers.{layer}.mlp.gate.e_score_correction_bias"))
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    made.close()
