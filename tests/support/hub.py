"""A stand-in of the Hugging Face hub's HTTP API on loopback, which misbehaves on request."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from urllib.parse import unquote

from tests.support.server import QuietHandler, QuietServer, hang_up


class Hub:
    """What huggingface.co answers for model repositories, as its client asks: files, commits and large files (LFS).

    commits: of each repository, {name: bytes} after every commit. token: who may write, and read what is private.
    `answer(handler, number)` may answer GET number of a file in another way, and returns whether it has.
    """

    TOKEN = "hf_s3cret"

    def __init__(self):
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.answer: Callable = lambda handler, number: False
        self.requests: list[tuple[str, str]] = []
        self.gets = 0
        self.large: dict[str, bytes] = {}
        self._http = QuietServer(_Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """The commit's hash, after which the repository has these files beside those that it had."""
        commits = self.commits.setdefault(repo, [])
        commits.append({**(commits[-1] if commits else {}), **files})
        return self.hash(repo, len(commits) - 1)

    @staticmethod
    def hash(repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(hash, files) of a revision: main, or a commit."""
        for number, files in enumerate(self.commits[repo]):
            if revision == self.hash(repo, number) or (revision == "main" and number == len(self.commits[repo]) - 1):
                return self.hash(repo, number), files
        return None

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()


class _Handler(QuietHandler):
    def reply(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value, status: int = 200):
        self.reply(status, json.dumps(value).encode(), Content_Type="application/json")

    def fail(self, status: int, code: str):
        self.reply(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {Hub.TOKEN}"

    def do_HEAD(self):
        self.file()

    def do_GET(self):
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(/revision/main)?", self.path.partition("?")[0]):
            if match[1] not in self.server.owner.commits:
                return self.fail(404, "RepoNotFound")
            commit, files = self.server.owner.at(match[1], "main")
            return self.json({"id": match[1], "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        return self.file()

    def file(self):
        hub = self.server.owner
        hub.requests.append((self.command, self.path))
        repo, revision, name = map(
            unquote, re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.*)", self.path).groups()
        )
        if repo not in hub.commits or (repo in hub.private and not self.known):
            return self.fail(401, "RepoNotFound")
        if (found := hub.at(repo, revision)) is None:
            return self.fail(404, "RevisionNotFound")
        commit, files = found
        if name not in files:
            return self.fail(404, "EntryNotFound")
        data = files[name]
        about = {"ETag": f'"{commit}-{len(data)}"', "X_Repo_Commit": commit}
        if self.command == "HEAD":
            return self.reply(200, data, **about)
        hub.gets += 1
        if hub.answer(self, hub.gets - 1):
            return None
        return serve_range(self, data, **about)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self):
        self.server.owner.large[self.path.rpartition("/")[2]] = self.body()
        self.reply(200)

    def do_POST(self):
        hub, body = self.server.owner, self.body()
        path = self.path.partition("?")[0]
        hub.requests.append(("POST", path))
        if not self.known:
            return self.fail(401, "")
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            if repo in hub.commits:
                return self.json({"url": f"{hub.endpoint}/{repo}"}, 409)
            hub.commits[repo] = [{}]
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(repo)
            return self.json({"url": f"{hub.endpoint}/{repo}"})
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            link = f"{hub.endpoint}/upload/"
            objects = [
                {**each, "actions": {"upload": {"href": link + each["oid"], "header": {}}}}
                for each in json.loads(body)["objects"]
            ]
            return self.json({"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/main", path)
        if match is None or match[1] not in hub.commits:
            return self.fail(404, "RepoNotFound")
        if match[2] == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in files
            ]
            return self.json({"files": [{**each, "shouldIgnore": False} for each in modes]})
        changed = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = hub.large[value["oid"]]
        commit = hub.commit(match[1], changed)
        return self.json({"commitUrl": f"{hub.endpoint}/{match[1]}/commit/{commit}", "commitOid": commit})


def serve_range(
    handler: _Handler, data: bytes, *, cut: int | None = None, shift: int = 0, whole: bool = False, **about
):
    """Answer a Range request. cut: after so many bytes of it the connection ends. shift: by how many bytes another
    range is sent than was asked for, and said to be sent. whole: it is answered with all."""
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    assert match
    first, last = int(match[1]) + shift, int(match[2]) + shift
    part = data if whole else data[first : last + 1]
    handler.send_response(200 if whole else 206)
    if not whole:
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
    for name, value in {"Content-Length": str(len(part)), **about}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(part if cut is None else part[:cut])
    if cut is not None:
        hang_up(handler)


@contextlib.contextmanager
def pointed_at(hub: Hub, monkeypatch) -> Iterator[None]:
    """The hub's client asks this one: it has read HF_ENDPOINT when it was imported."""
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        patch.setenv("HF_HUB_DISABLE_XET", "1")
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield
