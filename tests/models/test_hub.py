"""Claims about the hub: fetched once, resumed, found in the cache, or one clear error."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from osum_echat.errors import CheckpointError
from osum_echat.models import checkpoint, hub, pretrained
from tests.tiny_network import network

Found = TypeVar("Found")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/echat"


class Hub:
    """What a stand-in of the hub's HTTP interface serves, and what it was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.break_after = 0  # bytes of the first file, once
        self.stalls = False  # instead of breaking off
        self.stalled, self.go_on = threading.Event(), threading.Event()


class Handler(BaseHTTPRequestHandler):
    """The few calls that fetching needs: a repository's list of files, and the files."""

    protocol_version = "HTTP/1.1"

    def __init__(self, served: Hub, *rest: object) -> None:
        self.served = served
        super().__init__(*rest)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.served.asked.append(f"{self.command} {path}")
        if path.startswith(f"/api/models/{REPO}/tree"):
            listed = [{"type": "file", "path": name, "size": len(data), "oid": "0"}
                      for name, data in self.served.files.items()]  # fmt: skip
            self.answer(json.dumps(listed).encode())
        elif path.startswith(f"/api/models/{REPO}"):
            names = [{"rfilename": name} for name in self.served.files]
            self.answer(json.dumps({"id": REPO, "sha": COMMIT, "siblings": names}).encode())
        elif f"/{REPO}/resolve/" in path:
            name = path.split("/resolve/")[1].partition("/")[2]
            if name in self.served.files:
                self.answer(self.served.files[name], is_file=True)
            else:
                self.answer(b"", 404, error="EntryNotFound")
        else:
            self.answer(b"", 401 if "models" in path else 404, error="RepoNotFound")

    def answer(self, data: bytes, status: int = 200, *, is_file: bool = False,
               error: str = "") -> None:  # fmt: skip
        etag = hashlib.sha256(data).hexdigest()
        asked = self.headers.get("Range", "")
        whole = len(data)
        if is_file and asked.startswith("bytes="):
            start = int(asked[6:].split("-")[0])
            self.served.ranges.append(asked)
            status, data = 206, data[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 206:
            self.send_header("Content-Range", f"bytes {whole - len(data)}-{whole - 1}/{whole}")
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET" and is_file and self.served.break_after:
            self.wfile.write(data[: self.served.break_after])
            self.served.break_after, self.close_connection = 0, True
            if self.served.stalls:
                self.served.stalled.set()
                self.served.go_on.wait(60)
        elif self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Start a stand-in on the loopback with some files."""
    servers = []

    def start(files: dict[str, bytes]) -> Hub:
        served = Hub(files)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, served))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        return served

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> dict[str, bytes]:
    """The files of a model of ours."""
    checkpoint.save(tmp_path / "model", network())
    return {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


def test_a_whole_model_is_fetched_once_for_good(serve, model, tmp_path, monkeypatch):
    served = serve({**model, "README.md": b"# hi", "training.log": b"much"})
    folder = hub.fetch(f"hub:{REPO}", tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == model["model.safetensors"]
    assert not (folder / "training.log").exists()
    assert checkpoint.load(folder).settings == network().settings
    fetched = sum("GET" in one and "resolve" in one for one in served.asked)
    assert hub.fetch(f"hub:{REPO}", tmp_path / "cache") == folder
    assert sum("GET" in one and "resolve" in one for one in served.asked) == fetched
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.fetch(f"hub:{REPO}", tmp_path / "cache") == folder


def test_one_file_is_fetched_with_the_settings_beside_it(serve, tmp_path: Path):
    serve({"a.pt": b"one" * 100, "b.pt": b"two", "ct_config.yaml": b"input_dim: 80"})
    path = hub.fetch(f"hub:{REPO}/a.pt", tmp_path / "cache")
    assert path.name == "a.pt" and path.read_bytes() == b"one" * 100
    assert (path.parent / "ct_config.yaml").is_file() and not (path.parent / "b.pt").exists()
    with pytest.raises(CheckpointError, match=r"give one of hub:someone/echat/a\.pt, hub:some"):
        hub.fetch(f"hub:{REPO}", tmp_path / "cache")
    with pytest.raises(CheckpointError, match="the repository has no such file"):
        hub.fetch(f"hub:{REPO}/c.pt", tmp_path / "cache")


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(serve, tmp_path: Path):
    data = bytes(range(256)) * 100_000
    served = serve({"a.pt": data})
    served.break_after = 15_000_000
    assert hub.fetch(f"hub:{REPO}/a.pt", tmp_path / "cache").read_bytes() == data
    (taken_up,) = served.ranges
    assert 0 < int(taken_up.removeprefix("bytes=").partition("-")[0]) <= 15_000_000


def test_a_killed_process_is_taken_up_where_it_stopped(serve, tmp_path: Path, monkeypatch):
    data = bytes(range(256)) * 400_000
    served = serve({"a.pt": data})
    served.break_after, served.stalls = 50_000_000, True
    words = "import pathlib, osum_echat.models.hub as h; h.fetch({!r}, pathlib.Path({!r}))"
    command = [sys.executable, "-c", words.format(f"hub:{REPO}/a.pt", str(tmp_path / "cache"))]
    with subprocess.Popen(command) as child:
        assert served.stalled.wait(60)
        part = eventually(lambda: next(tmp_path.rglob("*.part"), None))
        eventually(lambda: part.stat().st_size >= 30_000_000)
        child.kill()
    served.go_on.set()
    assert hub.fetch(f"hub:{REPO}/a.pt", tmp_path / "cache").read_bytes() == data
    (taken_up,) = served.ranges
    assert 30_000_000 <= int(taken_up.removeprefix("bytes=").partition("-")[0]) <= 50_000_000
    assert not list(tmp_path.rglob("*.part"))


def eventually(look: Callable[[], Found], seconds: float = 30.0) -> Found:
    """What `look` finds once it finds something true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def test_what_came_broken_is_refused_and_fetched_anew(serve, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hub, "LARGE", 1000)
    data = bytes(range(256)) * 100
    serve({"a.pt": data})
    blobs = tmp_path / "cache" / "models--someone--echat" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(data).hexdigest()}.part").write_bytes(b"wrong" * 100)
    with pytest.raises(CheckpointError, match="came broken; fetch it again"):
        hub.fetch(f"hub:{REPO}/a.pt", tmp_path / "cache")
    assert hub.fetch(f"hub:{REPO}/a.pt", tmp_path / "cache").read_bytes() == data


def test_without_network_and_cache_the_error_says_what_to_do(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for place in (f"hub:{REPO}", f"hub:{REPO}/a.pt"):
        with pytest.raises(CheckpointError, match=r"not in the cache .*go online.*give its path"):
            hub.fetch(place, tmp_path)


def test_a_repository_that_is_not_there_is_told(serve, tmp_path: Path):
    serve({})
    with pytest.raises(CheckpointError, match="no such repository, or it needs a login"):
        hub.fetch("hub:nobody/nothing", tmp_path)


@pytest.mark.parametrize("place", ["hub:", "hub:one", "hub:a/b/../c", "hub:a b/c"])
def test_a_name_that_is_none_is_refused(place: str):
    with pytest.raises(CheckpointError, match="write it as hub:OWNER/NAME"):
        pretrained.find(place)


def test_of_a_whole_repository_only_the_named_files_are_fetched(serve, tmp_path: Path):
    served = serve({"flow.pt": b"1", "hift.pt": b"2", "llm.pt": b"3", "cosyvoice.yaml": b"a: 1"})
    place = hub.fetch(f"hub:{REPO}", tmp_path / "cache", names=("flow.pt", "hift.pt", "voice.pt"))
    assert {path.name for path in place.iterdir()} == {"flow.pt", "hift.pt", "cosyvoice.yaml"}
    assert not any("llm.pt" in asked for asked in served.asked)
