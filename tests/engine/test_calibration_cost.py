"""What is shown of a calibration, what is reserved for it, and what it then may use, agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qconvd.api import CalibrationSpec, ModelInfo, Plan, QconvdError, Read, StatRequest, Whole
from qconvd.calibration.pricing import Price
from qconvd.calibration.sources import digest
from qconvd.checkpoints import inspect
from qconvd.engine.calibration_cost import Costs, as_data, in_words, largest_of, share, with_calibration
from qconvd.engine.calibration_needs import IDLE_SHARE, shared
from qconvd.engine.credits import Credits
from qconvd.engine.working_memory import working_memory
from qconvd.ledger import Ledger
from qconvd.ledger.needs import BASE_MEMORY, need_of
from qconvd.targets import resolve_list
from tiny import llama, plan, raw_model, unit

MIB = 1 << 20
PRICE = Price(
    layers=4, waves=(1, 1, 2, 1), memory=800 * MIB, statistics=100 * MIB, least=500 * MIB, scratch=64 * MIB, tokens=2048
)
SPEC = CalibrationSpec("/home/somebody/text.txt", "", samples=8, length=256)


@pytest.fixture
def weighed(tmp_path: Path) -> Plan:
    tensor = raw_model(tmp_path / "m", {"one.bin": llama(1)}).tensors["model.layers.0.mlp.up_proj.weight"]
    one = unit("up", Read.of(tensor), rows=Whole(), memory={"cpu": 40 * MIB}, statistics=(StatRequest("up", "hessian"),))
    return replace(plan([one]), calibration=SPEC)


def test_what_is_reserved_is_enough_for_what_was_priced(weighed: Plan) -> None:
    memory = with_calibration(working_memory(weighed, 2), weighed, PRICE)
    for kind, priced in (("cpu", PRICE.memory + PRICE.statistics), ("least", PRICE.least)):
        credit = memory[kind] - memory[kind] // IDLE_SHARE
        assert share(credit, largest_of(weighed)) >= priced
        assert memory[kind] < (priced + 40 * MIB) * 1.2
    plain = replace(weighed, calibration=None)
    assert with_calibration(working_memory(plain, 2), plain, None) == working_memory(plain, 2)


def test_targets_that_share_are_reserved_for_together(weighed: Plan, tmp_path: Path) -> None:
    """The one has the larger statistics, the other the larger units; the hidden states are there once."""
    first = as_data(weighed, PRICE)
    second = {**first, "memory": 100 * MIB, "least": 90 * MIB, "encoding": 300 * MIB}
    both = shared([first, second])
    assert share(both["cpu"] - both["cpu"] // IDLE_SHARE, 300 * MIB) >= PRICE.memory + PRICE.statistics
    assert shared([]) == {}
    ledger = Ledger(tmp_path / "ledger.sqlite")
    source = ledger.source_seen("/m", "sha256:1", "m", "p")
    ledger.want(source.id, "r", resolve_list("q8_0,q4_0,q5_0"))
    targets = [
        replace(t, plan={"nbytes": 10, "memory": {"cpu": MIB, "least": MIB}, **more})
        for t, more in zip(
            ledger.targets(),
            ({"calibration": {**first, "folder": "x"}}, {"calibration": {**second, "folder": "x"}}, {}),
            strict=True,
        )
    ]
    need = need_of("convert", targets)
    assert need["disk"] == 30 + PRICE.scratch
    assert need["memory"] == BASE_MEMORY + both["cpu"]
    assert need["least"] == BASE_MEMORY + both["least"]
    assert need_of("convert", targets[2:])["memory"] == BASE_MEMORY + MIB
    ledger.close()


def test_it_is_told_in_a_sentence(weighed: Plan) -> None:
    assert in_words(as_data(weighed, PRICE)) == (
        "calibrated on 8 x 256 tokens of text.txt, which go through 4 layers in 5 waves, for its statistics do not fit into "
        "memory at once; that takes 900.0 MiB of memory, and 64.0 MiB of disk meanwhile"
    )
    own = replace(weighed, calibration=replace(SPEC, text="default"))
    once = in_words(as_data(own, replace(PRICE, waves=(1,) * 4)))
    assert once.startswith("calibrated on 8 x 256 tokens of the text that comes with qconvd, which go through 4 layers once; ")
    assert as_data(replace(weighed, calibration=None), None) == {}


def test_a_real_model_is_priced_from_its_headers(glass: Path) -> None:
    model: ModelInfo = inspect(glass)
    units = [
        unit(n, Read.of(t), rows=Whole(), statistics=(StatRequest(n, "hessian"),))
        for n, t in model.tensors.items()
        if n.endswith("_proj.weight")
    ]
    costs, asking = (
        Costs(model),
        replace(plan(units), calibration=replace(SPEC, text="default", sha256=digest("default"), length=64)),
    )
    price = costs.of(asking)
    assert price
    assert costs.of(asking) is price, "those that ask the same are reckoned once"
    assert price.layers == 4
    assert price.least <= price.memory
    enough = with_calibration(working_memory(asking, 2), asking, price)["least"]
    assert costs.of(asking, enough)
    reserved = with_calibration(working_memory(asking, 2), asking, price)["cpu"]
    assert costs.of(asking, reserved) == price, "as many waves as were planned"
    with pytest.raises(QconvdError, match="calibration needs at least"):
        costs.of(asking, 300 * MIB)
    assert costs.of(replace(asking, calibration=None)) is None


def test_what_statistics_hold_is_no_items() -> None:
    credit = Credits(100)
    credit.hold(60)
    assert credit.take(30, 0)
    assert not credit.take(30, 0)
    credit.hold(0)
    assert credit.take(30, 0)
    credit.give(60)
    credit.hold(500)
    assert credit.take(30, 0), "who is alone is let pass"
    assert not credit.take(1, 0)
