"""Notifications of a real daemon: they arrive, over its death as well, and nobody waits for them."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from daemon_kit import Home, end, move_in, tiny_model
from receiver import receiver
from web_kit import client_of

SECRETS = ("secret-hook-xyz", "secret-key-abc", "very-secret-token")


def test_a_job_and_a_refusal_arrive_everywhere_and_no_secret_is_shown(home: Home) -> None:
    (home.root / "tell").write_text('#!/bin/sh\ncat > "$0.$QCONVD_EVENT"\n')
    (home.root / "mail").write_text('#!/bin/sh\ncat > "$0.txt"\n')
    for name in ("tell", "mail"):
        (home.root / name).chmod((home.root / name).stat().st_mode | stat.S_IXUSR)
    with receiver() as here:
        (home.root / "token").write_text("very-secret-token")
        (home.root / "slack").write_text(here.url)
        home.web = "{listen: '127.0.0.1:0'}"
        home.configure("[fp16, bf16]", more=f"""\
notify:
- webhook: {{url: "{here.url}", as: ntfy, token_file: token}}
- webhook: {{url_file: slack, as: slack}}
  on: [refused]
- mail: {{to: me@example.org, sendmail: ./mail}}
- command: [./tell]
  on: [done, refused]
- webhook: "{here.url.replace(str(here.port), "1")}"
  called: away
""")  # fmt: skip
        home.start()
        web = client_of(home)
        (home.inbox / "odd").mkdir()
        (home.inbox / "odd" / "pytorch_model.bin").write_text("<!DOCTYPE html><html>not found</html>")
        move_in(home, tiny_model(home.root / "away" / "my_модель"))
        home.done(2)
        here.wait(lambda: len(here.got) >= 2)
        home.said("away cannot be told yet: 127.0.0.1 cannot be reached: Connection refused; it is tried again in 30 s")
        expected = [
            ("away", "waiting"), ("command tell", "sent"), ("command tell", "sent"), ("mail me@example.org", "sent"),
            ("webhook 127.0.0.1", "sent"), ("webhook slack", "sent"),
        ]  # fmt: skip
        with home.ledger() as ledger:  # when its end is noted, a program has written its file

            def states() -> list[tuple[str, str]]:
                return sorted((n.notifier, n.state) for n in ledger.notifications())

            home.wait(lambda: states() == expected, f"{expected}")
        told = json.loads((home.root / "tell.done").read_text())
        assert (told["model"], told["event"], [a["label"] for a in told["artifacts"]]) == (
            "my_модель",
            "done",
            ["fp16", "bf16"],
        )
        assert all(Path(a["place"]).is_dir() and a["bytes"] > 0 for a in told["artifacts"])
        ntfy = next(body for _, headers, body in here.got if "title" in headers)
        assert ntfy.decode().splitlines()[0].startswith("fp16, ")
        slack = next(json.loads(body) for _, headers, body in here.got if "title" not in headers)
        assert slack["text"].startswith("*odd is not converted*\n")
        metrics = web.get("/metrics").text
        shown = [home.log(), metrics, *(web.get(p).text for p in ("/", "/api/v1/status", "/api/v1/jobs", "/jobs/1"))]
        shown.append(Path(home.state / "ledger.sqlite").read_bytes().decode("latin-1"))
        for secret in SECRETS:
            assert not [text for text in shown if secret in text]
        end(home)


def test_a_daemon_that_is_killed_before_it_told_tells_after_its_restart(home: Home) -> None:
    with receiver() as here:
        here.hangs = True
        home.configure(more=f'notify:\n- webhook: {{url: "{here.url}", timeout: 60s}}\n')
        move_in(home, tiny_model(home.root / "away" / "m"))
        home.start()
        assert here.came.wait(90), home.log()
        home.kill()
        here.hangs = False
        home.start()
        here.wait(lambda: len(here.got) == 2)
        home.said("webhook 127.0.0.1 was told: m: 1 artifact in")
        assert [here.json(n)["job"] for n in (0, 1)] == [1, 1]
        end(home)
        home.start()
        home.said("qconvd runs", 3)
        end(home)
        assert len(here.got) == 2, "what was told is not told again"


def test_the_end_of_the_daemon_does_not_wait_for_who_hangs(home: Home) -> None:
    with receiver() as here:
        here.hangs = True
        home.configure(more=f'notify:\n- webhook: {{url: "{here.url}", timeout: 300s}}\n')
        home.config.write_text(home.config.read_text().replace("stop_grace: 10s", "stop_grace: 1s"))
        move_in(home, tiny_model(home.root / "away" / "m"))
        home.start()
        assert here.came.wait(90), home.log()
        end(home)  # which has less patience than the webhook


def test_once_waits_until_it_is_told(home: Home) -> None:
    with receiver() as here:
        home.configure(more=f'notify:\n- webhook: "{here.url}"\n')
        move_in(home, tiny_model(home.root / "away" / "m"))
        assert home.once() == 0
        assert here.json()["title"].startswith("m: 1 artifact in ")
