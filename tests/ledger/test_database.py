"""The file itself: where it may lie, what may be in it, and that a SIGKILL leaves whole transactions only."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from qconvd.errors import QconvdError
from qconvd.ledger import Ledger
from qconvd.ledger.database import _statements, migrations
from qconvd.ledger.filesystem import mount_of, refuse_network

MOUNTINFO = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:30 / /srv rw - nfs4 server:/export rw
24 22 0:31 / /srv/local rw shared:5 - xfs /dev/vdb rw
25 22 0:32 / /mnt/with\040space rw - cifs //nas/share rw
26 22 0:33 / /mnt/ssh rw - fuse.sshfs me@host:/ rw
27 22 0:34 / /over rw - 9p host rw
28 22 0:35 / /over rw - tmpfs tmpfs rw
a line that makes no sense
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTINFO)
    return path


@pytest.mark.parametrize(
    ("folder", "kind", "network"),
    [
        ("/home/me/state", "ext4", False),
        ("/srv/state", "nfs4", True),
        ("/srv/local/state", "xfs", False),
        ("/srvlocal", "ext4", False),
        ("/mnt/with space/s", "cifs", True),
        ("/mnt/ssh", "fuse.sshfs", True),
        ("/over/here", "tmpfs", False),
    ],
)
def test_the_mount_of_a_folder(mounts: Path, folder: str, kind: str, network: bool) -> None:
    mount = mount_of(Path(folder), mounts)
    assert (mount.kind, mount.network) == (kind, network)


def test_a_state_folder_on_a_network_filesystem_is_refused(mounts: Path) -> None:
    with pytest.raises(QconvdError) as caught:
        Ledger(Path("/srv/state/ledger.sqlite"), mounts=mounts)
    assert str(caught.value) == (
        "/srv/state: the state folder is on a network filesystem (nfs4 from server:/export, mounted on /srv), where the "
        "ledger's locks cannot be relied on\n  set `state:` to a folder on a local disk; the watched folders and the output "
        "may stay on the network"
    )
    assert not Path("/srv/state").exists()


def test_a_symlink_to_a_network_filesystem_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "share")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 1 0:1 / / rw - ext4 /dev/vda rw\n2 1 0:2 / {tmp_path.resolve()}/share rw - lustre mds:/x rw\n")
    with pytest.raises(QconvdError, match=r"lustre from mds:/x"):
        refuse_network(tmp_path / "state", mounts)


def test_without_mountinfo_nothing_is_refused(tmp_path: Path) -> None:
    refuse_network(tmp_path, tmp_path / "absent")


def test_how_the_file_is_opened(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    pragma = {
        name: ledger.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")
    }
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "user_version": len(migrations())}
    strict = {
        r["name"]: r["strict"] for r in ledger.rows("PRAGMA table_list") if r["type"] == "table" and r["schema"] == "main"
    }
    assert {n for n, s in strict.items() if not s} <= {"sqlite_schema", "sqlite_sequence"}
    assert "target" in strict
    ledger.close()


def test_a_ledger_of_a_newer_qconvd_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 999")
    db.close()
    with pytest.raises(QconvdError) as caught:
        Ledger(path)
    assert caught.value.what == f"the ledger was written by a newer qconvd (schema 999; this one knows {len(migrations())})"
    assert "install that version again" in caught.value.fix


def test_jobs_of_an_older_ledger_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(migrations()[0])
        for id in ("a", "b"):
            db.execute(
                "INSERT INTO source VALUES (?, ?, 1, 'm', 'sha256:a', '', 'present', '', '{}', 0, 0)", (ord(id), f"/inbox/{id}")
            )
            for variant in ("fp16", "q8_0"):
                db.execute(
                    "INSERT INTO target (id, source, spec_digest, format, options, device, state, reason, version, label,"
                    " folder, stem, manifest_name, created_at, changed_at)"
                    " VALUES (?, ?, ?, '', '{}', 'cpu', 'done', '', '', '', '', '', '', 0, 0)",
                    (id + variant, ord(id), variant),
                )  # fmt: skip
                db.execute("INSERT INTO wanted (target, recipe) VALUES (?, 'everyday')", (id + variant,))
        db.execute("PRAGMA user_version = 1")
    db.close()
    ledger = Ledger(path)
    assert [(j.id, j.source.locator, len(j.targets)) for j in ledger.jobs()] == [(1, "/inbox/a", 2), (3, "/inbox/b", 2)]
    with ledger.transaction() as db:
        db.execute("INSERT INTO wanted (target, recipe) VALUES ('afp16', 'other')")
    assert [j.id for j in ledger.jobs()] == [1, 3, 4]
    ledger.close()


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(QconvdError, match="cannot be used: file is not a database") as caught:
        Ledger(path)
    assert "move it away to begin anew" in caught.value.fix
    assert path.read_bytes().startswith(b"not a database")


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QconvdError, match="the ledger cannot be used") as caught:
        Ledger(tmp_path / "file" / "ledger.sqlite")
    assert caught.value.fix == "check the state folder's permissions and free space"


def test_migrations_are_split_at_statements_and_not_inside_triggers() -> None:
    parts = list(
        _statements("CREATE TABLE a (x);\nCREATE TRIGGER t AFTER INSERT ON a BEGIN\n SELECT 1;\nEND;\n-- the end; really\n")
    )
    assert [p.split()[1] for p in parts[:2]] == ["TABLE", "TRIGGER"]
    with pytest.raises(ValueError, match="in the middle of a statement"):
        list(_statements("CREATE TABLE a ("))


def test_a_transaction_is_undone_as_a_whole(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(RuntimeError), ledger.transaction():
        ledger.request("a")
        ledger.request("b")
        raise RuntimeError
    assert ledger.requests() == []
    ledger.request("c")
    assert [r.kind for r in ledger.requests()] == ["c"]
    ledger.close()


WORK = """
import sys
from pathlib import Path
from types import SimpleNamespace
from qconvd.ledger import Ledger, Outcome

class Wish:
    format, version = "f", "1"
    def __init__(self, n): self.options, self.label, self.n = {"n": n}, f"f{n}", n
    def names(self, model_name, profile="default"):
        return SimpleNamespace(folder=f"{model_name}-{self.n}", stem="model", manifest="qconvd.json")

ledger = Ledger(Path(sys.argv[1]))
print("open", flush=True)
n = len(ledger.targets())
for task in ledger.tasks("running"):
    ledger.release(task.id, task.fence, "found after a crash")
while True:
    source = ledger.source_seen(f"/inbox/{n}", f"sha256:{n}", f"m{n}", "p")
    ledger.want(source.id, "r", [Wish(0), Wish(1)])
    while ledger.make_tasks() or ledger.tasks("queued"):
        for task in ledger.tasks("queued"):
            held = ledger.claim(task.id)
            ledger.finish(held.id, held.fence, {t: Outcome(True) for t in held.targets})
    print(source.id, flush=True)
    n += 1
"""


def test_a_transaction_that_the_disk_refuses_is_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    pages = ledger.rows("PRAGMA page_count")[0][0]
    ledger.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ledger.request("add", path="x" * 100_000)
    ledger.rows(f"PRAGMA max_page_count = {pages + 1000}")
    number = ledger.request("reload")
    with sqlite3.connect(ledger.path) as other:
        assert [row[0] for row in other.execute("SELECT id FROM request")] == [number], "what comes next is on disk"
    ledger.close()


def test_sigkill_at_random_moments_leaves_a_whole_ledger_and_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    moments, longest = random.Random(7), 0.0
    for attempt in range(12):
        worker = subprocess.Popen([sys.executable, "-c", WORK, str(path)], stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "open\n"
        if attempt == 0:  # as long as a few models take on this machine, busy as it is
            began = time.monotonic()
            for _ in range(3):
                worker.stdout.readline()
            longest = time.monotonic() - began
        else:
            time.sleep(moments.uniform(0, longest))
        worker.send_signal(signal.SIGKILL)
        told = [int(line) for line in worker.stdout.read().splitlines() if line.endswith(tuple("0123456789"))]
        worker.stdout.close()
        assert worker.wait() == -signal.SIGKILL
        ledger = Ledger(path)
        _assert_whole(ledger)
        for source in told:
            assert {t.state for t in ledger.targets(source=source)} == {"done"}, "what was reported is on disk"
        ledger.close()
    ledger = Ledger(path)
    for task in ledger.tasks("running"):
        ledger.release(task.id, task.fence, "found after a crash")
    ledger.make_tasks()
    open_targets = {t for task in ledger.tasks("queued") for t in task.targets}
    assert open_targets == {t.id for t in ledger.targets() if t.state != "done"}, "whatever is not done has a task"
    assert len(ledger.targets("done")) > 2
    ledger.close()


def _assert_whole(ledger: Ledger) -> None:
    assert ledger.rows("PRAGMA integrity_check")[0][0] == "ok"
    assert ledger.rows("PRAGMA foreign_key_check") == []
    for target in ledger.targets():
        events = ledger.history(target=target.id)
        assert events[-1].to_state == target.state
        assert [e.from_state for e in events] == ["", *(e.to_state for e in events[:-1])]
    for source in ledger.sources():
        assert len(ledger.targets(source=source.id)) in (0, 2), "a recipe's targets are wanted together"
    for task in ledger.tasks("running"):
        during = {"plan": "waiting", "convert": "converting", "verify": "verifying"}[task.kind]
        assert {ledger.target(t).state for t in task.targets} == {during}
    assert len({t.fence for t in ledger.tasks() if t.fence}) == len([t for t in ledger.tasks() if t.fence])


CLAIM = """
import sys
from pathlib import Path
from qconvd.ledger import Ledger, StaleFence
ledger = Ledger(Path(sys.argv[1]))
sys.stdin.readline()
for task in ledger.tasks("queued"):
    try:
        print(ledger.claim(task.id).id, flush=True)
    except StaleFence:
        pass
"""


def test_two_processes_share_the_tasks_without_taking_one_twice(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    for n in range(30):
        source = ledger.source_seen(f"/m{n}", f"sha256:{n}", f"m{n}", "p")
        names = SimpleNamespace(folder=f"m{n}", stem="model", manifest="qconvd.json")
        wish = SimpleNamespace(format="f", version="1", label="f", options={}, names=lambda *_, names=names: names)
        ledger.want(source.id, "r", [wish])
    tasks = {t.id for t in ledger.make_tasks()}
    workers = [
        subprocess.Popen([sys.executable, "-c", CLAIM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    taken = [[int(line) for line in worker.communicate()[0].split()] for worker in workers]
    assert [w.returncode for w in workers] == [0, 0]
    assert sorted(taken[0] + taken[1]) == sorted(tasks)
    assert len({t.fence for t in ledger.tasks("running")}) == 30
    ledger.close()


def test_two_processes_may_make_the_ledger_at_once(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from qconvd.ledger import Ledger; Ledger(Path(sys.argv[1])).request('x')"
    for round in range(3):
        path = tmp_path / str(round) / "ledger.sqlite"
        workers = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
        assert [w.wait() for w in workers] == [0] * 4
        ledger = Ledger(path)
        assert len(ledger.requests()) == 4
        ledger.close()


def test_who_makes_the_ledger_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself does not wait there, whatever its timeout."""
    path = tmp_path / "ledger.sqlite"
    first = sqlite3.connect(path, isolation_level=None)
    first.execute("BEGIN IMMEDIATE")
    paused = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        first.execute("ROLLBACK")

    monkeypatch.setattr("qconvd.ledger.database.time", SimpleNamespace(monotonic=time.monotonic, sleep=pause))
    Ledger(path).close()
    assert len(paused) == 1
    first.close()


def test_the_ledger_is_light() -> None:
    code = "import sys, qconvd.ledger; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    ).stdout.split()
    assert not {"numpy", "torch", "numba", "transformers", "pydantic"} & set(loaded)
