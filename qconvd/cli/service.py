"""`qconvd service`: this config as a service of systemd."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from qconvd.cli.options import ConfigFile

app = typer.Typer(
    name="service", help="Run this config as a service of systemd.", no_args_is_help=True, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Whose = Annotated[
    bool | None,
    typer.Option("--user/--system", help="A service of your own, or of the system; left out: of the system if you are root."),
]
Root = Annotated[
    Path, typer.Option("--root", metavar="DIR", help="Write below this folder instead of /: for packages, images and tests.")
]
Now = Annotated[bool, typer.Option("--now", help="Run the commands that are otherwise only shown.")]


@app.command("install")
def install(config: ConfigFile = None, user: Whose = None, now: Now = False, root: Root = Path("/")) -> None:
    """Write the unit, and a drop-in for the folders of this config.

    The service reaches these folders and no others: run it again when they change.
    """
    from qconvd.cli.options import load_config
    from qconvd.service import files, steps

    mine = _mine(user, root, now, "install", config)
    loaded = load_config(config)
    wanted = files.files(loaded, user=mine, root=root)
    files.write(wanted)
    print("\n".join(f"Wrote {file.path}" for file in wanted))
    commands = steps.to_start(loaded, user=mine)
    if root != Path("/"):
        return
    if now:
        steps.run(commands)
        print(f"The service runs; `systemctl {'--user ' if mine else ''}status {files.UNIT}` shows how it does.")
    else:
        print(f"Next:\n{steps.shown(commands)}")
    if mine:
        print("It ends when you log out, unless you say `loginctl enable-linger` once.")
    else:
        print("The service runs as the user qconvd, who must be able to read the watched folders and to write the output.")


@app.command("uninstall")
def uninstall(user: Whose = None, now: Now = False, root: Root = Path("/")) -> None:
    """Remove what `install` wrote. Config, state, artifacts, drop-ins of your own and the user qconvd stay."""
    from qconvd.errors import QconvdError
    from qconvd.service import files, steps

    mine = _mine(user, root, now, "uninstall", None)
    removed = files.remove(user=mine, root=root)
    if not removed:
        place = files.folder(user=mine, root=root)
        raise QconvdError("there is no service that `qconvd service install` wrote", where=str(place),
                          fix="`--user` and `--system` choose the other one")  # fmt: skip
    print("\n".join(f"Removed {path}" for path in removed))
    commands = steps.to_stop(user=mine)
    if root != Path("/"):
        return
    if now:
        steps.run(commands)
        print("The service is stopped.")
    else:
        print(f"Next:\n{steps.shown(commands)}")


@app.command("print")
def show(config: ConfigFile = None, user: Whose = None, root: Root = Path("/")) -> None:
    """Print what `install` would write, each file after its name."""
    from qconvd.cli.options import load_config
    from qconvd.service import files

    mine = os.geteuid() != 0 if user is None else user
    wanted = files.files(load_config(config), user=mine, root=root)
    print("\n".join(f"# {file.path}\n{file.text}" for file in wanted), end="")


def _mine(user: bool | None, root: Path, now: bool, what: str, config: Path | None) -> bool:
    """Whether the service is a user's. Raises `QconvdError` where it cannot be done."""
    from qconvd import config as configuration
    from qconvd.errors import QconvdError
    from qconvd.service import steps
    from qconvd.service.drop_in import command

    mine = os.geteuid() != 0 if user is None else user
    if root != Path("/"):
        if now:
            raise QconvdError("--now starts the service of this machine, not one below --root", fix="leave out one of the two")
        return mine
    if not mine and os.geteuid() != 0:
        named = ["--config", str((config or configuration.find()).absolute())] if what == "install" else []
        again = shlex.join(["sudo", *command(), "service", what, "--system", *named])
        raise QconvdError("a service of the system is root's to change", fix=f"`{again}`, or `--user` for one of your own")
    if now:
        steps.check_booted()
    return mine
