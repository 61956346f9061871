"""Every family of causal language models: hidden states and statistics are those of the plain model in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import calibration_kit as kit
import plain_model as reference
from qconvd.calibration.network import Network
from qconvd.calibration.samples import tokens
from qconvd.checkpoints import ModelInfo
from qconvd.engine.plan import StatRequest
from qconvd.errors import Unsupported

REFUSED = {"internlm2": "does not know the model type 'internlm2'"}


@pytest.mark.parametrize("name", kit.FAMILIES)
def test_a_family_is_calibrated_as_transformers_runs_it(tmp_path: Path, name: str) -> None:
    model = kit.family(tmp_path, name)
    # Longer than the sliding windows of these models.
    spec = kit.spec_of(model, samples=3, length=40)
    names = kit.linears(model)
    requests = [
        StatRequest(n, kind) for n in names for kind in ("hessian", "mean_square") if not stacked(model, n) or kind != "hessian"
    ]
    ours = kit.calibration(model, requests, tmp_path / "work", spec)
    ours._stream.batch = 2  # and a last one of another size
    states, found = [], {}
    for layer in range(ours.layers):
        for wave in ours.waves(layer):
            found |= wave
        states.append(ours._states.read(layer, 0, spec.samples).numpy())
        ours.finish(layer)
    ours.close()

    plain = reference.Plain(model.path)
    wanted, fed = plain.run(tokens(model, spec))
    for layer, (a, b) in enumerate(zip(states, wanted, strict=False)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max(), err_msg=f"layer {layer}")
    origins = modules(model)
    assert set(origins) >= set(names)
    for tensor in names:
        sums = [reference.expected(fed, module) for module in origins[tensor]]
        squares = np.concatenate([s.diagonal() / n if n else np.ones(len(s)) for s, n in sums])
        np.testing.assert_allclose(found[f"{tensor}:mean_square"], squares, rtol=1e-3, atol=1e-4 * squares.max())
        if not stacked(model, tensor):
            h, n = sums[0]
            if n < 16:
                assert found[f"{tensor}:hessian"].tokens == 0 and not found[f"{tensor}:hessian"].array.any()
                continue
            assert found[f"{tensor}:hessian"].tokens == n
            np.testing.assert_allclose(found[f"{tensor}:hessian"].array, h, rtol=1e-3, atol=1e-4 * h.max())


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_transformers_has_not_is_refused(tmp_path: Path, name: str) -> None:
    model = kit.family(tmp_path, name)
    with pytest.raises(Unsupported, match=REFUSED[name]):
        kit.calibration(model, [], tmp_path / "work")


def stacked(model: ModelInfo, tensor: str) -> bool:
    return len(model.tensors[tensor].shape) == 3


def modules(model: ModelInfo) -> dict[str, list[str]]:
    """By tensor, what the reference calls what it is fed."""
    network = Network(model)
    found: dict[str, list[str]] = {}
    for name, parameter in network.whole.named_parameters():
        try:
            origin = network.origin(name, tuple(parameter.shape))
        except Unsupported:
            continue  # a vision tower's
        module, _, leaf = name.rpartition(".")
        side = "inner" if leaf == "down_proj" else "in"
        if origin.experts:
            found |= {tensor: [f"{module}.{e}.{side}"] for e, one in enumerate(origin.experts) for tensor in one}
        elif parameter.ndim == 3:
            found[origin.tensors[0]] = [f"{module}.{e}.{side}" for e in range(len(parameter))]
        elif parameter.ndim == 2:
            found[origin.tensors[0]] = [module]
    return found
