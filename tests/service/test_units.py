"""The files in systemd/, held against systemd's own programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
DROP_INS = sorted(p.name for p in (SYSTEMD / "drop-ins").iterdir())


def has(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def unit(folder: Path, *drop_ins: str, user: bool = False) -> Path:
    """A copy of the unit with drop-ins, that starts a program which is there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (SYSTEMD / ("user/qconvd.service" if user else "qconvd.service")).read_text()
    path = folder / "qconvd.service"
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable} -m qconvd", text))
    for name in drop_ins:
        place = folder / "qconvd.service.d" / name
        place.parent.mkdir(exist_ok=True)
        shutil.copy(SYSTEMD / "drop-ins" / name, place)
    return path


def analyze(*arguments: str | Path, runtime: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning", **({"XDG_RUNTIME_DIR": str(runtime)} if runtime else {})}
    command = ["systemd-analyze", "--no-pager", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@has("systemd-analyze")
@pytest.mark.parametrize("drop_in", ["", *DROP_INS])
def test_systemd_finds_nothing_wrong(tmp_path: Path, drop_in: str) -> None:
    path = unit(tmp_path, *filter(None, [drop_in]))
    checked = analyze("verify", "--recursive-errors=yes", path)
    assert (checked.returncode, checked.stderr) == (0, "")


@has("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_users_unit(tmp_path: Path) -> None:
    path = unit(tmp_path / "user", user=True)
    checked = analyze("--user", "verify", "--recursive-errors=yes", path, runtime=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")


@has("systemd-analyze")
def test_a_mistake_would_be_found(tmp_path: Path) -> None:
    path = unit(tmp_path)
    path.write_text(path.read_text().replace("ProtectClock=", "ProtectClocks="))
    checked = analyze("verify", "--recursive-errors=yes", path)
    assert checked.returncode == 1
    assert "ProtectClocks" in checked.stderr


@has("systemd-analyze")
@pytest.mark.parametrize(
    ("drop_ins", "most"),
    [((), 1.8), (("no-gpu.conf",), 1.4), (("token.conf",), 1.8), (("no-gpu.conf", "local-only.conf"), 1.4)],
)
def test_how_much_is_exposed(tmp_path: Path, drop_ins: tuple[str, ...], most: float) -> None:
    path = unit(tmp_path, *drop_ins)
    checked = analyze("security", "--offline=true", f"--threshold={round(10 * most)}", path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    level = re.search(r"exposure level for qconvd.service: ([\d.]+)", checked.stdout)
    assert level and float(level[1]) <= most, checked.stdout


@has("systemd-analyze")
def test_drop_ins_are_counted(tmp_path: Path) -> None:
    """What is read beside the unit shows in the level, or the test above would say nothing of them."""
    path = unit(tmp_path, "no-gpu.conf")
    assert "✓ PrivateDevices=" in analyze("security", "--offline=true", path).stdout
    assert "✗ PrivateDevices=" in analyze("security", "--offline=true", unit(tmp_path / "plain")).stdout


@has("systemd-sysusers")
def test_the_user_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", SYSTEMD / "sysusers.d/qconvd.conf"], check=True)
    assert re.search(r"^qconvd:x:\d+:\d+:[^:]+:/var/lib/qconvd:\S*nologin$", (tmp_path / "etc/passwd").read_text(), re.M)


@has("systemd-tmpfiles")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to a group")
def test_the_folder_of_the_config_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nqconvd:x:4711:\n")
    subprocess.run(["systemd-tmpfiles", f"--root={tmp_path}", "--create", SYSTEMD / "tmpfiles.d/qconvd.conf"], check=True)
    made = (tmp_path / "etc/qconvd").stat()
    assert (oct(made.st_mode), made.st_uid, made.st_gid) == ("0o40750", 0, 4711)


def test_inotify_settings_are_those_of_the_kernel() -> None:
    for line in (SYSTEMD / "sysctl.d/60-qconvd.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            name, value = line.split(" = ")
            assert Path("/proc/sys", name.replace(".", "/")).exists()
            assert int(value) > 0


def test_every_relaxation_has_its_reason() -> None:
    """What systemd calls exposed and the unit could close, the unit speaks of."""
    relaxed = (SYSTEMD / "qconvd.service").read_text().partition("# Relaxed")[2]
    for setting in ("PrivateDevices", "MemoryDenyWriteExecute", "PrivateNetwork", "IPAddressDeny", "ProcSubset", "@resources",
                    "UMask"):  # fmt: skip
        assert setting in relaxed
