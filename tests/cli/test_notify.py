"""`qconvd notify test`, and what `status`, `doctor` and `check` say of who is to be told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import Qconvd
from qconvd.ledger import Ledger
from receiver import receiver

CONFIG = "output: ./models\nrecipes: {r: {targets: [fp16]}}\n"


def test_a_test_says_what_happened(qconvd: Qconvd, tmp_path: Path) -> None:
    with receiver() as here:
        here.answers += [(200, {}, b""), (404, {}, b"no_service for secret-hook-xyz")] * 2
        (tmp_path / "config.yaml").write_text(
            f'{CONFIG}notify:\n- webhook: "{here.url}"\n  on: [paused]\n- webhook: "{here.url}"\n  called: slack\n'
            "- command: ['true']\n- mail: {to: me@example.org, sendmail: ./none}\n"
        )
        said = qconvd("notify", "test")
        assert here.json(0)["event"] == "test"
        data = qconvd("notify", "test", "--json")
        only = qconvd("notify", "test", "command true")
    assert said.code == 1 and "secret" not in said.out
    assert " ".join(said.out.split()) == (
        "NOTIFIER ok webhook 127.0.0.1 answered 200"
        " BAD slack 127.0.0.1 answers 404 Not Found"
        " look whether the address and `as:` are right, and whether it still exists"
        " ok command true exit code 0"
        f" BAD mail me@example.org {tmp_path}/none cannot be run: No such file or directory"
        " install a program that sends mail (msmtp-mta, postfix), or name it in `sendmail:`"
    )
    assert [(e["notifier"], e["told"]) for e in data.json] == [
        ("webhook 127.0.0.1", True), ("slack", False), ("command true", True), ("mail me@example.org", False)
    ]  # fmt: skip
    assert data.json[1]["problem"]["error"] == "NotSent"
    assert (only.code, only.out.splitlines()[1:]) == (0, ["ok  command true  exit code 0"])


def test_nobody_to_test(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    said = qconvd("notify", "test")
    assert (said.code, said.err) == (
        3, f"qconvd: {tmp_path}/config.yaml: there is nobody to tell\n  add entries to `notify:` in it\n"
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(f"{CONFIG}notify: [{{command: ['true']}}]\n")
    said = qconvd("notify", "test", "x")
    assert said.err == f"qconvd: {tmp_path}/config.yaml: there is no entry called 'x'\n  the entries are: command true\n"


def test_status_says_who_cannot_be_told(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{CONFIG}notify: [{{command: ['true']}}]\n")
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    for _ in range(3):
        id = ledger.notify("command true", {"event": "done"})
    assert "Cannot be told" not in qconvd("status").out
    ledger.notification_failed(1, "true failed (exit code 3)", None)
    assert "Cannot be told: command true: true failed (exit code 3); 2 wait.\n" in qconvd("status").out
    (shown,) = qconvd("status", "--json").json["notifications"]
    assert (shown["notifier"], shown["reason"], shown["waiting"]) == ("command true", "true failed (exit code 3)", 2)
    ledger.notification_sent(id)
    ledger.notification_sent(2)
    assert qconvd("status", "--json").json["notifications"] == []
    ledger.close()


def test_doctor_looks_whether_they_can_be_told(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"{CONFIG}notify:\n- webhook: {{url_file: ./slack}}\n- command: [./tell]\n- mail: {{to: a@b.c, sendmail: ./none}}\n"
        "- webhook: https://example.org/secret-hook\n- webhook: {credential: hook}\n"
    )
    found = {f["what"]: f for f in qconvd("doctor", "--json").json}
    assert found["webhook slack"]["state"] == "bad"
    assert found["webhook slack"]["found"] == f"{tmp_path}/slack: cannot be read: No such file or directory"
    assert found["command tell"]["found"] == f"{tmp_path}/tell cannot be run: No such file or directory"
    assert found["mail a@b.c"]["fix"].startswith("install a program that sends mail (")
    assert (found["webhook example.org"]["state"], found["webhook hook"]["state"]) == ("good", "good")


EITHER = "an entry is either `webhook: …` or `mail: …` or `command: […]`"
NO_URL = "webhook.url: this is no address of a webhook; it begins with https://"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("webhook: htps://x/secret", f".{NO_URL} and has no spaces (it is not shown here)"),
        ("webhook: {url: [secret]}", f".{NO_URL}"),
        (
            "webhook: https://me:secret@x/y",
            ".webhook.url: a user and a password in the address do not work; put a token into a file and name it in"
            " `token_file`",
        ),
        (
            "webhook: {url: https://x/secret, url_file: f}",
            ".webhook: a webhook has either `url` or `url_file` or `credential`",
        ),
        (
            "webhook: {url: https://x/secret, as: slak}",
            ".webhook.as: 'slak' is none of json, ntfy, slack, discord (did you mean slack?)",
        ),
        ("webhook: {url: https://x/secret, template: ./none}", ".webhook.template: there is no such file"),
        (
            "webhook: {credential: ../secret}",
            ".webhook.credential: this is no name of a credential; write for example notify-url",
        ),
        ("mail: -oQ/tmp@x", ".mail.to: '-oQ/tmp@x' is no address; write for example me@example.org"),
        ('mail: "a@x\\nBcc: b@x"', ".mail.to: 'a@x\\nBcc: b@x' is no address; write for example me@example.org"),
        ("https://x/secret", f": {EITHER}"),
        (
            "mail: https://x/secret",
            ".mail.to: this is no address to write to; write for example me@example.org (it is not shown here)",
        ),
        (
            "webhook: {url_file: https://x/secret}",
            ".webhook.url_file: this is an address itself; put it into a file and name the file here",
        ),
        ("command: ./tell --loud", ".command.run: write the program and its arguments as a list: [./tell.sh, --loud]"),
        ("command: []", ".command.run: this is empty; name at least one"),
        ("{}", f": {EITHER}"),
        ("{mail: a@x, command: ['true']}", f": {EITHER}"),
        (
            "{mail: a@x, on: dne}",
            ".on[0]: 'dne' is none of done, failed, cancelled, confirm, refused, paused, resumed (did you mean done?)",
        ),
        ("{mail: a@x, recipes: [rr]}", ".recipes[0]: there is no recipe 'rr' (did you mean r?)"),
    ],
)
def test_mistakes_name_the_key_and_no_secret(qconvd: Qconvd, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(f"{CONFIG}notify:\n- {text}\n")
    said = qconvd("check")
    assert said.code == 78 and "secret" not in said.err + said.out
    assert re.sub(r"^qconvd: config.yaml:\d+:\d+: ", "", said.err) == f"notify[0]{words}\n"


def test_check_says_who_is_told_of_what(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"{CONFIG}notify:\n- webhook: https://example.org/secret-hook\n- mail: a@x\n  on: paused\n  recipes: r\n"
    )
    said = qconvd("check").out
    assert "webhook example.org is told of: failed, done.\nmail a@x is told of: paused, for r.\n" in said
    assert "secret" not in said


def test_check_says_who_could_not_be_told(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "tell").write_text("#!/bin/sh\n")
    (tmp_path / "bad").write_text("{{ title")
    (tmp_path / "config.yaml").write_text(f"""{CONFIG}notify:
- webhook: {{url_file: ./nowhere}}
- webhook: {{url: "https://example.org/secret-hook", template: ./bad}}
- command: [./gone, -v]
- command: [./tell]
- command: ["true"]
- mail: {{to: a@x, sendmail: ./sendmail}}
""")
    said = qconvd("check")
    assert said.code == 0 and "secret" not in said.out
    words = " ".join(said.out.split())
    run = "name a program that is there and may be run by the user that runs qconvd; paths are relative to the config file"
    for told in (
        f"WRONG: {tmp_path}/nowhere: cannot be read: No such file or directory put the whole address into it, in one line",
        f"WRONG: {tmp_path}/bad:1: the template cannot be used: unexpected end of template",
        f"WRONG: {tmp_path}/gone cannot be run: No such file or directory {run}",
        f"WRONG: {tmp_path}/tell cannot be run: Permission denied {run}",
        f"WRONG: {tmp_path}/sendmail cannot be run: No such file or directory install a program that sends mail",
    ):
        assert told in words, said.out
    assert words.count("WRONG") == 5


def test_a_lone_address_is_not_shown(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{CONFIG}notify: https://x/secret\n")
    assert qconvd("check").err == (
        "qconvd: config.yaml:3:9: notify: this must be a list of entries, each `webhook: …`, `mail: …` or `command: […]`\n"
    )


def test_two_of_one_name_are_told_apart(qconvd: Qconvd, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{CONFIG}notify:\n- mail: a@x\n- mail: {{to: a@x}}\n  on: [paused]\n")
    assert "notify[1]: mail a@x is an entry already (line 4); tell them apart by `called: …`" in qconvd("check").err
