"""Publishing to a repository of the Hub: look at what is there, send what is missing, look again.

Every round compares the repository with what it is to hold, file by file and by hash, and makes one commit of the difference:
data, card and manifests together, so whoever finds a manifest finds all that it names. When nothing differs any more, the
artifacts are published, and known to be from the server's own answer. So a repeat sends nothing, a commit whose reply was lost
is not made again, and an upload that was killed goes on where the Hub's client lets it: objects that arrived whole are kept.

`create_commit` makes one commit also where files go through Xet; `upload_folder`, which may make several there, is not used.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvd import __version__
from qconvd.destinations import HUB, shown
from qconvd.engine.manifest import OWN_NAME, SHARED_FOLDER, Manifest, parse_manifest
from qconvd.engine.run import Cancelled
from qconvd.errors import HubBusy, HubRefused, QconvdError
from qconvd.hub import cache
from qconvd.hub.address import is_address, parse
from qconvd.hub.client import Hub, RemoteFile, remote_model
from qconvd.publish import front_matter
from qconvd.publish.artifact import Artifact
from qconvd.publish.modelcard import NAME as CARD
from qconvd.quantities import show_size
from qconvd.tasks import PublishSpec

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Described = Callable[[list[Manifest], str, str], str]
"""Makes the card of a place: from all manifests there, the card that is there, and what to call that in an error."""
ROUNDS = 4
"""Looks at the repository; each but the last may be followed by a commit. Others may commit in between."""
MANIFEST_LIMIT = 64 << 20
MOVED_ON = 412
"""The status of a commit whose parent is not the branch's head any more."""


@dataclass(frozen=True)
class There:
    """A branch as the server shows it. `commit` is empty if there is no repository, or no such branch in it."""

    repository: bool
    commit: str = ""
    files: dict[str, RemoteFile] | None = None

    def holds(self, path: str, size: int, sha256: str, local: Path | bytes) -> bool:
        entry = (self.files or {}).get(path)
        if entry is None or entry.size != size:
            return False
        if entry.sha256:
            return entry.sha256 == sha256
        if isinstance(local, Path):
            return cache.holds(local, entry)
        found = entry.hasher()
        found.update(local)
        return found.hexdigest() == entry.content


@dataclass(frozen=True)
class Sending:
    """A file that the branch is to hold."""

    path: str
    local: Path | bytes
    size: int
    sha256: str


def publish(
    hub: Hub,
    place: PublishSpec,
    artifacts: Sequence[Artifact],
    described: Described,
    still_ours: Callable[[], None],
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """Publish artifacts to one branch; returns what the ledger is to know: `commit`, `told`, `dry_run`.

    Raises `QconvdError`, and `Cancelled` before anything is sent.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # a log is no terminal
    repo, revision = place.destination.removeprefix(HUB), place.revision or "main"
    name = shown(place.destination, place.revision)
    texts: dict[tuple[str, str], bytes] = {}
    with hub.asking("publishing", repo):
        commit = ""
        for _ in range(ROUNDS):
            there = look(hub, repo, commit or revision)
            sending, removing = difference(hub, repo, there, artifacts, described, texts)
            if place.options.get("dry_run"):
                told = _rehearsed(name, there, sending, not there.repository and is_private(hub, place, artifacts))
                print(told, flush=True)
                return {"commit": "", "told": told, "dry_run": True}
            if there.commit and not sending and not removing:
                told = f"published to {name} (commit {there.commit[:8]})"
                print(
                    f"{told}, every file checked from the server's side{'' if commit else ', where it was already'}", flush=True
                )
                return {"commit": there.commit, "told": told, "dry_run": False}
            if cancelled():
                raise Cancelled
            still_ours()
            if not there.commit:
                _make(hub, repo, revision, there, not there.repository and is_private(hub, place, artifacts))
                continue
            commit = _commit(hub, repo, revision, there, artifacts, sending, removing)
    what = "does not hold what was sent, though the server took it; it is tried again later"
    raise HubBusy(what, where=name, fix="look whether somebody else writes to the repository")


def reach(hub: Hub, place: PublishSpec) -> None:
    """Ask for the repository once, so that nothing large is hashed for a server that is away. Raises `QconvdError`."""
    repo = place.destination.removeprefix(HUB)
    with hub.asking("publishing", repo):
        look(hub, repo, place.revision or "main")


def is_private(hub: Hub, place: PublishSpec, artifacts: Sequence[Artifact]) -> bool:
    """Whether a repository that has to be made is to be private: as the recipe says, else as the model's own repository is.

    What not everybody may read there must not be published by oversight. One that cannot be seen any more counts as private.
    """
    asked = place.options.get("private")
    if asked is not None:
        return bool(asked)
    origins = {str(a.manifest.source.get("locator") or "") for a in artifacts}
    for address in map(parse, filter(is_address, origins)):
        try:
            model = hub.model(address.repo)
        except HubRefused:
            return True
        if model.private or model.gated:
            return True
    return False


def look(hub: Hub, repo: str, revision: str) -> There:
    """A branch or commit with the sizes and hashes of all files, as the server answers now."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = hub.api.model_info(repo, revision=revision, files_metadata=True, timeout=hub.timeout)
    except RevisionNotFoundError:
        return There(repository=True)
    except GatedRepoError:  # one of the next kind, too
        raise
    except RepositoryNotFoundError:
        return There(repository=False)
    found = remote_model(info)
    return There(True, found.commit, {f.path: f for f in found.files})


def difference(
    hub: Hub,
    repo: str,
    there: There,
    artifacts: Sequence[Artifact],
    described: Described,
    read: dict[tuple[str, str], bytes],
) -> tuple[list[Sending], list[str]]:
    """What has to be sent, manifests last, and which files of older versions have to go. `read` keeps what was read before."""
    sending = [
        Sending(file.path, artifact.path(file), file.bytes, file.sha256) for artifact in artifacts for file in artifact.files
    ]
    ours = {artifact.place: artifact.manifest for artifact in artifacts}
    for path, manifest in ours.items():
        entry = (there.files or {}).get(path)
        if entry is not None and there.holds(path, entry.size, "", manifest.to_json()):
            read[path, entry.content] = manifest.to_json()
    texts = _texts(hub.api, repo, there, read)
    known = {path: m for path, text in texts.items() if path != CARD and (m := _manifest(text, path)) is not None}
    existing = front_matter.decoded(texts.get(CARD, b""), f"{repo}/{CARD}")
    card = described(list({**known, **ours}.values()), existing, f"{repo}/{CARD}")
    sending.append(_bytes(CARD, card.encode()))
    sending += [_bytes(path, manifest.to_json()) for path, manifest in ours.items()]
    kept = {f.path for m in {**known, **ours}.values() for f in m.files}
    before = {f.path for path, m in known.items() if path in ours for f in m.files}
    removing = sorted(path for path in before - kept if path in (there.files or {}))
    differing = [s for s in sending if not there.holds(s.path, s.size, s.sha256, s.local)]
    _check_foreign(repo, there, differing, known)
    return differing, removing


def _check_foreign(repo: str, there: There, sending: Sequence[Sending], known: Mapping[str, Manifest]) -> None:
    """Raise `HubRefused` if a file that would be replaced is in no manifest there: it is somebody else's."""
    named = {CARD, *known, *(f.path for m in known.values() for f in m.files)}
    for file in sending:
        if file.path in (there.files or {}) and file.path not in named:
            raise HubRefused(
                "is there already and belongs to something else; it is left as it is",
                where=f"{repo}/{file.path}",
                fix="delete or rename it there, or publish to another repository, then `qconvd retry`",
            )


def _make(hub: Hub, repo: str, revision: str, there: There, private: bool) -> None:
    """Make the repository, or in it the branch. A branch begins at the first commit: it holds nothing of other branches."""
    if not there.repository:
        with _permitted(hub, f"make the repository {repo}", f"repositories of {repo.partition('/')[0]}"):
            hub.api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        print(f"{repo}: made, {'private' if private else 'public'}", flush=True)
        return
    first = hub.api.list_repo_commits(repo, revision="main")[-1].commit_id
    with _permitted(hub, f"make a branch in {repo}", f"the repository {repo}"):
        hub.api.create_branch(repo, branch=revision, revision=first, exist_ok=True)


def _commit(
    hub: Hub,
    repo: str,
    revision: str,
    there: There,
    artifacts: Sequence[Artifact],
    sending: Sequence[Sending],
    removing: Sequence[str],
) -> str:
    """One commit of all that differs; returns its id, empty if the branch moved on meanwhile."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    operations: list[Any] = [CommitOperationDelete(path_in_repo=path) for path in removing]
    for file in sending:
        add = CommitOperationAdd(file.path, file.local if isinstance(file.local, bytes) else str(file.local))
        if file.sha256:
            # Of what was verified: the server refuses an object that has become another one since.
            add.upload_info.sha256 = bytes.fromhex(file.sha256)
        operations.append(add)
    title = f"Add {', '.join(a.manifest.artifact for a in artifacts)}"
    about = f"Made by qconvd {__version__} from {artifacts[0].manifest.source.get('name', 'a model')}."
    print(f"{repo}: sending {len(sending)} files, {show_size(sum(s.size for s in sending))}", flush=True)
    try:
        with _permitted(hub, f"write to {repo}", f"the repository {repo}"):
            made = hub.api.create_commit(
                repo, operations, commit_message=title, commit_description=about, revision=revision, parent_commit=there.commit
            )
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", 0) == MOVED_ON:
            return ""
        raise
    except ValueError as error:
        if "README.md" not in str(error):
            raise
        what = f"the Hub does not take the card's metadata: {' '.join(str(error).split())}"
        raise HubRefused(
            what, where=f"{repo}/{CARD}", fix="mend the card there, or the model's own, then `qconvd retry JOB`"
        ) from error
    return str(made.oid)


def _texts(api: HfApi, repo: str, there: There, read: dict[tuple[str, str], bytes]) -> dict[str, bytes]:
    """The card and the manifests that are there, held against the server's hashes; each content is fetched once."""
    wanted = [
        path for path, entry in (there.files or {}).items()
        if (path in (CARD, OWN_NAME) or (path.startswith(f"{SHARED_FOLDER}/") and path.endswith(".json")))
        and entry.size <= MANIFEST_LIMIT
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for path in wanted:
            if (path, (there.files or {})[path].content) in read:
                continue
            local = Path(api.hf_hub_download(repo, path, revision=there.commit, local_dir=folder))
            content = local.read_bytes()
            if not there.holds(path, len(content), hashlib.sha256(content).hexdigest(), content):
                what = "came from the server with other bytes than it says to have; it is tried again later"
                raise HubBusy(what, where=f"{repo}/{path}")
            read[path, (there.files or {})[path].content] = content
    return {path: read[path, (there.files or {})[path].content] for path in wanted}


def _manifest(text: bytes, where: str) -> Manifest | None:
    """A manifest of ours; None for what is only named like one."""
    try:
        return parse_manifest(text, where)
    except QconvdError:
        return None


def _bytes(path: str, content: bytes) -> Sending:
    return Sending(path, content, len(content), hashlib.sha256(content).hexdigest())


def _rehearsed(name: str, there: There, sending: Sequence[Sending], private: bool) -> str:
    count = f"{len(sending)} {'file' if len(sending) == 1 else 'files'}"
    made = "" if there.repository else f"make it ({'private' if private else 'public'}) and "
    return f"dry run: {name}: would {made}send {count}, {show_size(sum(s.size for s in sending))}"


@contextmanager
def _permitted(hub: Hub, what: str, where: str) -> Iterator[None]:
    """Say of a 401 or 403 which permission is missing. It is final."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status not in (401, 403):
            raise
        if hub.token is None:
            fix = "give qconvd a token (HF_TOKEN, or a file: docs/how-to/publish.md), then `qconvd retry JOB`"
            raise HubRefused(f"to {what} the Hub wants a token, and there is none", fix=fix) from error
        if status == 401:
            fix = f"make a new one at {hub.endpoint}/settings/tokens, then `qconvd retry JOB`"
            raise HubRefused(f"to {what} the Hub wants another token than {hub.token}", fix=fix) from error
        fix = f"give it write permission for {where} at {hub.endpoint}/settings/tokens, then `qconvd retry JOB`"
        raise HubRefused(f"{hub.token} may not {what}: it has no permission to write there", fix=fix) from error


__all__ = ["There", "difference", "look", "publish"]
