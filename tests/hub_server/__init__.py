"""A Hub on this machine: a real server process that the real huggingface_hub client talks to, with faults on demand.

It speaks what the client needs of https://huggingface.co/docs/hub/api for models: information and listings, `resolve` with
byte ranges, repositories and branches, uploads (preupload, Git LFS basic and multipart, commit), webhooks; no Xet. Tokens are
`hf_alice` and `hf_bob`, and they are who they say. What a test asks of the server itself goes to `/_ctl/`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}


class HubServer:
    """A server process with its data in `folder`. Faults and the log are its own, so tests do not share one by accident."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("serve.py")), str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("http://"), "the server did not start"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    # Repositories, from the server's side

    def push(
        self,
        repo: str,
        folder: Path | None = None,
        *,
        branch: str = "main",
        delete: tuple[str, ...] = (),
        texts: Mapping[str, str] | None = None,
    ) -> str:
        """Commit a folder's files, and `files` (their paths as keys, bytes or text as values); returns the commit's id.

        The repository is made if it is not there.
        """
        asked = {
            "repo": repo,
            "folder": str(folder or ""),
            "branch": branch,
            "delete": list(delete),
            "files": dict(texts or {}),
        }
        return str(self._ask("push", asked)["commit"])

    def settings(self, repo: str, **settings: Any) -> None:
        """`private`, `gated` (False, auto, manual), `disabled`, `pipeline_tag`, `license`, `tags`, `parameters`, `granted`."""
        self._ask("settings", {"repo": repo, **settings})

    def move(self, repo: str, branch: str, commit: str) -> None:
        """Point a branch at another commit, as a forced push does."""
        self._ask("move", {"repo": repo, "branch": branch, "commit": commit})

    def files(self, repo: str, revision: str = "main") -> dict[str, str]:
        """Every file of a revision with the sha256 of its content, as it lies on the server's disk."""
        return dict(self._ask("files", {"repo": repo, "revision": revision})["files"])

    def read(self, repo: str, path: str, revision: str = "main") -> bytes:
        return bytes.fromhex(self._ask("read", {"repo": repo, "path": path, "revision": revision})["hex"])

    def commits(self, repo: str, branch: str = "main") -> list[dict[str, Any]]:
        """The commits of a branch, the newest first: `id`, `title`, `user`, `paths` that it changed."""
        return list(self._ask("commits", {"repo": repo, "branch": branch})["commits"])

    def repos(self) -> list[str]:
        return list(self._ask("repos", {})["repos"])

    def about(self, repo: str) -> dict[str, Any]:
        """`private`, `gated`, `branches` of a repository."""
        return dict(self._ask("about", {"repo": repo}))

    # Faults

    def fault(self, match: str, kind: str = "status", **how: Any) -> None:
        """Let the next requests whose `METHOD /path` matches go wrong; see faults.py for the kinds."""
        self._ask("fault", {"match": match, "kind": kind, **how})

    def held(self) -> int:
        """How many requests wait at a fault of kind `hold`."""
        return int(self._ask("held", {})["held"])

    def calm(self) -> None:
        """No faults any more; what is held goes on."""
        self._ask("calm", {})

    def log(self, match: str = "") -> list[dict[str, Any]]:
        """The requests since the last `forget`: `request`, `status`, `user`, `range`, `received`, `sent`, `fault`."""
        return list(self._ask("log", {"match": match})["log"])

    def forget(self) -> None:
        """Empty the log."""
        self._ask("forget", {})

    def _ask(self, what: str, about: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/_ctl/{what}", json.dumps(about).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
            found: dict[str, Any] = json.loads(reply.read())
        return found
