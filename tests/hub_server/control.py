"""What tests ask of the server itself, beside the Hub's API."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from faults import Fault


def control(what: str, said: dict[str, Any], server: Any) -> dict[str, Any]:
    store, faults = server.store, server.faults
    match what:
        case "push":
            return {"commit": push(server, said)}
        case "settings":
            repo = store.repos[said.pop("repo")]
            for key in ("private", "gated", "disabled", "granted"):
                if key in said:
                    setattr(repo, key, said.pop(key))
            repo.about |= said
        case "move":
            store.repos[said["repo"]].branches[said["branch"]] = said["commit"]
        case "files":
            commit = store.repos[said["repo"]].find(said["revision"])
            return {"files": {p: hashlib.sha256(store.read(f)).hexdigest() for p, f in sorted(commit.files.items())}}
        case "read":
            commit = store.repos[said["repo"]].find(said["revision"])
            return {"hex": store.read(commit.files[said["path"]]).hex()}
        case "commits":
            return {"commits": commits(store, said)}
        case "repos":
            return {"repos": sorted(store.repos)}
        case "about":
            repo = store.repos[said["repo"]]
            return {"private": repo.private, "gated": repo.gated, "branches": repo.branches}
        case "fault":
            faults.add(Fault(**said))
        case "held":
            return {"held": faults.held}
        case "calm":
            faults.calm()
        case "log":
            return {"log": [entry for entry in server.log if re.search(said["match"], entry["request"])]}
        case "forget":
            server.log.clear()
    return {}


def push(server: Any, said: dict[str, Any]) -> str:
    store = server.store
    id, branch = said["repo"], said["branch"]
    repo = store.repos.get(id) or store.create(id, id.partition("/")[0])
    base = repo.find(branch) or repo.head
    files = {path: file for path, file in base.files.items() if path not in said["delete"]}
    folder = Path(said["folder"]) if said["folder"] else None
    for path in sorted(folder.rglob("*")) if folder else ():
        if path.is_file():
            name = str(path.relative_to(folder))
            files[name] = store.put(path.read_bytes(), name)
    for name, text in said["files"].items():
        files[name] = store.put(text.encode(), name)
    before = repo.branches.get(branch, "")
    made = store.commit(repo, branch, files, "pushed", repo.owner)
    server.api.fire(repo, branch, before, made.id)
    return made.id


def commits(store: Any, said: dict[str, Any]) -> list[dict[str, Any]]:
    repo = store.repos[said["repo"]]
    found = []
    for commit in store.history(repo, repo.find(said["branch"])):
        before = repo.commits[commit.parent].files if commit.parent else {}
        paths = [p for p in {**before, **commit.files} if before.get(p) != commit.files.get(p)]
        found.append({"id": commit.id, "title": commit.title, "user": commit.user, "paths": sorted(paths)})
    return found
