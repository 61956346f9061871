"""`qconvd init`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

TEMPLATE = """\
# qconvd's configuration. `qconvd check` says what is wrong with it and what it would do; `qconvd schema` prints its schema.
# Paths are relative to this file, `~` is the home folder.

# Folders in which models appear, and what to make of them.
watch:
  - folder: {inbox}
    recipes: [everyday]
    # after: keep        # what becomes of a model that is done: keep | move (to .qconvd-done/) | delete
{poll}
# Where the artifacts go; never inside a watched folder.
output: {output}

# The ledger (SQLite), logs and plans: on a local disk.
state: {state}

recipes:
  everyday:
    # match: {{architectures: [LlamaForCausalLM], max_parameters: 70B}}   # left out: all models
    targets:
      - fp16
      - gguf: {{types: [q8_0, q4_0]}}          # `qconvd formats` lists what there is
      # - int8                               # also int4, fp8, nf4, gptq: `qconvd formats int8` has the options

# This machine has {cpus} {cores} and {total} of memory: half of that, and every core, unless you say otherwise.
limits:
  memory: {memory}
  threads: {cpus}
  disk_reserve: 1GiB   # free space on the output's disk that is left alone

{gpus}
"""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write config.yaml and to keep models and state.")
    ] = Path(),
) -> None:
    """Write a config.yaml for this machine.

    The folder that is watched is made, too. Nothing is ever overwritten.
    """
    from qconvd import config
    from qconvd.devices import Devices
    from qconvd.errors import QconvdError
    from qconvd.ledger.filesystem import mount_of
    from qconvd.quantities import show_size

    path = folder / "config.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        here = Devices().snapshot()
        mount = mount_of(folder)
        text = TEMPLATE.format(
            inbox="./inbox",
            poll="    # This folder is on a network filesystem: it is polled, a model is taken 30s after it came to rest.\n"
            if mount.network else "",
            output="./models",
            # The ledger's locks cannot be relied on over a network.
            state="~/.local/state/qconvd" if mount.network else "./state",
            cpus=here.cpus,
            cores="core" if here.cpus == 1 else "cores",
            total=show_size(here.memory_total),
            memory=f"{max(1, here.memory_total // 2 >> 30)}GiB",
            gpus=_gpus(here),
        )  # fmt: skip
        # Exclusively: a config is somebody's work.
        with path.open("x") as file:
            file.write(text)
        (folder / "inbox").mkdir(exist_ok=True)
    except FileExistsError:
        what = "is there already and is left as it is" if path.exists() else "is in the way"
        raise QconvdError(what, where=str(path), fix="`qconvd check` looks at it; move it away to begin anew") from None
    except OSError as error:
        raise QconvdError(f"cannot be written: {os.strerror(error.errno or 0)}", where=str(path)) from error
    config.load(path)
    there = "" if folder == Path() else f" --config {shlex.quote(str(path))}"
    print(f"Wrote {path}. Next: `qconvd run{there}`, and drop a model into {folder / 'inbox'}.")


def _gpus(here: object) -> str:
    from qconvd.devices import Snapshot
    from qconvd.quantities import show_size

    assert isinstance(here, Snapshot)
    if not here.gpus:
        return f"# No GPU is used: {here.no_gpu}.\n# devices: {{cuda: auto}}"
    lines = [f"#   {gpu.uuid}  {gpu.name}, {show_size(gpu.total)}" for gpu in here.gpus]
    return "\n".join(["# GPUs of this machine; name some to leave the others alone.", *lines, "devices: {cuda: auto}"])
