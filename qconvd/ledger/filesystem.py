"""Which filesystem a folder lies on, and whether SQLite's write-ahead log can be trusted there.

WAL needs memory shared between processes and locks that work; network filesystems give neither
(https://www.sqlite.org/wal.html, "Disadvantages" 2; https://www.sqlite.org/howtocorrupt.html, 2.1).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from qconvd.errors import QconvdError

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "ncp", "afs", "coda", "9p", "ceph", "lustre", "gpfs", "beegfs",
    "glusterfs", "pvfs2", "orangefs", "ocfs2", "gfs2", "davfs", "acfs", "moosefs", "quobyte", "vboxsf", "virtiofs", "prl_fs",
    "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.goofys", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.davfs", "fuse.davfs2",
    "fuse.gcsfuse", "fuse.blobfuse", "fuse.juicefs", "fuse.curlftpfs", "fuse.mfs", "fuse.moosefs", "fuse.quobyte",
    "fuse.vmhgfs-fuse", "fuse.afp", "fuse.smbnetfs", "fuse.mount-s3", "fuse.mountpoint-s3", "fuse.grpcfuse", "fuse.osxfs",
})  # fmt: skip


class Mount(NamedTuple):
    """A line of mountinfo: where, what kind, and from where."""

    point: str
    kind: str
    device: str

    @property
    def network(self) -> bool:
        return self.kind in NETWORK


def mount_of(path: Path, mounts: Path = MOUNTS) -> Mount:
    """The mount that `path` (which need not exist yet) lies on. Of mounts on one point, the last covers the others."""
    place = os.path.realpath(path)
    found = Mount("/", "", "")
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return found
    for mount in filter(None, map(_parse, lines)):
        inside = place == mount.point or place.startswith(mount.point.rstrip("/") + "/")
        if inside and len(mount.point) >= len(found.point):
            found = mount
    return found


def refuse_network(folder: Path, mounts: Path = MOUNTS) -> None:
    """Raise `QconvdError` if the state folder is on a network filesystem."""
    mount = mount_of(folder, mounts)
    if mount.network:
        raise QconvdError(
            f"the state folder is on a network filesystem ({mount.kind} from {mount.device}, mounted on {mount.point}), "
            "where the ledger's locks cannot be relied on",
            where=str(folder),
            fix="set `state:` to a folder on a local disk; the watched folders and the output may stay on the network",
        )


def _parse(line: str) -> Mount | None:
    """Fields of proc(5) mountinfo: the kind follows the lone dash, spaces in paths are octal escapes."""
    before, dash, after = line.partition(" - ")
    left, right = before.split(" "), after.split(" ")
    if not dash or len(left) < 5 or len(right) < 2:
        return None
    return Mount(_plain(left[4]), right[0], _plain(right[1]))


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)
