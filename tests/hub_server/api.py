"""The Hub's HTTP API for models, as far as huggingface_hub uses it. Every handler takes a request and returns a reply."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

from repos import LFS_ENDINGS, LFS_FROM, Commit, File, Repo, Store

TOKENS = {"hf_alice": "alice", "hf_bob": "bob", "hf_reader": "alice"}
READ_ONLY = {"hf_reader"}
PART = 8 << 20
MULTIPART_FROM = 32 << 20


@dataclass
class Reply:
    """Status, body and headers; a large body comes from `source` in pieces."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    source: Callable[[int], Iterator[bytes]] | None = None
    size: int = 0

    @classmethod
    def json(cls, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
        return cls(status, json.dumps(data).encode(), headers or {})

    @property
    def length(self) -> int:
        return self.size if self.source else len(self.body)

    def pieces(self, step: int) -> Iterator[bytes]:
        if self.source:
            yield from self.source(step)
        else:
            yield from (self.body[at : at + step] for at in range(0, len(self.body), step))


class Refused(Exception):
    """A reply that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        told = {"X-Error-Message": message or code or str(status), **headers}
        if code:
            told["X-Error-Code"] = code
        self.reply = Reply.json({"error": told["X-Error-Message"]}, status, told)


class Api:
    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self._lock = threading.RLock()
        name = r"(?P<repo>[^/]+/[^/]+)"
        model = f"/api/models/{name}"
        revision = r"(?P<revision>[^/]+)"
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = [
            (method, re.compile(pattern), handler)
            for method, pattern, handler in (
                ("GET", "/api/whoami-v2", self.whoami),
                ("POST", "/api/validate-yaml", lambda request: Reply.json({"errors": [], "warnings": []})),
                ("POST", "/api/repos/create", self.create_repo),
                ("DELETE", "/api/repos/delete", self.delete_repo),
                ("GET", "/api/models", self.list_models),
                ("GET|POST", "/api/settings/webhooks", self.webhooks),
                ("GET", f"{model}/tree/{revision}(?:/(?P<path>.+))?", self.tree),
                ("POST", f"{model}/paths-info/{revision}", self.paths_info),
                ("GET", f"{model}/refs", self.refs),
                ("GET", f"{model}/commits/{revision}", self.commits),
                ("POST", f"{model}/branch/{revision}", self.create_branch),
                ("DELETE", f"{model}/branch/{revision}", self.delete_branch),
                ("PUT", f"{model}/settings", self.settings),
                ("GET", f"{model}/auth-check(?P<write>/write)?", self.auth_check),
                ("POST", f"{model}/preupload/{revision}", self.preupload),
                ("POST", f"{model}/commit/{revision}", self.commit),
                ("GET", f"{model}(?:/revision/{revision})?", self.info),
                ("POST", f"/{name}\\.git/info/lfs/objects/batch", self.lfs_batch),
                ("PUT", r"/_lfs/(?P<oid>\w+)(?:/part/(?P<part>\d+))?", self.lfs_put),
                ("POST", r"/_lfs/(?P<oid>\w+)/complete", self.lfs_complete),
                ("POST", r"/_lfs/(?P<oid>\w+)/verify", self.lfs_verify),
                ("GET|HEAD", f"/{name}/resolve/{revision}/(?P<path>.+)", self.resolve),
            )
        ]

    def reply(self, request: Any) -> Reply:
        for methods, pattern, handler in self._routes:
            if request.method in methods.split("|") and (found := pattern.fullmatch(request.path)):
                try:
                    return handler(request, **{k: v and unquote(v) for k, v in found.groupdict().items()})
                except Refused as refused:
                    return refused.reply
        return Refused(404, message=f"this test server does not know {request.method} {request.path}").reply

    def user(self, headers: Any) -> str | None:
        return TOKENS.get((headers.get("authorization") or "").removeprefix("Bearer "))

    # Who may do what

    def _repo(self, request: Any, id: str, *, write: bool = False, content: bool = False) -> Repo:
        user, said = self.user(request.headers), request.headers.get("authorization")
        if said and not user:
            raise Refused(401, message="Invalid credentials in Authorization header")
        repo = self.store.repos.get(id)
        if repo is None or (repo.private and user != repo.owner):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if repo.disabled:
            raise Refused(403, message="Access to this resource is disabled.")
        if content and repo.gated and user not in (repo.owner, *repo.granted):
            told = f"Access to model {id} is restricted and you are not in the authorized list."
            raise Refused(403 if user else 401, "GatedRepo", f"{told} Visit {self.url}/{id} to ask for access.")
        if write and (user != repo.owner or (said or "").removeprefix("Bearer ") in READ_ONLY):
            message = "Forbidden: you must use a write token to upload to a repository."
            raise Refused(403, message=message)
        return repo

    def _commit(self, request: Any, repo: Repo, revision: str | None) -> Commit:
        found = repo.find(revision or "main")
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if request.stale and revision not in repo.commits:
            found = repo.commits.get(found.parent, found)
        return found

    def whoami(self, request: Any) -> Reply:
        user = self.user(request.headers)
        if not user:
            raise Refused(401, message="Invalid credentials in Authorization header")
        role = "read" if request.headers["authorization"].removeprefix("Bearer ") in READ_ONLY else "write"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return Reply.json(
            {"type": "user", "id": user, "name": user, "fullname": user, "isPro": False, "orgs": [], "auth": auth}
        )

    def auth_check(self, request: Any, repo: str, write: str | None) -> Reply:
        self._repo(request, repo, write=bool(write), content=not write)
        return Reply.json({})

    # What is there

    def info(self, request: Any, repo: str, revision: str | None) -> Reply:
        found = self._repo(request, repo)
        commit = self._commit(request, found, revision)
        return Reply.json(self._info(found, commit, request.query.get("expand", []), "blobs" in request.query))

    def list_models(self, request: Any) -> Reply:
        query, user = request.query, self.user(request.headers)
        author, search = query.get("author", [""])[0], query.get("search", [""])[0].lower()
        start, most = int(query.get("cursor", ["0"])[0]), int(query.get("limit", ["1000"])[0])
        found = [
            repo
            for id, repo in sorted(self.store.repos.items())
            if (not repo.private or repo.owner == user) and (not author or repo.owner == author) and search in id.lower()
        ]
        shown = [
            self._info(r, self._commit(request, r, None), query.get("expand", []), False) for r in found[start : start + most]
        ]
        headers = {}
        if start + most < len(found):
            more = urlencode({**{k: v[0] for k, v in query.items()}, "cursor": start + most})
            headers["Link"] = f'<{self.url}/api/models?{more}>; rel="next"'
        return Reply.json(shown, headers=headers)

    def _info(self, repo: Repo, commit: Commit, expand: list[str], blobs: bool) -> dict[str, Any]:
        tags = [*repo.about.get("tags", []), *([f"license:{repo.about['license']}"] if "license" in repo.about else [])]
        parameters = repo.about.get("parameters")
        known = {
            "sha": commit.id, "lastModified": commit.date, "private": repo.private, "author": repo.owner, "tags": tags,
            "downloads": 0, "likes": 0, "createdAt": repo.created, "gated": repo.gated, "disabled": repo.disabled,
            "pipeline_tag": repo.about.get("pipeline_tag"), "usedStorage": sum(f.size for f in commit.files.values()),
            "safetensors": None if parameters is None else {"parameters": {"BF16": parameters}, "total": parameters},
            "siblings": [self._sibling(path, file, blobs) for path, file in sorted(commit.files.items())],
        }  # fmt: skip
        return {"_id": repo.id, "id": repo.id, **{k: v for k, v in known.items() if not expand or k in expand}}

    def _sibling(self, path: str, file: File, blobs: bool) -> dict[str, Any]:
        if not blobs:
            return {"rfilename": path}
        lfs = {"lfs": {"sha256": file.lfs, "size": file.size, "pointerSize": 134}} if file.lfs else {}
        return {"rfilename": path, "size": file.size, "blobId": file.oid, **lfs}

    def tree(self, request: Any, repo: str, revision: str, path: str | None) -> Reply:
        commit = self._commit(request, self._repo(request, repo, content=True), revision)
        before = f"{path}/" if path else ""
        everything = request.query.get("recursive", [""])[0].lower() == "true"
        found, folders = [], set()
        for name, file in sorted(commit.files.items()):
            if name.startswith(before):
                inner = name[len(before) :].split("/")
                folders |= {before + "/".join(inner[:n]) for n in range(1, len(inner) if everything else min(2, len(inner)))}
                if everything or len(inner) == 1:
                    found.append(self._entry(name, file))
        listed = [
            {"type": "directory", "path": f, "oid": hashlib.sha1(f.encode()).hexdigest(), "size": 0} for f in sorted(folders)
        ]
        return Reply.json(listed + found)

    def paths_info(self, request: Any, repo: str, revision: str) -> Reply:
        commit = self._commit(request, self._repo(request, repo, content=True), revision)
        body, kind = request.body(), request.headers.get("content-type", "")
        if "json" in kind:
            paths = json.loads(body).get("paths", [])
        else:
            from urllib.parse import parse_qs

            paths = parse_qs(body.decode()).get("paths", [])
        return Reply.json([self._entry(p, commit.files[p]) for p in paths if p in commit.files])

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        lfs = {"lfs": {"oid": file.lfs, "size": file.size, "pointerSize": 134}} if file.lfs else {}
        return {"type": "file", "path": path, "size": file.size, "oid": file.oid, **lfs}

    def refs(self, request: Any, repo: str) -> Reply:
        found = self._repo(request, repo)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in found.branches.items()]
        return Reply.json({"branches": branches, "tags": [], "converts": [], "pullRequests": []})

    def commits(self, request: Any, repo: str, revision: str) -> Reply:
        found = self._repo(request, repo)
        return Reply.json([
            {"id": c.id, "title": c.title, "message": "", "date": c.date, "authors": [{"user": c.user}]}
            for c in self.store.history(found, self._commit(request, found, revision))
        ])  # fmt: skip

    def resolve(self, request: Any, repo: str, revision: str, path: str) -> Reply:
        found = self._repo(request, repo, content=True)
        commit = self._commit(request, found, revision)
        file = commit.files.get(path)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.id})
        headers = {
            "X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"',
            "Content-Type": "application/octet-stream",
        }  # fmt: skip
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.lfs}"', "X-Linked-Size": str(file.size)}
        start, end, status = 0, file.size, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            start, end, status = int(wanted[1]), min(file.size, int(wanted[2] or file.size) + 1), 206
            if start >= file.size:
                return Reply(416, b"", {"Content-Range": f"bytes */{file.size}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"

        def pieces(step: int) -> Iterator[bytes]:
            for at in range(start, end, step):
                yield self.store.read(file, at, min(end, at + step))

        return Reply(status, headers=headers, source=pieces, size=end - start)

    # Repositories and branches

    def create_repo(self, request: Any) -> Reply:
        said, user = request.json(), self.user(request.headers)
        if not user:
            raise Refused(401, message="Invalid credentials in Authorization header")
        id = f"{said.get('organization') or user}/{said['name']}"
        with self._lock:
            if id in self.store.repos:
                return Reply.json({"error": "You already created this model repo", "url": f"{self.url}/{id}"}, 409)
            writes = request.headers["authorization"].removeprefix("Bearer ") not in READ_ONLY
            if id.partition("/")[0] != user or not writes:
                raise Refused(
                    403, message="You don't have the rights to create a model under the namespace " + id.partition("/")[0]
                )
            self.store.create(id, user, said.get("visibility") == "private" or bool(said.get("private")))
        return Reply.json({"url": f"{self.url}/{id}", "name": id, "id": id})

    def delete_repo(self, request: Any) -> Reply:
        said, user = request.json(), self.user(request.headers)
        id = f"{said.get('organization') or user}/{said['name']}"
        self._repo(request, id, write=True)
        del self.store.repos[id]
        return Reply.json({})

    def create_branch(self, request: Any, repo: str, revision: str) -> Reply:
        found = self._repo(request, repo, write=True)
        if revision in found.branches:
            raise Refused(409, message="Reference already exists")
        found.branches[revision] = self._commit(request, found, (request.json() or {}).get("startingPoint") or "main").id
        return Reply.json({})

    def delete_branch(self, request: Any, repo: str, revision: str) -> Reply:
        found = self._repo(request, repo, write=True)
        if found.branches.pop(revision, None) is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return Reply.json({})

    def settings(self, request: Any, repo: str) -> Reply:
        found, said = self._repo(request, repo, write=True), request.json()
        if "visibility" in said or "private" in said:
            found.private = said.get("visibility") == "private" or bool(said.get("private"))
        found.gated = said.get("gated", found.gated)
        return Reply.json(said)

    # Uploads

    def preupload(self, request: Any, repo: str, revision: str) -> Reply:
        commit = self._commit(request, self._repo(request, repo, write=True), revision)
        files = []
        for said in request.json()["files"]:
            large = said["size"] >= LFS_FROM or said["path"].endswith(LFS_ENDINGS)
            there = commit.files.get(said["path"])
            oid = {"oid": there.etag} if there else {}
            files.append({"path": said["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **oid})
        return Reply.json({"files": files, "commitOid": commit.id})

    def lfs_batch(self, request: Any, repo: str) -> Reply:
        self._repo(request, repo, write=True)
        said, objects, transfer = request.json(), [], "basic"
        for one in said["objects"]:
            place = f"{self.url}/_lfs/{one['oid']}"
            told: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if not self.store.lfs(one["oid"]).exists():  # without actions the client takes it for uploaded
                upload: dict[str, Any] = {"href": place}
                if one["size"] >= MULTIPART_FROM and "multipart" in said.get("transfers", []):
                    transfer = "multipart"
                    parts = {str(n): f"{place}/part/{n}" for n in range(1, -(-one["size"] // PART) + 1)}
                    upload = {"href": f"{place}/complete", "header": {"chunk_size": str(PART), **parts}}
                told["actions"] = {"upload": upload, "verify": {"href": f"{place}/verify"}}
            objects.append(told)
        return Reply.json({"transfer": transfer, "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def lfs_put(self, request: Any, oid: str, part: str | None) -> Reply:
        place = self.store.lfs(oid)
        draft = place.with_name(f"{oid}.{part or 'whole'}.{threading.get_ident()}")
        sha256 = hashlib.sha256()
        with draft.open("wb") as file:
            for piece in request.pieces():
                file.write(piece)
                sha256.update(piece)
        if part:
            draft.replace(place.with_name(f"{oid}.part{part}"))
            return Reply(headers={"ETag": f'"{sha256.hexdigest()[:32]}"'})
        return self._landed(draft, oid, sha256.hexdigest())

    def lfs_complete(self, request: Any, oid: str) -> Reply:
        place, sha256 = self.store.lfs(oid), hashlib.sha256()
        parts = [place.with_name(f"{oid}.part{p['partNumber']}") for p in request.json()["parts"]]
        draft = place.with_name(f"{oid}.whole")
        with draft.open("wb") as file:
            for path in parts:
                data = path.read_bytes()
                file.write(data)
                sha256.update(data)
        return self._landed(draft, oid, sha256.hexdigest())

    def _landed(self, draft: Any, oid: str, sha256: str) -> Reply:
        if sha256 != oid:
            draft.unlink()
            raise Refused(400, message="the content is not what its sha256 says")
        draft.replace(self.store.lfs(oid))
        return Reply.json({})

    def lfs_verify(self, request: Any, oid: str) -> Reply:
        place = self.store.lfs(oid)
        if not place.exists() or place.stat().st_size != request.json()["size"]:
            raise Refused(404, message="the object is not there")
        return Reply.json({})

    def commit(self, request: Any, repo: str, revision: str) -> Reply:
        found = self._repo(request, repo, write=True)
        user = self.user(request.headers) or ""
        with self._lock:
            if revision not in found.branches:
                raise Refused(404, "RevisionNotFound", "Invalid rev id")
            head = found.commits[found.branches[revision]]
            files, title = dict(head.files), ""
            for line in request.body().splitlines():
                said = json.loads(line)
                key, value = said["key"], said["value"]
                if key == "header":
                    title = value.get("summary", "")
                    if value.get("parentCommit") and not head.id.startswith(value["parentCommit"]):
                        raise Refused(412, message="A commit has happened since. Please refresh and try again.")
                elif key == "file":
                    files[value["path"]] = self.store.put(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    if not self.store.lfs(value["oid"]).exists():
                        raise Refused(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
                    files[value["path"]] = self.store.large(value["oid"])
                elif key == "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refused(404, "EntryNotFound", "A file with this name does not exist")
                elif key == "deletedFolder":
                    files = {p: f for p, f in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
            # As the Hub: what changes nothing is no commit.
            made = head if files == head.files else self.store.commit(found, revision, files, title, user)
        if made is not head:
            self.fire(found, revision, head.id, made.id)
        url = f"{self.url}/{repo}/commit/{made.id}"
        return Reply.json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})

    # Webhooks

    def webhooks(self, request: Any) -> Reply:
        if not self.user(request.headers):
            raise Refused(401, message="Invalid credentials in Authorization header")
        if request.method == "GET":
            return Reply.json(list(self.store.webhooks.values()))
        said = request.json()
        id = f"webhook{len(self.store.webhooks)}"
        self.store.webhooks[id] = {
            "id": id, "url": said["url"], "watched": said["watched"], "domains": said.get("domains", []),
            "secret": said.get("secret"), "disabled": False,
        }  # fmt: skip
        return Reply.json({"webhook": self.store.webhooks[id]})

    def fire(self, repo: Repo, branch: str, old: str, new: str) -> None:
        """Tell whoever has a webhook on the repository or its owner."""
        for hook in list(self.store.webhooks.values()):
            if any(w["name"] in (repo.id, repo.owner) for w in hook["watched"]):
                threading.Thread(target=self._post, args=(hook, repo, branch, old, new), daemon=True).start()

    def _post(self, hook: dict[str, Any], repo: Repo, branch: str, old: str, new: str) -> None:
        body = {
            "event": {"action": "update", "scope": "repo.content"},
            "repo": {
                "type": "model", "name": repo.id, "id": repo.id, "private": repo.private, "headSha": new,
                "url": {"web": f"{self.url}/{repo.id}", "api": f"{self.url}/api/models/{repo.id}"}, "owner": {"id": repo.owner},
            },
            "updatedRefs": [{"ref": f"refs/heads/{branch}", "oldSha": old, "newSha": new}],
            "webhook": {"id": hook["id"], "version": 3},
        }  # fmt: skip
        secret = {"X-Webhook-Secret": hook["secret"]} if hook["secret"] else {}
        request = urllib.request.Request(hook["url"], json.dumps(body).encode(), {"Content-Type": "application/json", **secret})
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
        except OSError as error:
            print(f"webhook failed: {error}", flush=True)
