"""A Hub on loopback for tests: enough of its HTTP protocol for the unmodified client libraries, and faults on demand.

Repositories are held in memory. Large files lie on a second server with an origin of its own, as on the real Hub: the
clients must follow the redirect there, and must leave their token behind. Xet, pull requests and tags are left out,
and the dataset viewer (the clients look for it at `datasets-server.` before the host, and do without).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from programs import run_program

REPOSITORY = Path(__file__).parents[1]
TIME = "2026-01-01T00:00:00.000Z"
LARGE = 10 * 1024 * 1024
LFS_SUFFIXES = (".arrow", ".bin", ".gz", ".npz", ".onnx", ".parquet", ".pt", ".pth", ".safetensors", ".zip")
ALWAYS = math.inf


# What is stored


@dataclass(frozen=True)
class Blob:
    """The content of a file, in git or in the large file storage."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """The hash that git gives to the file."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def described(self, path: str) -> dict:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}} if self.lfs else {}
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid} | lfs


@dataclass(frozen=True)
class Commit:
    """A state of all files."""

    title: str
    files: dict[str, Blob]
    parent: str

    @cached_property
    def oid(self) -> str:
        tree = [(path, blob.oid) for path, blob in sorted(self.files.items())]
        return hashlib.sha1(repr((self.parent, self.title, tree)).encode()).hexdigest()


@dataclass
class Repo:
    """A repository: the commits of each branch, oldest first."""

    kind: str
    name: str
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def __post_init__(self):
        lines = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.branches["main"] = [Commit("initial commit", {".gitattributes": Blob(lines.encode(), False)}, "")]

    def at(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        self.branches[branch].append(Commit(title, files, self.at(branch).oid))
        return self.branches[branch][-1]

    @property
    def page(self) -> str:
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"


def stores_as_lfs(path: str, size: int) -> bool:
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LARGE)


def front_matter(text: str) -> dict:
    """The metadata of a card; empty without any.

    Raises:
        yaml.YAMLError: when they do not parse.
    """
    found = re.match(r"---\s*\n(.*?)\n---", text, flags=re.DOTALL)
    metadata = yaml.safe_load(found[1]) if found else {}
    if not isinstance(metadata, dict | None):
        raise yaml.YAMLError("expected an object")
    return metadata or {}


# What can go wrong


class Refusal(Exception):  # noqa: N818
    """An answer other than success, with the headers by which the clients tell what it is."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        self.status = status
        self.headers = {"X-Error-Message": message, **headers} | ({"X-Error-Code": code} if code else {})
        self.body = json.dumps({"error": message}).encode()


@dataclass
class Fault:
    """What happens to the next `times` requests of which `match` is found in "METHOD /path"."""

    match: str
    times: float
    status: int | None = None
    retry_after: int = 0
    cut: bool = False
    seconds: float = 0.0

    def refusal(self, request: str) -> Refusal | None:
        later = {"Retry-After": str(self.retry_after)}
        if self.status == 403 and request.startswith(("GET", "HEAD")) and "/auth-check/write" not in request:
            return Refusal(403, "GatedRepo", "Access to this repository is restricted: ask for access on its page.")
        return {
            None: None,
            401: Refusal(401, "", "Invalid credentials in Authorization header"),
            403: Refusal(403, "", "Your token has no right to write here"),
            404: Refusal(404, "RepoNotFound", "Repository not found"),
            429: Refusal(429, "", "You are sending too many requests", **later),
        }.get(self.status, Refusal(self.status or 500, "", "Internal error: we are working on it", **later))


class LoopbackHub:
    """The running Hub; a context manager that stops it.

    Args:
        folder: where the programs of `run` keep their cache.

    Attributes:
        url: the endpoint.
        token, user: of the only account.
        requests: "METHOD /path" of each request, followed by its range if it has one.
        errors: tracebacks of the server's own mistakes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.user, self.token = Path(folder), "user", "hf_" + "loopback" * 4
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.collections: dict[str, dict] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.lock, self.stopping = threading.RLock(), threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.storage_url = [f"http://127.0.0.1:{server.server_port}" for server in self.servers]
        self.threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in self.servers
        ]
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> LoopbackHub:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop at once, also in the middle of a slow answer."""
        self.stopping.set()
        for server, thread in zip(self.servers, self.threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    # Look at it, and fill it

    def files(self, name: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository, by path; without the .gitattributes that every repository starts with."""
        files = self.repos[kind, name].at(revision).files
        return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}

    def commits(self, name: str, kind: str = "model", revision: str = "main") -> list[Commit]:
        """The commits of a branch, oldest first."""
        return self.repos[kind, name].branches[revision]

    def put(self, name: str, files: Mapping[str, bytes] | Path, kind: str = "model") -> Repo:
        """Make a repository of files, or of those in a folder."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        repo = self.repos.setdefault((kind, name), Repo(kind, name))
        blobs = {path: Blob(data, stores_as_lfs(path, len(data))) for path, data in files.items()}
        self.stored |= {blob.sha256: blob.data for blob in blobs.values() if blob.lfs}
        repo.commit("main", "put", repo.at("main").files | blobs)
        return repo

    # Make it fail

    def fail(self, match: str, status: int = 500, times: float = 1, retry_after: int = 0) -> None:
        """Refuse requests: 401 for a bad token, 403 for a gated repository or a missing right to write, 404, 429, 5xx.

        Args:
            match: a regular expression, searched for in "METHOD /path".
            status: the status of the answer.
            times: how many requests; `ALWAYS` for all.
            retry_after: seconds of the Retry-After header of 429 and 5xx. The clients wait one more.
        """
        self.faults.append(Fault(match, times, status=status, retry_after=retry_after))

    def cut(self, match: str, times: float = 1) -> None:
        """Close the connection in the middle of what is sent up, or else of what is sent down."""
        self.faults.append(Fault(match, times, cut=True))

    def slow(self, match: str, seconds: float, times: float = 1) -> None:
        """Wait before the answer."""
        self.faults.append(Fault(match, times, seconds=seconds))

    def next_fault(self, request: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    fault.times -= 1
                    return fault
        return Fault("", 0)

    # Use it

    def environment(self, **extra: str | None) -> dict[str, str]:
        """The environment of a program that takes this for its Hub; `None` leaves a variable out."""
        kept = {name: value for name, value in os.environ.items() if not re.match("HF_|HUGGING|TRANSFORMERS_", name)}
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.folder / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TQDM_DISABLE": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # they are counted on another server
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests")]),
        }
        return {name: value for name, value in (kept | ours | extra).items() if value is not None}

    def run(
        self, code: str, *arguments: object, timeout: float = 600, fresh: bool = False, **env: str | None
    ) -> subprocess.CompletedProcess:
        """Run a program in a process of its own, with this for its Hub; it hardly waits before it tries again.

        Args:
            code: the program; it may be indented.
            arguments: its `sys.argv[1:]`.
            timeout: seconds after which it is ended.
            fresh: in an interpreter that has imported nothing, for tests of what is imported; that takes seconds.
            env: further environment variables, see `environment`.

        Raises:
            subprocess.TimeoutExpired: when it hangs.
        """
        code, environment = SHORT_WAITS + textwrap.dedent(code), self.environment(**env)
        if not fresh:
            return run_program(code, *arguments, folder=self.folder, environment=environment, timeout=timeout)
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=environment,
            timeout=timeout,
        )

    def answer(
        self, code: str, *arguments: object, timeout: float = 600, fresh: bool = False, **env: str | None
    ) -> object:
        """Run a program, and read the JSON of the last line that it prints."""
        done = self.run(code, *arguments, timeout=timeout, fresh=fresh, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


SHORT_WAITS = "import time; wait = time.sleep; time.sleep = lambda seconds: wait(min(seconds, 0.05))\n"

# The protocol

ROUTES: list[tuple[str, re.Pattern, Callable]] = []
NAME = "(?P<name>[^/]+?(?:/[^/]+?)??)"  # the oldest repositories have no owner
API = f"/api/(?P<kind>model|dataset|space)s/{NAME}"
PAGE = f"/(?:(?P<kind>dataset|space)s/)?{NAME}"
JSON = {"Content-Type": "application/json"}


def route(methods: str, pattern: str) -> Callable:
    """Let a method of the handler answer what fits."""

    def register(answer: Callable) -> Callable:
        ROUTES.extend((method, re.compile(pattern), answer) for method in methods.split())
        return answer

    return register


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            self.RequestHandlerClass.hub.errors.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *args: object) -> None:
        """Keep quiet."""

    def handle_request(self) -> None:
        request = f"{self.command} {unquote(self.path)}"
        self.hub.requests.append(f"{request} {self.headers.get('Range', '')}".rstrip())
        fault = self.hub.next_fault(request)
        size = int(self.headers.get("Content-Length", 0))
        if size and fault.cut:
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(size)
        if fault.seconds and self.hub.stopping.wait(fault.seconds):
            self.close_connection = True
            return
        try:
            if refusal := fault.refusal(request):
                raise refusal
            status, headers, body = self.find_answer()
        except Refusal as refusal:
            status, headers, body = refusal.status, refusal.headers, refusal.body
        except Exception:
            self.hub.errors.append(f"{request}\n{traceback.format_exc()}")
            status, headers, body = 500, {}, b"the loopback Hub made a mistake"
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if fault.cut else body)
        self.close_connection = self.close_connection or fault.cut

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def find_answer(self) -> tuple[int, dict[str, str], bytes]:
        address = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        for method, pattern, answer in ROUTES:
            if method == self.command and (found := pattern.fullmatch(address.path)):
                given = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                with self.hub.lock:
                    result = answer(self, **given)
                return result if isinstance(result, tuple) else (200, JSON, json.dumps(result).encode())
        raise Refusal(404, "", f"The loopback Hub has no {self.command} {address.path}")

    # Who asks, and for what

    def signed_in(self) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {self.hub.token}"):
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return given is not None

    def must_be_signed_in(self) -> None:
        if not self.signed_in():
            raise Refusal(401, "", "Invalid username or password.")

    def repo(self, name: str, kind: str = "model") -> Repo:
        found, signed_in = self.hub.repos.get((kind, name)), self.signed_in()
        if found is None or (found.private and not signed_in):
            raise Refusal(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        return found

    def content(self) -> dict:
        return json.loads(self.body)

    # The account and the list of repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> dict:
        self.must_be_signed_in()
        access = {"accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "name": self.hub.user, "fullname": "A user", "orgs": [], "auth": access}

    @route("POST", "/api/repos/create")
    def create(self) -> dict | tuple:
        self.must_be_signed_in()
        asked = self.content()
        kind, owner = asked.get("type", "model"), asked.get("organization") or self.hub.user
        if owner != self.hub.user:
            raise Refusal(403, "", f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        repo = Repo(kind, f"{owner}/{asked['name']}", asked.get("visibility") == "private")
        answer = {"url": f"{self.hub.url}/{repo.page}", "name": repo.name}
        if (kind, repo.name) in self.hub.repos:
            return 409, JSON, json.dumps(answer | {"error": "You already created this repo"}).encode()
        self.hub.repos[kind, repo.name] = repo
        return answer

    @route("DELETE", "/api/repos/delete")
    def delete(self) -> tuple:
        self.must_be_signed_in()
        asked = self.content()
        repo = self.repo(f"{asked.get('organization') or self.hub.user}/{asked['name']}", asked.get("type", "model"))
        del self.hub.repos[repo.kind, repo.name]
        return 200, {}, b""

    @route("GET", "/api/(?P<kind>model|dataset)s")
    def listed(self, kind: str) -> list:
        repos = [repo for repo in self.hub.repos.values() if repo.kind == kind and not repo.private]
        owner = f"{self.query['author']}/" if "author" in self.query else ""
        found = [repo for repo in repos if repo.name.startswith(owner) and self.query.get("search", "") in repo.name]
        return [self.described(repo, "main") for repo in found]

    # Collections

    @route("POST", "/api/collections")
    def make_collection(self) -> dict | tuple:
        self.must_be_signed_in()
        asked = self.content()
        owner = {"type": "user", "name": asked["namespace"]}
        slug = f"{asked['namespace']}/{asked['title']}-{hashlib.sha1(asked['title'].encode()).hexdigest()[:24]}"
        if slug in self.hub.collections:
            return 409, JSON, json.dumps({"error": "This collection exists already", "slug": slug}).encode()
        shown = {"lastUpdated": TIME, "position": 0, "theme": "green", "upvotes": 0, "items": []}
        self.hub.collections[slug] = {**asked, **shown, "slug": slug, "owner": owner}
        return self.hub.collections[slug]

    @route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
    def collection(self, slug: str) -> dict:
        return self.hub.collections[slug]

    @route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items")
    def add_to_collection(self, slug: str) -> dict:
        self.must_be_signed_in()
        asked = self.content()
        kind, name = asked["item"]["type"], asked["item"]["id"]
        self.repo(name, kind)
        items = self.hub.collections[slug]["items"]
        note = {"html": asked["note"], "text": asked["note"]} if "note" in asked else None
        number = hashlib.sha1(name.encode()).hexdigest()[:24]
        items.append({"_id": number, "id": name, "type": kind, "position": len(items), "note": note})
        return self.hub.collections[slug]

    # A repository

    @route("GET", API)
    @route("GET", f"{API}/revision/(?P<revision>[^/]+)")
    def info(self, name: str, kind: str, revision: str = "main") -> dict:
        return self.described(self.repo(name, kind), revision)

    def described(self, repo: Repo, revision: str) -> dict:
        commit = repo.at(revision)
        files = [blob.described(path) for path, blob in sorted(commit.files.items())]
        card = front_matter(commit.files["README.md"].data.decode()) if "README.md" in commit.files else {}
        return {
            "id": repo.name,
            "sha": commit.oid,
            "private": repo.private,
            "lastModified": TIME,
            "tags": card.get("tags") or [],
            "cardData": card,
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "siblings": [{"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]} for file in files],
        }

    @route("GET", f"{API}/auth-check(?P<write>/write)?")
    def auth_check(self, name: str, kind: str, write: str = "") -> dict:
        repo = self.repo(name, kind)
        if write and not (self.signed_in() and repo.name.startswith(f"{self.hub.user}/")):
            raise Refusal(403, "", f"You have no right to write to {repo.name}")
        return {}

    @route("POST", f"{API}/branch/(?P<branch>[^/]+)")
    def make_branch(self, name: str, kind: str, branch: str) -> dict:
        self.must_be_signed_in()
        repo = self.repo(name, kind)
        if branch in repo.branches:
            raise Refusal(409, "", f"Reference already exists: {branch}")
        repo.branches[branch] = list(repo.branches["main"])
        return {}

    @route("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def tree(self, name: str, kind: str, revision: str, path: str = "") -> list:
        files = self.repo(name, kind).at(revision).files
        inside = {file: blob for file, blob in files.items() if not path or file.startswith(f"{path}/")}
        if path and not inside:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        folders = {str(folder) for file in inside for folder in PurePosixPath(file).parents} - {"."}
        entries = [self.folder(folder) for folder in sorted(folders) if not path or folder.startswith(f"{path}/")]
        entries += [blob.described(file) for file, blob in sorted(inside.items())]
        if self.query.get("recursive") == "true":
            return entries
        return [entry for entry in entries if str(PurePosixPath(entry["path"]).parent) == (path or ".")]

    @route("POST", f"{API}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, name: str, kind: str, revision: str) -> list:
        files = self.repo(name, kind).at(revision).files
        paths = parse_qs(self.body.decode()).get("paths", [])
        found = [files[path].described(path) for path in paths if path in files]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
        return found + [self.folder(path) for path in folders]

    @staticmethod
    def folder(path: str) -> dict:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}

    # Downloads

    @route("GET HEAD", rf"{PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, name: str, revision: str, path: str, kind: str = "model") -> tuple:
        commit = self.repo(name, kind).at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", **headers)
        blob = commit.files[path]
        if not blob.lfs:
            return self.part_of(blob.data, headers | {"ETag": f'"{blob.etag}"'})
        linked = {"X-Linked-Size": str(len(blob.data)), "X-Linked-ETag": f'"{blob.etag}"'}
        return 302, headers | linked | {"Location": f"{self.hub.storage_url}/storage/{blob.sha256}"}, b""

    @route("GET HEAD", "/storage/(?P<oid>[0-9a-f]+)")
    def stored(self, oid: str) -> tuple:
        self.must_be_anonymous()
        if oid not in self.hub.stored:
            raise Refusal(404, "", "NoSuchKey")
        return self.part_of(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def must_be_anonymous(self) -> None:
        if "Authorization" in self.headers:
            raise Refusal(400, "", "Only one auth mechanism allowed: the address is signed already")

    def part_of(self, data: bytes, headers: dict[str, str]) -> tuple:
        """All of a file, or the range that was asked for."""
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, headers, data
        start, end = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if start >= len(data):
            raise Refusal(416, "", "Range not satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
        return 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1]

    # Uploads

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> dict | tuple:
        try:
            metadata = front_matter(self.content()["content"])
        except yaml.YAMLError as error:
            return 400, JSON, json.dumps({"errors": [{"message": str(error)}], "warnings": []}).encode()
        missing = [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": [] if metadata else missing}

    @route("POST", f"{API}/preupload/(?P<revision>[^/]+)")
    def preupload(self, name: str, kind: str, revision: str) -> dict:
        self.must_be_signed_in()
        there = self.repo(name, kind).at(revision).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if stores_as_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": there[file["path"]].etag if file["path"] in there else None,
                }
                for file in self.content()["files"]
            ]
        }

    @route("POST", rf"{PAGE}\.git/info/lfs/objects/batch")
    def lfs_batch(self, name: str, kind: str = "model") -> dict:
        self.must_be_signed_in()
        verify = {"href": f"{self.hub.url}/{self.repo(name, kind).page}.git/info/lfs/objects/verify"}
        objects = self.content()["objects"]
        for one in objects:
            if one["oid"] not in self.hub.stored:
                one["actions"] = {"upload": {"href": f"{self.hub.storage_url}/storage/{one['oid']}"}, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/storage/(?P<oid>[0-9a-f]+)")
    def store(self, oid: str) -> tuple:
        self.must_be_anonymous()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "BadDigest")
        self.hub.stored[oid] = self.body
        return 200, {"ETag": f'"{oid}"'}, b""

    @route("POST", rf"{PAGE}\.git/info/lfs/objects/verify")
    def lfs_verify(self, name: str, kind: str = "model") -> dict:
        self.must_be_signed_in()
        asked = self.content()
        if len(self.hub.stored.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "", "The object was not uploaded")
        return {}

    @route("POST", f"{API}/commit/(?P<revision>[^/]+)")
    def commit(self, name: str, kind: str, revision: str) -> dict:
        self.must_be_signed_in()
        repo = self.repo(name, kind)
        before = repo.at(revision)
        files = dict(before.files)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", before.oid) != before.oid:
            raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"]), False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise Refusal(400, "", f"{path} was not uploaded")
                files[path] = Blob(self.hub.stored[value["oid"]], True)
            else:  # deletedFile, deletedFolder
                gone = [file for file in files if file == path or file.startswith(f"{path.rstrip('/')}/")]
                if not gone:
                    raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                for file in gone:
                    del files[file]
        made = repo.commit(revision, header["value"]["summary"], files)
        return {"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.url}/{repo.page}/commit/{made.oid}"}
