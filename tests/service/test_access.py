"""What a config's folders are used for, and the drop-in that follows from it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qconvd import config
from qconvd.errors import QconvdError
from qconvd.service.access import Access, access, program
from qconvd.service.drop_in import command, drop_in, quoted, started

CONFIG = """
watch:
  - {{folder: {at}/inbox, recipes: [r]}}
  - {{folder: {at}/moved, recipes: [r], after: move}}
  - {{hub: owner/name, recipes: [r]}}
output: {at}/models
state: {at}/state
hub: {{cache: {at}/cache, token_file: {at}/secrets/token}}
web: {{listen: "unix:{at}/sockets/s", token_file: {at}/page/token}}
notify:
  - webhook: {{url_file: {at}/news/url, token_file: {at}/news/token}}
recipes:
  r:
    targets: [gguf: {{types: [q4_k_m], imatrix: {files}/matrices/m.gguf}}]
    card: {files}/cards/card.md
    publish: [folder: {at}/published]
"""


@pytest.fixture
def load(tmp_path: Path) -> object:
    """Loads a config whose folders are below `at`; its files have to be there."""
    for name in ("matrices/m.gguf", "cards/card.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def load(at: str) -> config.Config:
        path = tmp_path / "etc" / "config.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONFIG.format(at=at, files=tmp_path))
        return config.load(path)

    return load


def test_what_is_written_and_what_is_read(load, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = access(load("/srv/q"))
    written = ("cache", "models", "moved", "published", "sockets", "state")
    assert found.written == tuple(Path("/srv/q", name) for name in written)
    here = [tmp_path / name for name in ("cards", "etc", "matrices")]
    there = [Path("/srv/q", name) for name in ("inbox", "news", "page", "secrets")]
    assert found.read == tuple(sorted([*there, *here]))


def test_systemd_makes_the_folder_of_a_socket_below_run(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "output: /srv/m\nstate: /srv/s\nrecipes: {r: {targets: [fp16]}}\nweb: {listen: 'unix:/run/qconvd/http.sock'}\n"
    )
    assert access(config.load(tmp_path / "c.yaml")).written == (Path("/srv/m"), Path("/srv/s"))


def test_homes_stay_shut_unless_a_folder_is_there() -> None:
    assert Access((Path("/srv/models"),), (Path("/homestead/x"),)).hidden == Access((), ())
    for place in ("/home/me/models", "/root/x", "/run/user/1000/x", "/tmp/x", "/var/tmp/x"):
        assert Access((Path(place),), ()).hidden.written == (Path(place),)


def test_the_drop_in(load, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("qconvd.service.access.TEMPORARY", ())
    monkeypatch.setattr("qconvd.service.drop_in.program", lambda: [Path("/opt/venv")])
    text = drop_in(load("/srv/q"), user=False)
    assert "ProtectHome" not in text and "Bind" not in text
    assert "ReadWritePaths=-/srv/q/cache -/srv/q/models -/srv/q/moved -/srv/q/published -/srv/q/sockets -/srv/q/state\n" in text
    assert re.search(r"^ReadOnlyPaths=.*-/srv/q/inbox( |$)", text, re.M)
    assert re.search(r"^RequiresMountsFor=.*/srv/q/inbox /srv/q/models ", text, re.M)
    text = drop_in(load("/home/me/q"), user=False)
    assert "ProtectHome=tmpfs\n" in text
    written = " ".join(f"-/home/me/q/{name}" for name in ("cache", "models", "moved", "published", "sockets", "state"))
    assert f"BindPaths={written}\n" in text
    assert "BindReadOnlyPaths=-/home/me/q/inbox -/home/me/q/news -/home/me/q/page -/home/me/q/secrets\n" in text


def test_a_link_is_let_through_with_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    path = tmp_path / "config.yaml"
    path.write_text("output: ./models\nstate: ./state\nrecipes: {r: {targets: [fp16]}}\n")
    assert set(access(config.load(path)).written) == {tmp_path / "disk", tmp_path / "models", tmp_path / "state"}


def test_a_users_service_needs_no_more_than_its_command(load) -> None:  # type: ignore[no-untyped-def]
    loaded = load("/home/me/q")
    settings = [line for line in drop_in(loaded, user=True).splitlines() if not line.startswith("#")]
    assert settings == ["[Service]", "ExecStart=", f"ExecStart={' '.join(command())} run --config {loaded.path}"]


def test_the_command_starts_this_qconvd(tmp_path: Path) -> None:
    said = subprocess.run([*command(), "version"], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said.startswith("qconvd ")
    (tmp_path / "bin").mkdir()
    assert Path(sys.prefix) in program()
    assert all(p.is_absolute() for p in program())


def test_without_a_script_the_interpreter_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert command() == [str(tmp_path / "python"), "-P", "-m", "qconvd"]


@pytest.mark.parametrize(
    ("word", "written"),
    [("/a/b", "/a/b"), ("/a b", '"/a b"'), ("/50%", "/50%%"), ('/a"b', '"/a\\"b"'), ("/a\\b", '"/a\\\\b"'), ("/a:b", '"/a:b"')],
)
def test_words_are_quoted_for_systemd(word: str, written: str) -> None:
    assert quoted(word) == written


def test_a_line_break_cannot_be_written() -> None:
    with pytest.raises(QconvdError) as caught:
        quoted("/a\nExecStart=/bin/sh")
    what = "holds a control character, which no unit of systemd can name"
    assert str(caught.value) == f"/a\N{REPLACEMENT CHARACTER}ExecStart=/bin/sh: {what}\n  rename it"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_reads_every_name_as_it_is(tmp_path: Path) -> None:
    """ExecStart's program is looked for by `verify`: a name that is read in another way is not found."""
    folder = tmp_path / 'it\'s 100% "q" $HOME; a\\b: #1'
    program = tmp_path / "100%n $HOME; a: #1" / "qconvd"  # systemd itself takes no quotes and no backslash here
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "qconvd.service"
    for good in (True, False):
        start = started([str(program), str(folder)]) if good else f'"{program}"'
        unit.write_text(
            f"[Service]\nExecStart={start}\nBindPaths={quoted(f'-{folder}')}\nReadWritePaths={quoted(f'-{folder}')}\n"
        )
        command = ["systemd-analyze", "verify", "--recursive-errors=yes", str(unit)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (checked.returncode == 0) is good, checked.stderr
