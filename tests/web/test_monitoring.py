"""The monitoring examples in docs/: every metric and label in them is in a scrape of a real daemon that has worked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon_kit import Home, end, move_in, tiny_model
from web_kit import client_of

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
Scrape = Mapping[str, Mapping[str, set[str]]]
"""Metric → label → values."""
FUNCTIONS = {"sum", "min", "max", "rate", "increase", "delta", "label_values"}
WORDS = {"by", "on", "unless", "and", "or", "without"}
TARGET_LABELS = {"job", "instance"}
"""What Prometheus itself adds to each series."""
OWN = {"up"}
SELECTOR = re.compile(r"([a-z_:][a-z0-9_:]*)(?:\{([^}]*)\})?(\[\d+[smhd]\])?")
MATCHER = re.compile(r'\s*([a-z_]+)\s*(=~|!~|!=|=)\s*"([^"]*)"\s*')


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """What a daemon shows that has made one artifact, failed at another, and has something in its queue."""
    home = Home(tmp_path_factory.mktemp("scraped"), configure=False)
    home.web = "{listen: '127.0.0.1:0'}"
    home.configure("[fp16]")
    try:
        home.start()
        move_in(home, tiny_model(home.root / "away" / "m"))
        home.done(1)
        home.ask("pause", reason="")
        move_in(home, tiny_model(home.root / "away" / "waits", seed=2))
        home.wait(lambda: home.targets("waiting"), "a target that waits")
        with home.ledger() as ledger:
            home.wait(lambda: ledger.tasks("queued"), "a task that waits")
        text = client_of(home).get("/metrics").text
        end(home)
    finally:
        home.kill()
    found: dict[str, dict[str, set[str]]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"([a-z_]+)(?:\{(.*)\})? ", line).groups()  # type: ignore[union-attr]
            series = found.setdefault(name, {})
            for label, value in re.findall(r'([a-z]+)="([^"]*)"', labels or ""):
                series.setdefault(label, set()).add(value)
    return found


def rules() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for group in yaml.safe_load((FOLDER / "qconvd.rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule


def panels() -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of each query of the dashboard."""
    board = json.loads((FOLDER / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"], ""


def wrong(expression: str, scrape: Scrape) -> list[str]:
    """What an expression names that is not there, and what is not well-formed in it."""
    problems = []
    without_text = re.sub(r'"[^"]*"', '""', expression)
    for opening, closing in ("()", "{}", "[]"):
        if without_text.count(opening) != without_text.count(closing):
            problems.append(f"unbalanced {opening}{closing}")
    grouped = {word for labels in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expression) for word in labels.split(", ")}
    rest = re.sub(r"\b(?:by|on|without) \([^)]*\)", "", expression)
    named = []
    for found in SELECTOR.finditer(rest):
        name, matchers, _ = found.groups()
        before, after = rest[: found.start()], rest[found.end() :].lstrip()
        if name in WORDS or (name in FUNCTIONS and after.startswith("(")) or before.endswith(('"', ".")) or name == "e":
            continue
        if re.search(r"\d$", before) or (before.endswith(", ") and "label_values(" in before):
            continue  # 500e6; the label of label_values
        named.append(name)
        if name not in scrape and name not in OWN:
            problems.append(f"no metric {name}")
            continue
        labels = scrape.get(name, {})
        for part in re.split(r",(?=\s*[a-z_]+\s*[=!])", matchers or ""):
            matcher = MATCHER.fullmatch(part) if part.strip() else None
            if part.strip() and matcher is None:
                problems.append(f"no matcher: {part}")
            elif matcher is not None and matcher[1] not in {*labels, *TARGET_LABELS}:
                problems.append(f"{name} has no label {matcher[1]}")
            elif (
                matcher is not None and matcher[1] not in TARGET_LABELS and not set(matcher[3].split("|")) <= labels[matcher[1]]
            ):
                problems.append(f"{name} has no {matcher[1]} {matcher[3]}")
    for label in grouped:
        if not any(label in {*scrape.get(name, {}), *TARGET_LABELS} for name in named):
            problems.append(f"nothing has the label {label}")
    return problems if named else [*problems, "no metric at all"]


def test_every_rule_asks_for_what_there_is(scrape: Scrape) -> None:
    found = dict(rules())
    assert len(found) == len(list(rules())) >= 10
    for name, rule in found.items():
        assert wrong(rule["expr"], scrape) == [], name
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, name
        assert re.fullmatch(r"Qconvd[A-Za-z]+", name) and rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "for" not in rule or re.fullmatch(r"\d+[smhd]", rule["for"]), name
        assert set(rule["annotations"]) == {"summary", "description"}
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert label in TARGET_LABELS or any(label in s for n, s in scrape.items() if n in rule["expr"]), (name, label)


def test_every_panel_asks_for_what_there_is(scrape: Scrape) -> None:
    shown = list(panels())
    for title, expression, legend in shown:
        assert wrong(expression, scrape) == [], title
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            assert label in TARGET_LABELS or label in expression or any(
                label in series for name, series in scrape.items() if name in expression
            ), (title, label)  # fmt: skip
    asked = {name for name in scrape for _, expression, _ in shown if re.search(rf"\b{name}\b", expression)}
    assert set(scrape) - asked <= {"qconvd_targets", "qconvd_device_memory_bytes"}, "the dashboard shows what there is"
    board = json.loads((FOLDER / "grafana.json").read_text())
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    taken = [(x, y) for p in board["panels"] for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(set(taken)) == len(taken) and max(x for x, _ in taken) == 23, "no panel covers another"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ('qconvd_job{job="qconvd"} > 0', "no metric qconvd_job"),
        ('qconvd_jobs{stat="failed"} > 0', "qconvd_jobs has no label stat"),
        ('qconvd_jobs{state="faild"} > 0', "qconvd_jobs has no state faild"),
        ('qconvd_jobs{state="failed" > 0', "unbalanced {}"),
        ("sum by (fromat) (qconvd_jobs)", "nothing has the label fromat"),
        ("qconvd_jobs{state=failed}", "no matcher: state=failed"),
        ("summ(qconvd_jobs)", "no metric summ"),
        ("1 > 0", "no metric at all"),
    ],
)
def test_a_mistake_would_be_found(scrape: Scrape, expression: str, problem: str) -> None:
    assert problem in wrong(expression, scrape)


def test_the_page_names_every_alert_and_prometheus_its_file(scrape: Scrape) -> None:
    page = (FOLDER.parent / "how-to" / "monitor.md").read_text()
    assert re.findall(r"^\| (Qconvd\w+) \|", page, re.MULTILINE) == [name for name, _ in rules()]
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["qconvd.rules.yml"]
    assert config["scrape_configs"][0]["job_name"] == "qconvd"
