"""`qconvd service`, into a folder that stands for the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from command_line import Qconvd
from qconvd.config import load
from qconvd.service.files import MARK, SYSTEM_FILES, packaged
from qconvd.service.steps import BOOTED, to_start

ROOT = Path(__file__).parents[2]
SYSTEM = "etc/systemd/system"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(
        "watch: [{folder: ./inbox, recipes: [r]}]\noutput: ./models\nstate: ./state\nrecipes: {r: {targets: [fp16]}}\n"
    )
    return tmp_path / "machine"


def there(machine: Path) -> list[str]:
    return sorted(str(p.relative_to(machine)) for p in machine.rglob("*") if not p.is_dir())


def test_install_and_uninstall_for_the_system(qconvd: Qconvd, machine: Path) -> None:
    said = qconvd("service", "install", "--system", "--root", machine)
    assert said.code == 0, said.err
    wanted = [f"{SYSTEM}/qconvd.service", f"{SYSTEM}/qconvd.service.d/10-config.conf", *(f"etc/{n}" for n in SYSTEM_FILES)]
    assert there(machine) == sorted(wanted)
    assert said.out == "".join(f"Wrote {machine / name}\n" for name in wanted)
    assert (machine / SYSTEM / "qconvd.service").read_text() == MARK + (ROOT / "systemd/qconvd.service").read_text()
    assert f"run --config {machine.parent}/config.yaml\n" in (machine / SYSTEM / "qconvd.service.d/10-config.conf").read_text()
    assert qconvd("service", "install", "--system", "--root", machine).code == 0, "again, for a config that has changed"

    own = machine / SYSTEM / "qconvd.service.d/override.conf"
    own.write_text("[Service]\nUser=me\n")
    enabled = machine / SYSTEM / "multi-user.target.wants/qconvd.service"
    enabled.parent.mkdir()
    enabled.symlink_to(machine / SYSTEM / "qconvd.service")
    said = qconvd("service", "uninstall", "--system", "--root", machine)
    assert said.code == 0, said.err
    assert there(machine) == [str(own.relative_to(machine))]
    said = qconvd("service", "uninstall", "--system", "--root", machine)
    assert (said.code, said.err) == (
        3,
        f"qconvd: {machine / SYSTEM}: there is no service that `qconvd service install` wrote\n"
        "  `--user` and `--system` choose the other one\n",
    )


def test_install_for_a_user(qconvd: Qconvd, machine: Path) -> None:
    said = qconvd("service", "install", "--user", "--root", machine)
    assert said.code == 0, said.err
    place = f"{machine.parent}/xdg/systemd/user".lstrip("/")
    assert there(machine) == [f"{place}/qconvd.service", f"{place}/qconvd.service.d/10-config.conf"]
    assert qconvd("service", "uninstall", "--user", "--root", machine).code == 0
    assert there(machine) == []


def test_a_config_without_a_gpu_takes_the_devices_away(qconvd: Qconvd, machine: Path) -> None:
    with (machine.parent / "config.yaml").open("a") as config:
        config.write("devices: {cuda: none}\n")
    assert qconvd("service", "install", "--system", "--root", machine).code == 0
    text = (machine / SYSTEM / "qconvd.service.d/20-no-gpu.conf").read_text()
    assert text == MARK + (ROOT / "systemd/drop-ins/no-gpu.conf").read_text()


def test_what_somebody_else_wrote_is_left_alone(qconvd: Qconvd, machine: Path) -> None:
    unit = machine / SYSTEM / "qconvd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    said = qconvd("service", "install", "--system", "--root", machine)
    assert (said.code, said.err) == (
        3,
        f"qconvd: {unit}: is there already, and `qconvd service install` did not write it\n"
        "  move it away; what you want to change goes into a drop-in of your own (`systemctl edit qconvd`)\n",
    )
    assert there(machine) == [f"{SYSTEM}/qconvd.service"], "nothing of ours beside it"
    assert qconvd("service", "uninstall", "--system", "--root", machine).code == 3
    assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_print_says_what_install_would_write(qconvd: Qconvd, machine: Path) -> None:
    said = qconvd("service", "print", "--system", "--root", machine)
    assert said.code == 0, said.err
    assert not machine.exists()
    qconvd("service", "install", "--system", "--root", machine)
    for name in there(machine):
        assert f"# {machine / name}\n{(machine / name).read_text()}" in said.out


def test_a_wrong_config_is_not_installed(qconvd: Qconvd, machine: Path) -> None:
    (machine.parent / "config.yaml").write_text("outputs: ./models\n")
    assert qconvd("service", "install", "--system", "--root", machine).code == 78
    assert not machine.exists()


def test_only_root_installs_for_the_system(qconvd: Qconvd, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = qconvd("service", "install", "--system")
    assert said.code == 3
    assert said.err.startswith("qconvd: a service of the system is root's to change\n  `sudo /")
    assert said.err.endswith(
        f" service install --system --config {machine.parent}/config.yaml`, or `--user` for one of your own\n"
    )


def test_a_service_that_runs_is_started_again(machine: Path) -> None:
    """Only then it sees the folders of a config that has changed."""
    loaded = load(machine.parent / "config.yaml")
    last = [("enable", "qconvd.service"), ("restart", "qconvd.service")]
    assert to_start(loaded, user=False)[-3:] == [("systemctl", *words) for words in [("daemon-reload",), *last]]
    assert to_start(loaded, user=True) == [("systemctl", "--user", *words) for words in [("daemon-reload",), *last]]
    made = ("install", "-d", "-o", "qconvd", "-g", "qconvd", f"{machine.parent}/models", f"{machine.parent}/state")
    assert made in to_start(loaded, user=False)


def test_now_is_for_this_machine(qconvd: Qconvd, machine: Path) -> None:
    said = qconvd("service", "install", "--system", "--root", machine, "--now")
    assert (said.code, said.err) == (
        3, "qconvd: --now starts the service of this machine, not one below --root\n  leave out one of the two\n"
    )  # fmt: skip
    assert not machine.exists()


@pytest.mark.skipif(BOOTED.exists(), reason="systemd runs this machine, whose service this would be")
@pytest.mark.usefixtures("machine")
def test_now_needs_systemd(qconvd: Qconvd) -> None:
    for what in ("install", "uninstall"):
        said = qconvd("service", what, "--user", "--now")
        assert (said.code, said.err) == (
            3, "qconvd: systemd does not run this machine, so nothing can be started\n  leave out --now\n"
        )  # fmt: skip


def test_the_wheel_holds_every_file_that_is_installed() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"systemd": "qconvd/systemd"}
    for name in ("qconvd.service", "user/qconvd.service", "drop-ins/no-gpu.conf", *SYSTEM_FILES):
        assert packaged(name) == (ROOT / "systemd" / name).read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_what_is_installed(qconvd: Qconvd, machine: Path) -> None:
    assert qconvd("service", "install", "--system", "--root", machine).code == 0
    unit = machine / SYSTEM / "qconvd.service"
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=yes", unit], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    secure = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=18", unit], capture_output=True, text=True, check=False
    )
    assert secure.returncode == 0, secure.stdout
