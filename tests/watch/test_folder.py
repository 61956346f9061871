"""Events are hints. These tests use the kernel's own inotify, with real folders."""

from __future__ import annotations

import errno
import logging
import os
import queue
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qconvd.watch import folder as folder_module
from qconvd.watch.folder import FolderWatch

PATIENCE = 20.0


class Hints:
    """Collects hints and waits for one that matters."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + PATIENCE
        while (left := end - time.monotonic()) > 0:
            try:
                if self.queue.get(timeout=left) == path:
                    return
            except queue.Empty:
                break
        pytest.fail(f"nobody said that {path} changed")

    def drain(self) -> list[Path]:
        found = []
        while not self.queue.empty():
            found.append(self.queue.get())
        return found


@pytest.fixture
def hints() -> Hints:
    return Hints()


@pytest.fixture
def watch(hints: Hints) -> Iterator[FolderWatch]:
    watch = FolderWatch(hints.queue.put)
    yield watch
    watch.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    return inbox


def two_links(inbox: Path, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A folder elsewhere, and two links in the inbox that lead to it."""
    target, links = tmp_path / "elsewhere", [inbox / "a", inbox / "b"]
    target.mkdir()
    for link in links:
        link.symlink_to(target)
    return target, links


def mounts(tmp_path: Path, inbox: Path, kind: str) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(f"1 0 0:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:2 / {inbox} rw - {kind} server:/models rw\n")
    return file


def test_a_folder_that_is_moved_in_is_hinted(watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path) -> None:
    assert watch.watch(inbox).how == "events"
    (tmp_path / "model").mkdir()
    (tmp_path / "model").rename(inbox / "model")
    hints.wait_for(inbox / "model")


def test_what_arrives_inside_a_followed_model_is_hinted(watch: FolderWatch, hints: Hints, inbox: Path) -> None:
    (inbox / "model").mkdir()
    watch.watch(inbox)
    watch.follow(inbox, [inbox / "model"])
    (inbox / "model" / "config.json").write_text("{}")
    hints.wait_for(inbox / "model" / "config.json")


def test_a_model_behind_a_link_is_followed(watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (inbox / "model").symlink_to(target)
    watch.watch(inbox)
    watch.follow(inbox, [inbox / "model"])
    (target / "config.json").write_text("{}")
    hints.wait_for(target / "config.json")


def test_a_model_that_is_taken_is_followed_no_longer(watch: FolderWatch, inbox: Path) -> None:
    (inbox / "a").mkdir()
    (inbox / "b").mkdir()
    folder = watch.watch(inbox)
    assert watch.follow(inbox, [inbox / "a", inbox / "b"])
    assert set(folder.followed) == {inbox / "a", inbox / "b"}
    assert not watch.follow(inbox, [inbox / "b"])
    assert set(folder.followed) == {inbox / "b"}


def test_a_link_back_to_the_watched_folder_ends_without_its_watch(watch: FolderWatch, hints: Hints, inbox: Path) -> None:
    (inbox / "back").symlink_to(".")
    watch.watch(inbox)
    watch.follow(inbox, [inbox / "back"])
    watch.follow(inbox, [])
    (inbox / "model").mkdir()
    hints.wait_for(inbox / "model")


def test_two_links_to_one_model_are_followed_until_both_are_done(
    watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path
) -> None:
    target, links = two_links(inbox, tmp_path)
    folder = watch.watch(inbox)
    watch.follow(inbox, links)
    watch.follow(inbox, links[1:])
    (target / "config.json").touch()
    hints.wait_for(target / "config.json")
    watch.follow(inbox, [])
    assert folder.observer is not None
    assert {e.watch.path for e in folder.observer.emitters} == {str(inbox)}


def test_a_link_to_another_watched_folder_ends_without_its_watch(
    watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (inbox / "link").symlink_to(other)
    watch.watch(inbox)
    watch.watch(other)
    watch.follow(inbox, [inbox / "link"])
    watch.forget(inbox)
    (other / "model").mkdir()
    hints.wait_for(other / "model")


def test_what_two_links_lead_to_is_followed_again_when_it_was_deleted(
    watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path
) -> None:
    target, links = two_links(inbox, tmp_path)
    watch.watch(inbox)
    watch.follow(inbox, links)
    target.rmdir()
    hints.wait_for(target)
    target.mkdir()
    deadline = time.monotonic() + PATIENCE
    while not watch.follow(inbox, links):
        assert time.monotonic() < deadline, "the watch of a folder that was deleted is armed again"
        time.sleep(0.01)
    (target / "config.json").touch()
    hints.wait_for(target / "config.json")


@pytest.mark.parametrize("linked", [True, False], ids=["and-linked-to", "alone"])
def test_a_folder_moved_away_and_made_again_is_the_one_that_is_watched(
    watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path, linked: bool
) -> None:
    other, old = tmp_path / "other", tmp_path / "old"
    other.mkdir()
    (inbox / "link").symlink_to(other)
    links = [inbox / "link"] if linked else []
    watch.watch(inbox)
    watch.watch(other)
    watch.follow(inbox, links)
    other.rename(old)
    other.mkdir()
    watch.watch(other)
    watch.follow(inbox, links)
    (old / "elsewhere").mkdir()
    (other / "model").mkdir()
    hints.wait_for(other / "model")
    watch.follow(inbox, [])
    (other / "second").mkdir()
    hints.wait_for(other / "second")
    assert other / "elsewhere" not in hints.drain()
    watch.forget(inbox)
    watch.forget(other)
    assert not watch._uses


@pytest.mark.parametrize("still", [2, 1], ids=["both-links", "one-link-then-both"])
def test_what_links_lead_to_is_followed_again_when_another_folder_is_there(
    watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path, still: int
) -> None:
    target, links = two_links(inbox, tmp_path)
    watch.watch(inbox)
    watch.follow(inbox, links)
    target.rename(tmp_path / "old")
    target.mkdir()
    watch.follow(inbox, links[:still])
    watch.follow(inbox, links)
    (target / "config.json").touch()
    hints.wait_for(target / "config.json")
    watch.forget(inbox)
    assert not watch._uses


def test_reading_a_model_is_no_event(watch: FolderWatch, hints: Hints, inbox: Path) -> None:
    (inbox / "weights").write_text("1")
    watch.watch(inbox)
    (inbox / "weights").read_text()
    (inbox / "last").touch()
    hints.wait_for(inbox / "last")
    assert inbox / "weights" not in hints.drain()


def test_a_folder_deleted_and_made_again_is_watched_again(watch: FolderWatch, hints: Hints, inbox: Path) -> None:
    watch.watch(inbox)
    inbox.rmdir()
    folder = watch.watch(inbox)
    assert (folder.how, folder.reason) == ("missing", "No such file or directory")
    inbox.mkdir()
    assert watch.watch(inbox).how == "events"
    (inbox / "model").mkdir()
    hints.wait_for(inbox / "model")


def test_a_folder_replaced_between_two_scans_is_watched_again(watch: FolderWatch, hints: Hints, inbox: Path) -> None:
    watch.watch(inbox)
    other = inbox.with_name("other")
    other.mkdir()
    inbox.rename(inbox.with_name("old"))
    other.rename(inbox)
    assert watch.watch(inbox).how == "events"
    (inbox / "model").mkdir()
    hints.wait_for(inbox / "model")


def test_arming_a_watch_again_changes_nothing(watch: FolderWatch, inbox: Path) -> None:
    first = watch.watch(inbox).watch
    assert watch.watch(inbox).watch is first


def test_a_forgotten_folder_is_silent(watch: FolderWatch, hints: Hints, inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    watch.watch(inbox)
    watch.watch(tmp_path / "other")
    watch.forget(inbox)
    (inbox / "model").mkdir()
    (tmp_path / "other" / "model").mkdir()
    hints.wait_for(tmp_path / "other" / "model")
    assert not [h for h in hints.drain() if h.is_relative_to(inbox)]


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse"])
def test_network_filesystems_are_polled(kind: str, hints: Hints, inbox: Path, tmp_path: Path) -> None:
    watch = FolderWatch(hints.queue.put, mounts=mounts(tmp_path, inbox, kind))
    try:
        folder = watch.watch(inbox, interval=0.05)
        assert folder.how == "polling"
        assert folder.reason == f"{kind} does not report what other machines change"
        (inbox / "model").mkdir()
        hints.wait_for(inbox / "model")
    finally:
        watch.close()


def test_polling_can_be_forced_and_forbidden(hints: Hints, inbox: Path, tmp_path: Path) -> None:
    watch = FolderWatch(hints.queue.put, mounts=mounts(tmp_path, inbox, "nfs"))
    try:
        assert watch.watch(inbox, "never").how == "events"
        folder = watch.watch(inbox, "always", 0.05)
        assert (folder.how, folder.reason) == ("polling", "as configured")
        (inbox / "model").mkdir()
        hints.wait_for(inbox / "model")
    finally:
        watch.close()


@pytest.mark.parametrize(("code", "limit"), [(errno.ENOSPC, "max_user_watches"), (errno.EMFILE, "max_user_instances")])
def test_inotifys_limit_is_one_warning_with_the_sysctl(
    code: int, limit: str, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel's own refusal needs a machine-wide setting changed, so this one answer of it is given in its place."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(folder_module, "InotifyObserver", refuse)
    current = int(Path(f"/proc/sys/fs/inotify/{limit}").read_text())
    (tmp_path / "second").mkdir()
    watch = FolderWatch(lambda _: None)
    with caplog.at_level(logging.WARNING, "qconvd.watch.folder"):
        for _ in range(3):
            folder = watch.watch(inbox)
            assert folder.how == "scanning"
            assert f"fs.inotify.{limit}={max(current * 4, 524288 if code == errno.ENOSPC else 1024)}" in folder.reason
        watch.watch(tmp_path / "second")
    assert [r.message for r in caplog.records] == [folder.reason]
    monkeypatch.undo()
    assert watch.watch(inbox).how == "events", "a raised limit is noticed"
    watch.close()


def test_lost_events_make_everything_worth_a_look(watch: FolderWatch, hints: Hints, inbox: Path) -> None:
    watch.watch(inbox)
    logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; filesystem events were lost")
    hints.wait_for(inbox)


def test_closing_leaves_no_thread(hints: Hints, inbox: Path) -> None:
    watch = FolderWatch(hints.queue.put)
    watch.watch(inbox)
    threads = list(watch.folders[inbox].observer.emitters) if watch.folders[inbox].observer else []
    assert all(t.is_alive() for t in threads)
    watch.close()
    assert threads and not any(t.is_alive() for t in threads)
