"""The sections that say what qconvd may use of the machine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from qconvd import quantities
from qconvd.config.values import Duration, LongDuration, QuietHours, Section, Size, Workers
from qconvd.suggest import did_you_mean


class DiskMarks(Section):
    """When the disks of `output` and `state` are nearly full: models are not taken in and no task is started."""

    low: Size = Field(gt=0, description="Pause when less than this is free on one of them.")
    high: Size | None = Field(None, gt=0, description="Go on when this is free on each; left out: twice `low`.")

    @property
    def enough(self) -> int:
        """Bytes with which it goes on."""
        return self.high or 2 * self.low

    @field_validator("high")
    @classmethod
    def _not_lower(cls, value: int | None, info: ValidationInfo) -> int | None:
        low = info.data.get("low")
        if value is not None and low is not None and value < low:
            raise ValueError(f"{quantities.write_size(value)} is less than `low`, {quantities.write_size(low)}")
        return value


class Limits(Section):
    """What qconvd may use of the machine."""

    memory: Size | None = Field(None, gt=0, description="Memory of all workers together; left out: half of the machine's.")
    threads: Workers | None = Field(None, description="Threads of all workers together; left out: one per core.")
    jobs: Workers | None = Field(None, description="Workers at a time; left out: as many as memory and threads allow.")
    stop_grace: Duration = Field(10.0, ge=0, description="How long a worker may take to stop before it is killed.")
    disk_reserve: Size = Field(1 << 30, ge=0, description="Free space on the output's disk that is left alone.")
    disk: DiskMarks | None = Field(None, description="When to pause because a disk is nearly full; left out: never.")
    quiet_hours: tuple[QuietHours, ...] = Field(
        (),
        description="When no task is started, in local time, beyond midnight, too: `[22:00-07:00]`. What runs goes on.",
    )


class Keep(Section):
    """How long qconvd keeps what is only of use for a while; left out: for ever. `qconvd ledger prune` shortens the ledger."""

    logs: LongDuration | None = Field(None, gt=0, description="Logs of tasks and jobs that have ended.")
    work: LongDuration | None = Field(
        None, gt=0, description="Work files of what failed in a crash, with which `qconvd retry` need not begin anew."
    )
    moved: LongDuration | None = Field(
        None, gt=0, description="Models in `.qconvd-done/` of folders with `after: move`, since they were moved there."
    )


class Devices(Section):
    """Which devices conversions may run on."""

    cpu: bool = Field(True, description="Whether to convert on the CPU.")
    cuda: Literal["auto", "none"] | tuple[str, ...] = Field(
        "auto",
        description="GPUs: all that are there, none, or a list of UUIDs as `nvidia-smi -L` shows them. "
        "Each has one task at a time.",
    )
    cuda_reserve: Size = Field(1 << 30, ge=0, description="Memory of each GPU that is left alone.")

    @field_validator("cuda", mode="before")
    @classmethod
    def _cuda(cls, value: Any) -> Any:
        if isinstance(value, list):
            if wrong := [v for v in value if not isinstance(v, str)]:
                raise ValueError(
                    f"{wrong[0]!r} is not a GPU's UUID; `nvidia-smi -L` shows them (numbers change when a GPU fails)"
                )
            return tuple(value)
        if value not in ("auto", "none"):
            raise ValueError(
                f"{value!r} is neither auto nor none nor a list of GPU UUIDs{did_you_mean(str(value), ('auto', 'none'))}"
            )
        return value
