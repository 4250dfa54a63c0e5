"""A stand-in of the Hub on 127.0.0.1: what huggingface_hub asks when it publishes or downloads, and no more.

Models and data sets (under ``datasets/org/name``), files in Git and in LFS (https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md),
commits, branches and collections, in memory. Requests are kept, so that tests can tell what was sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_stand_in"
ACCOUNT = "org"


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, str]] = field(default_factory=lambda: {"main": {}})
    commits: list[dict[str, Any]] = field(default_factory=list)
    earlier: dict[str, dict[str, str]] = field(default_factory=dict)


class StandIn:
    """The state of the stand-in, and what went wrong on purpose."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.refused: set[str] = set()  # of LFS objects, by sha256
        self.stuck: set[str] = set()
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def content(self, repo: str, path: str, branch: str = "main") -> bytes:
        return self.blobs[self.repos[repo].branches[branch][path]]

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return {path: self.blobs[oid] for path, oid in self.repos[repo].branches[branch].items()}

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files to a branch, as somebody else would; return the commit."""
        there = self.repos.setdefault(repo, Repo(False, branches={})).branches.setdefault(
            branch, {}
        )
        for path, data in files.items():
            self.blobs[git_hash(data)] = data
            there[path] = git_hash(data)
        self.repos[repo].earlier[self.commit_of(repo, branch)] = dict(there)
        return self.commit_of(repo, branch)

    def commit_of(self, repo: str, branch: str) -> str:
        files = sorted(self.repos[repo].branches[branch].items())
        return hashlib.sha1(json.dumps([repo, files]).encode()).hexdigest()

    def find(self, repo: str, revision: str) -> dict[str, str] | None:
        """The files of a branch or a commit."""
        found = self.repos[repo]
        current = {self.commit_of(repo, b): files for b, files in found.branches.items()}
        return (found.branches | found.earlier | current).get(revision)

    def uploads(self) -> list[str]:
        """The LFS objects whose bytes were sent."""
        return [r.split("/")[-1] for r in self.requests if r.startswith("PUT /lfs/")]


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def answer(self, data: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        more = {"X_Error_Code": code} if code else {}
        self.answer({"error": message}, status, X_Error_Message=message, **more)

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
        if self.command == "PUT" and path.startswith("/lfs/"):
            return self.upload(path.rsplit("/", 1)[1], body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "Invalid credentials in Authorization header")
        names = path.strip("/").split("/")
        match self.command, names:
            case "GET", ["api", "whoami-v2"]:
                self.answer({"name": ACCOUNT, "type": "user"})
            case "POST", ["api", "repos", "create"]:
                self.create(json.loads(body))
            case "POST", ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case "GET", ["api", "models"]:
                self.search(parse_qs(parts.query)["search"][0])
            case "GET", ["api", "models", org, name, *rest] if rest[:1] != ["tree"]:
                self.info(f"{org}/{name}", "/".join(rest[1:]) if rest else "main")
            case "POST", ["api", "models", org, name, "branch", branch]:
                repo = self.hub.repos[f"{org}/{name}"]
                if branch in repo.branches:
                    return self.refuse(409, "Reference already exists")
                repo.branches[branch] = dict(repo.branches["main"])
                self.answer({})
            case "POST", ["api", "models", org, name, "preupload", branch]:
                self.preupload(self.hub.repos[f"{org}/{name}"], branch, json.loads(body))
            case "POST", [org, name, "info", "lfs", "objects", "batch"]:
                self.batch(json.loads(body))
            case "POST", ["api", "models", org, name, "commit", branch]:
                self.commit(f"{org}/{name}", branch, body)
            case "GET", ["api", "datasets", org, name, *rest]:
                self.dataset(f"datasets/{org}/{name}", rest)
            case "GET", ["api", "models"]:
                self.search(parse_qs(parts.query)["search"][0])
            case "GET", ["api", "models", org, name, "tree", commit]:
                self.tree(f"{org}/{name}", commit)
            case (("GET" | "HEAD"), ["datasets", org, name, "resolve", *rest]):
                self.resolve(f"datasets/{org}/{name}", parts.path)
            case (("GET" | "HEAD"), [org, name, "resolve", *rest]):
                self.resolve(f"{org}/{name}", parts.path)
            case "GET", ["api", "collections"]:
                owner = parse_qs(parts.query)["owner"][0]
                found = [c for c in self.hub.collections.values() if c["owner"]["name"] == owner]
                self.answer([{k: v for k, v in c.items() if k != "position"} for c in found])
            case "POST", ["api", "collections"]:
                self.collect(json.loads(body))
            case "GET", ["api", "collections", org, name]:
                self.answer(self.hub.collections[f"{org}/{name}"])
            case "POST", ["api", "collections", org, name, "items"]:
                self.add(f"{org}/{name}", json.loads(body))
            case _:
                self.refuse(404, f"the stand-in knows no {self.command} {path}")
        return None

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def search(self, text: str) -> None:
        """Models whose names contain a text."""
        names = [name for name in self.hub.repos if text.lower() in name.lower()]
        facts = {
            "downloads": 5,
            "gated": False,
            "safetensors": {"parameters": {"F32": 7}, "total": 7},
        }
        self.answer([{"id": name, **facts, "library_name": "transformers"} for name in names])

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or ACCOUNT}/{asked['name']}"
        if not name.startswith(f"{ACCOUNT}/"):
            return self.refuse(403, "You don't have the rights to create a model there")
        if name in self.hub.repos:
            return self.answer({"url": f"{self.hub.url}/{name}", "error": "it is there"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private)
        return self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def info(self, name: str, branch: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.refuse(404, "Repository not found", "RepoNotFound")
        files = self.hub.find(name, branch)
        if files is None:
            return self.refuse(404, "Invalid rev id", "RevisionNotFound")
        siblings = [{"rfilename": path} for path in files]
        sha = self.hub.commit_of(name, branch) if branch in repo.branches else branch
        return self.answer(
            {
                "id": name.removeprefix("datasets/"),
                "private": repo.private,
                "sha": sha,
                "siblings": siblings,
                "tags": [],
            }
        )

    def dataset(self, name: str, rest: list[str]) -> None:
        if rest[:1] == ["tree"]:
            return self.tree(name, rest[1])
        return self.info(name, "/".join(rest[1:]) if rest else "main")

    def tree(self, name: str, commit: str) -> None:
        files = self.hub.find(name, commit) or {}
        self.answer(
            [
                {"type": "file", "path": path, "size": len(self.hub.blobs[oid]), "oid": oid}
                for path, oid in files.items()
            ]
        )

    def resolve(self, name: str, path: str) -> None:
        """A file, by the escaped path: a revision's slashes are escaped, a file's are not."""
        escaped, _, file = path.partition("/resolve/")[2].partition("/")
        revision = unquote(escaped)
        files = self.hub.find(name, revision) if name in self.hub.repos else None
        oid = (files or {}).get(unquote(file))
        if oid is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        body = self.hub.blobs[oid]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{oid}"')
        named = revision in self.hub.repos[name].branches
        commit = self.hub.commit_of(name, revision) if named else revision
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        return None

    def preupload(self, repo: Repo, branch: str, asked: dict[str, Any]) -> None:
        there = repo.branches[branch]
        self.answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                        "oid": there.get(file["path"]),
                    }
                    for file in asked["files"]
                ]
            }
        )

    def batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for each in asked["objects"]:
            found: dict[str, Any] = dict(each)
            if each["oid"] not in self.hub.blobs:
                found["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            objects.append(found)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str, body: bytes) -> None:
        if oid in self.hub.stuck:
            self.hub.released.wait(60)
            self.close_connection = True
            return None
        if oid in self.hub.refused or hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "the upload broke off")
        self.hub.blobs[oid] = body
        return self.answer({})

    def commit(self, name: str, branch: str, body: bytes) -> None:
        repo = self.hub.repos[name]
        lines = [json.loads(line) for line in body.splitlines()]
        files = dict(repo.branches[branch])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    data = base64.b64decode(value["content"])
                    files[value["path"]] = git_hash(data)
                    self.hub.blobs[git_hash(data)] = data
                case "lfsFile":
                    assert value["oid"] in self.hub.blobs, "committed before it was sent"
                    files[value["path"]] = value["oid"]
                case "deletedFile":
                    del files[value["path"]]
        repo.branches[branch] = files
        repo.commits.append({"branch": branch, "lines": lines})
        oid = hashlib.sha1(body).hexdigest()
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url})

    def collect(self, asked: dict[str, Any]) -> None:
        slug = f"{asked['namespace']}/{asked['title'].lower().replace(' ', '-')}-0123456789abcdef"
        self.hub.collections[slug] = {
            "slug": slug,
            "title": asked["title"],
            "owner": {"name": asked["namespace"]},
            "items": [],
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": asked["private"],
            "theme": "green",
            "upvotes": 0,
            "description": None,
        }
        self.answer(self.hub.collections[slug])

    def add(self, slug: str, asked: dict[str, Any]) -> None:
        items = self.hub.collections[slug]["items"]
        if any(item["id"] == asked["item"]["id"] for item in items):
            return self.refuse(409, "already in the collection")
        items.append({"_id": str(len(items)), **asked["item"], "position": len(items)})
        return self.answer(self.hub.collections[slug])


def use(hub: StandIn, monkeypatch: pytest.MonkeyPatch, cache: Path | None = None) -> None:
    """Point huggingface_hub at a stand-in, and at a cache of its own."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    file = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", file)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if cache is not None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A stand-in that runs while the block does."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
