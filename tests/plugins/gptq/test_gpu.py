"""The solver in torch, with the CPU as torch's device: as good as the CPU's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_linears import hessian, output_error, weights
from header_models import headers, llama
from qconvd.api import Device, Hessian, QconvdError, Unsupported
from qconvd_gptq import gpu
from qconvd_gptq.format import Gptq
from qconvd_gptq.options import GptqOptions
from qconvd_gptq.solve import ActOrder, Grid, Weights, nearest, solve

W, H = weights(64, 192), hessian(192)


@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("order", ["none", "static", "desc_act"])
@pytest.mark.parametrize(("bits", "symmetric", "norm"), [(2, False, 0.0), (4, True, 0.0), (4, False, 2.4)])
def test_the_error_is_that_of_the_cpu(bits: int, symmetric: bool, norm: float, order: ActOrder, group: int) -> None:
    grid = Grid(bits, group, symmetric, norm=norm)
    here = solve(Weights(W), H, grid, order=order)
    there = gpu.solve(torch.from_numpy(W.copy()), H, grid, order=order)
    mine, other = (output_error(W, s.dequantized(), H) for s in (here, there))
    # Which of two ranges is the better one may differ where they are nearly as good.
    assert other == pytest.approx(mine, rel=0.05 if norm else 0.01)
    assert np.array_equal(there.g_idx, here.g_idx)
    assert there.output_error == pytest.approx(here.output_error, rel=0.05 if norm else 0.01)
    assert there.report.square_error == pytest.approx(here.report.square_error, rel=0.05)


@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_to_nearest_is_the_same_but_for_ties(symmetric: bool) -> None:
    grid = Grid(4, 32, symmetric)
    here, there = nearest(Weights(W), grid), gpu.nearest(torch.from_numpy(W.copy()), grid)
    assert (here.codes == there.codes).mean() > 0.999
    assert (here.scales == there.scales).mean() > 0.999


def test_singular_and_senseless_hessians() -> None:
    x = np.random.default_rng(0).standard_normal((5, 192)).astype(np.float32)
    solved = gpu.solve(torch.from_numpy(W.copy()), Hessian(x.T @ x, 5), Grid(4, 32), damp=0.0)
    assert solved.damp > 0
    array = H.array.copy()
    array[3, 3] = np.nan
    with pytest.raises(QconvdError, match=r"^w: the activations that calibration saw are not finite"):
        gpu.solve(torch.from_numpy(W.copy()), Hessian(array, 1), Grid(4, 32), where="w")


def test_the_encoder_writes_the_same_tensors() -> None:
    model = headers(llama(1), "F32")
    plan = Gptq().plan(model, GptqOptions.model_validate({"method": "rtn"}))
    unit = next(u for u in plan.units if u.id.endswith("down_proj.weight"))
    w = weights(256, 512)
    here = Gptq().encoder(plan, Device()).encode(unit, (0, 256), [w], {})
    there = gpu.GpuEncoder(torch.device("cpu")).encode(unit, (0, 256), [w], {})
    assert [(d.shape, d.dtype) for d in there.data] == [(d.shape, d.dtype) for d in here.data]
    assert (there.data[0] == here.data[0]).mean() > 0.99
    norm = next(u for u in plan.units if u.id == "model.norm.weight")
    ones = np.ones((1, 256), np.float16)
    assert gpu.GpuEncoder(torch.device("cpu")).encode(norm, (0, 1), [ones], {}).data[0].tobytes() == ones.tobytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused() -> None:
    plan = Gptq().plan(headers(llama(1)), GptqOptions())
    with pytest.raises(Unsupported, match="sees no GPU"):
        Gptq().encoder(plan, Device("cuda", "GPU-1"))
