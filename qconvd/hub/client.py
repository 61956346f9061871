"""Everything that is asked of the Hub goes through here: one place for the endpoint, the token, timeouts and errors.

huggingface_hub is imported when the first question is asked: a daemon that watches folders only never pays for it. Whatever
goes wrong becomes one of two errors (see `told`): `HubRefused`, which no retry mends, or `HubBusy`, with the seconds that the
server asks for. Calls that this class has no method for are made with `api` inside `asking`.
"""

from __future__ import annotations

import email.utils
import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qconvd.errors import HubBusy, HubRefused, OutOfSpace, QconvdError
from qconvd.hub.address import MAIN, SCHEME
from qconvd.hub.tokens import Token, hub_token, redacted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ENDPOINT = "https://huggingface.co"
TIMEOUT = 60.0
"""Seconds without a byte from the server after which a call is given up."""
CONNECT_SECONDS = 15.0
LONGEST_WISH = 24 * 3600.0
"""Seconds: whoever asks to wait longer is asked once a day."""
PIECE = 64 << 10
PAGE = 1000
"""Models that one listing of an author may hold."""
EXPAND = ("sha", "lastModified", "private", "gated", "disabled", "tags", "pipeline_tag", "safetensors")


class Access(Protocol):
    """What the configuration says of the Hub; what a worker gets in its spec."""

    @property
    def endpoint(self) -> str: ...
    @property
    def token_file(self) -> Path | None: ...
    @property
    def timeout(self) -> float: ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a commit. `sha256` is known of large files (Git LFS, Xet), `oid` is git's id of all others."""

    path: str
    size: int
    sha256: str = ""
    oid: str = ""

    @property
    def content(self) -> str:
        """What changes with the content."""
        return self.sha256 or self.oid

    def hasher(self) -> hashlib._Hash:
        """What gives `content` when it was fed the file: sha256, or for a small file git's id of a blob."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A repository at one commit. `files` are there only where they were asked for."""

    repo: str
    commit: str
    private: bool = False
    gated: bool = False
    tags: tuple[str, ...] = ()
    pipeline: str = ""
    parameters: int | None = None
    """Weights, if the Hub knows: it counts safetensors only."""
    files: tuple[RemoteFile, ...] = ()

    @property
    def license(self) -> str:
        return next((t.removeprefix("license:") for t in self.tags if t.startswith("license:")), "")


class Hub:
    """A Hub and who asks. One instance per process and configuration; methods may be called from several threads."""

    def __init__(self, endpoint: str = ENDPOINT, token: Token | None = None, timeout: float = TIMEOUT) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.timeout = timeout

    @classmethod
    def of(cls, access: Access) -> Hub:
        """As the configuration says. Raises `QconvdError` if the token's file cannot be read."""
        endpoint = access.endpoint if access.endpoint != ENDPOINT else os.environ.get("HF_ENDPOINT") or ENDPOINT
        return cls(endpoint, hub_token(access.token_file), access.timeout)

    @cached_property
    def api(self) -> HfApi:
        """huggingface_hub's own client, with timeouts also for the calls that take none."""
        import huggingface_hub
        from huggingface_hub.utils import _http

        def client() -> Any:
            made = _http.default_client_factory()
            made.timeout = type(made.timeout)(self.timeout, connect=min(CONNECT_SECONDS, self.timeout))
            return made

        # It would tell of each request with its address, and where files are sent on to, the address is a key to them.
        for name in ("httpx", "httpx2", "httpcore", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # It comes with a handler of its own, past the daemon's log; what it says is passed on to ours anyway.
        logging.getLogger("huggingface_hub").handlers.clear()
        huggingface_hub.set_client_factory(client)
        return huggingface_hub.HfApi(endpoint=self.endpoint, token=self.token.value if self.token else False)

    def page(self, repo: str) -> str:
        """The repository's page for people, where conditions are accepted."""
        return f"{self.endpoint}/{repo}"

    def commit_of(self, repo: str, revision: str = MAIN) -> str:
        """The commit that a branch, tag or commit stands for now: one small request."""
        return self.model(repo, revision, expand=("sha",)).commit

    def model(self, repo: str, revision: str = MAIN, expand: Sequence[str] = EXPAND) -> RemoteModel:
        """What the Hub says of a repository, without its files: one request."""
        with self.asking("asking for it", repo):
            api = self.api
            return remote_model(api.model_info(repo, revision=revision, timeout=self.timeout, expand=list(expand)))  # type: ignore[arg-type]

    def listed(self, repo: str, revision: str) -> RemoteModel:
        """A repository with every file of a revision, their sizes and hashes: one request."""
        with self.asking("asking for its files", repo):
            api = self.api
            return remote_model(api.model_info(repo, revision=revision, timeout=self.timeout, files_metadata=True))

    def may_read(self, repo: str) -> None:
        """Raise `HubRefused` unless files may be read: a gated repository tells its name and files to everybody."""
        with self.asking("asking for access to it", repo):
            self._get(f"/api/models/{repo}/auth-check", {})

    def models_of(self, author: str) -> list[RemoteModel]:
        """All models of a user or an organisation, each at its main branch: one request for each thousand."""
        found: list[RemoteModel] = []
        with self.asking("listing the models", author):
            reply = self._get("/api/models", {"author": author, "limit": PAGE, "expand": list(EXPAND)})
            asked = set()
            while True:
                found += [_entry(entry) for entry in reply.json()]
                more = reply.links.get("next", {}).get("url")
                if not more or more in asked:
                    return found
                asked.add(more)
                reply = self._get(self._here(more), {})

    def read(self, repo: str, commit: str, path: str, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start`, fewer only at its end. Nothing else of the file is fetched."""
        from urllib.parse import quote

        if count <= 0:
            return b""
        with self.asking(f"reading {path}", repo):
            place = f"/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"
            data = bytearray()
            # Compressed on the way, some servers forget about ranges.
            headers = {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
            with self._begun(place, {}, headers) as reply:
                # A server, or a proxy on the way, that knows no ranges sends all of a file: no more of it is taken.
                before = 0 if reply.status_code == 206 else start
                for piece in reply.iter_bytes(PIECE):
                    data += piece[before:]
                    before = max(0, before - len(piece))
                    if len(data) >= count:
                        break
            return bytes(data[:count])

    @contextmanager
    def asking(self, doing: str, repo: str) -> Iterator[None]:
        """Turn whatever a call of huggingface_hub raises into a `QconvdError`; `repo` is what it is about."""
        try:
            yield
        except QconvdError:
            raise
        except Exception as error:
            found = told(error, doing, repo, self)
            if found is None:
                raise
            raise found from error

    def _get(self, place: str, query: Mapping[str, Any]) -> Any:
        """One GET, with the whole body."""
        with self._begun(place, query) as reply:
            reply.read()
        return reply

    @contextmanager
    def _begun(self, place: str, query: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """One GET whose body is still to come, without the client's own retries: whoever asks decides when to ask again."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

        _ = self.api  # sets the timeouts
        told = {**build_hf_headers(token=self.token.value if self.token else False), **(headers or {})}
        with get_session().stream(
            "GET", f"{self.endpoint}{place}", params=query or None, headers=told, timeout=self.timeout, follow_redirects=True
        ) as reply:
            if reply.is_error:
                reply.read()
            hf_raise_for_status(reply)
            yield reply

    def _here(self, url: str) -> str:
        """The place that a link names, on this Hub: a mirror may pass on links to another, which has no right to our token."""
        from urllib.parse import urlsplit

        if url.startswith(f"{self.endpoint}/"):
            return url.removeprefix(self.endpoint)
        parts = urlsplit(url)
        return f"{parts.path}?{parts.query}"


def told(error: BaseException, doing: str, repo: str, hub: Hub) -> QconvdError | None:
    """What an exception of huggingface_hub means; None for a defect of ours.

    Final are 401, 403, 404 and other refusals; passing are 408, 409, 429, 5xx and everything that happens to a connection.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    where = f"{SCHEME}{repo}"
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return HubRefused("the Hub may not be asked: HF_HUB_OFFLINE is set", where=where, fix="unset it and restart qconvd")
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return OutOfSpace(f"the disk is full while {doing}", where=where, fix="make room, or choose another `hub.cache`")
    reply = next((r for one in chain if (r := getattr(one, "response", None)) is not None), None)
    if reply is not None:
        return _answered(reply, names, doing, where, repo, hub)
    if any(isinstance(one, json.JSONDecodeError) for one in chain):
        what = f"{hub.endpoint} answers, while {doing}, with something that no Hub says"
        fix = "look whether a proxy or a login page stands in between, and at `hub.endpoint`; it is tried again by itself"
        return HubBusy(what, where=where, fix=fix)
    if names & {"HTTPError", "RequestError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError"} or _transport(chain):
        words = _words(chain, hub)
        fix = "check the network and `hub.endpoint`"
        if "/xet-" in words:
            fix += "; a server that knows no Xet needs HF_HUB_DISABLE_XET=1 in qconvd's environment"
        return HubBusy(f"{hub.endpoint} cannot be reached while {doing}: {words}", where=where, fix=fix, reached=False)
    return None


def seconds_of(headers: Mapping[str, str], now: float | None = None) -> float:
    """How long a server asks to wait: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), or the Hub's `RateLimit`."""
    after = headers.get("retry-after") or headers.get("Retry-After") or ""
    if re.fullmatch(r"\d+(\.\d+)?", after.strip()):
        return min(float(after), LONGEST_WISH)
    if after:
        try:
            wish = email.utils.parsedate_to_datetime(after).timestamp() - (time.time() if now is None else now)
            return min(max(0.0, wish), LONGEST_WISH)
        except (ValueError, TypeError, OverflowError):
            return 0.0
    limit = headers.get("ratelimit") or headers.get("RateLimit") or ""
    if re.search(r"r=0\b", limit) and (reset := re.search(r"t=(\d+)", limit)):
        return min(float(reset[1]), LONGEST_WISH)
    return 0.0


def _answered(reply: Any, names: set[str], doing: str, where: str, repo: str, hub: Hub) -> QconvdError:
    status, code = int(reply.status_code), reply.headers.get("X-Error-Code", "")
    message = redacted(reply.headers.get("X-Error-Message", "") or f"HTTP {status}", hub.token)[:300]
    who = f"with {hub.token}" if hub.token else "without a token"
    if code == "GatedRepo" or "GatedRepoError" in names:
        account = f"with the account of {hub.token}" if hub.token else "and give qconvd a token of that account (HF_TOKEN)"
        fix = f"accept its conditions at {hub.page(repo)} {account}"
        return HubRefused("is gated: its conditions were not accepted", where=where, fix=fix)
    if code == "RevisionNotFound" or "RevisionNotFoundError" in names:
        return HubRefused("has no such revision", where=where, fix=f"its branches: {hub.page(repo)}/tree/main")
    if code == "EntryNotFound":
        return HubRefused(f"a file is not there any more ({doing})", where=where, fix=f"look at {hub.page(repo)}/tree/main")
    if status == 401 and (hub.token and "credentials" in message.lower()):
        fix = f"make a new token at {hub.endpoint}/settings/tokens"
        return HubRefused(f"the Hub does not know {hub.token}", where=where, fix=fix)
    if code == "RepoNotFound" or status in (401, 404):
        fix = f"look at {hub.page(repo)}; a private one needs a token that may read it (it was asked {who})"
        return HubRefused("is not there, or is private", where=where, fix=fix)
    if status in (408, 409, 425, 429) or status >= 500:
        seconds = seconds_of(reply.headers)
        wish = f"; it asks to wait {seconds:g} s" if seconds else ""
        words = "asks for fewer requests" if status == 429 else f"is busy ({message})"
        return HubBusy(f"the Hub {words} while {doing}{wish}", where=where, seconds=seconds)
    fix = f"it was asked {who}; see what the token may do at {hub.endpoint}/settings/tokens"
    return HubRefused(f"the Hub refuses, while {doing}: {message}", where=where, fix=fix)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _transport(chain: Sequence[BaseException]) -> bool:
    """What only a broken transfer looks like: a part of a large file (RuntimeError), a reply of another length (OSError)."""
    texts = " ".join(str(one) for one in chain)
    return any(isinstance(one, RuntimeError | OSError | ValueError) for one in chain) and any(
        words in texts
        for words in ("Consistency check failed", "uploading", "upload part", "Xet", "CAS", "Force download failed")
    )


def _words(chain: Sequence[BaseException], hub: Hub) -> str:
    """The first cause that says something, in one line."""
    for one in reversed(chain):
        if text := " ".join(str(one).split()):
            return redacted(text, hub.token)[:200]
    return type(chain[0]).__name__


def remote_model(info: Any) -> RemoteModel:
    """What huggingface_hub says of a repository, its files if they were asked for."""
    files = []
    for one in info.siblings or ():
        lfs = one.lfs
        files.append(RemoteFile(one.rfilename, int(one.size or 0), lfs.sha256 if lfs else "", "" if lfs else one.blob_id or ""))
    return RemoteModel(
        info.id,
        info.sha or "",
        private=bool(info.private),
        gated=bool(info.gated),
        tags=tuple(info.tags or ()),
        pipeline=info.pipeline_tag or "",
        parameters=info.safetensors.total if info.safetensors else None,
        files=tuple(files),
    )


def _entry(said: Mapping[str, Any]) -> RemoteModel:
    """A line of a listing."""
    counted = said.get("safetensors") or {}
    return RemoteModel(
        str(said["id"]),
        str(said.get("sha") or ""),
        private=bool(said.get("private")),
        gated=bool(said.get("gated")),
        tags=tuple(map(str, said.get("tags") or ())),
        pipeline=str(said.get("pipeline_tag") or ""),
        parameters=int(counted["total"]) if "total" in counted else None,
    )
