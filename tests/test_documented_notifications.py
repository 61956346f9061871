"""The examples in docs/how-to/notifications.md: each loads, and what can run here does."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import pytest

from qconvd import config as configuration
from qconvd.notifications.attempt import BreakOff
from qconvd.notifications.news import of_test
from qconvd.notifications.sender import send
from qconvd.plugins import Plugins
from receiver import receiver

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "notifications.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_example_loads(tmp_path: Path, text: str) -> None:
    (tmp_path / "chat.j2").write_text(blocks("jinja")[0])
    (tmp_path / "config.yaml").write_text(f"output: ./models\nrecipes: {{everyday: {{targets: [fp16]}}}}\n{text}")
    assert configuration.load(tmp_path / "config.yaml").notify


def test_the_json_has_the_keys_that_are_sent() -> None:
    (shown,) = blocks("json")
    assert json.loads(shown).keys() == of_test(0.0).keys()
    for key in of_test(0.0):
        assert f"QCONVD_{key.upper()}`" in PAGE


def test_the_script_and_the_template_do_what_they_say(tmp_path: Path) -> None:
    news: dict[str, Any] = of_test(0.0) | {"event": "failed", "job": 12}
    (script,) = blocks("sh")
    (tmp_path / "tell").write_text(script.replace("/var/lib/qconvd", str(tmp_path)))
    (tmp_path / "tell").chmod(0o755)
    (tmp_path / "chat.j2").write_text(blocks("jinja")[0])
    with receiver() as here:
        for data in ({"command": [str(tmp_path / "tell")]}, {"webhook": {"url": here.url, "template": "chat.j2"}}):
            send(configuration.Notify.model_validate(data, context={"folder": tmp_path}), news, BreakOff())
        assert here.json() == {"message": news["title"], "urgent": True}
    assert (tmp_path / "told").read_text() == f"{news['title']}\n"
    assert json.loads((tmp_path / "job-12.json").read_text()) == news


def test_the_plugin_hears_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    plugin = types.ModuleType("documented")
    exec(code, plugin.__dict__)
    artifacts = [{"label": "Q4_0"}]
    Plugins([("documented", plugin)]).notify({"kind": "job", "id": 12, "model": "m", "to": "done", "artifacts": artifacts})
    assert capsys.readouterr().out == "12 m done ['Q4_0']\n"
