"""A hub on this machine: the calls that an upload makes of huggingface.co, over real HTTP, keeping the files in a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

TOKEN = "hf_only_for_this_test"


def card_errors(text: str) -> list[str]:
    """What a hub refuses in the head of a model card; here, what a student's card could get wrong."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    head = yaml.safe_load(found[1]) if found else {}
    bases = head.get("base_model", [])
    errors = [
        f'"base_model" with value "{b}" is not valid. Use a model id from https://hf.co/models.'
        for b in ([bases] if isinstance(bases, str) else bases)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", b)
    ]
    if head.get("base_model_relation", "finetune") not in ("finetune", "adapter", "merge", "quantized"):
        errors.append('"base_model_relation" must be one of finetune, adapter, merge, quantized')
    if not all(isinstance(t, str) for t in head.get("tags", [])):
        errors.append('"tags" must be an array of strings')
    return errors


class Hub(ThreadingHTTPServer):
    """Repositories under `folder`; every request that came is in `calls`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.calls = folder, list[str]()
        self.made: dict[str, dict] = {}
        """What each repository was made with."""
        self.large: dict[str, bytes] = {}
        """Contents of large files by sha256."""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        """Make a repository, say how files are to be sent, take a commit."""
        body = self._body()
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            known = name in self.server.made
            self.server.made.setdefault(name, asked)
            self._answer({"url": f"{self.server.url}/{name}"}, 409 if known else 200)
        elif self.path == "/api/validate-yaml":
            errors = card_errors(json.loads(body)["content"])
            self._answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)
        elif found := re.fullmatch(r"/api/(?:models|datasets)/(.+)/preupload/main", self.path):
            assert found[1] in self.server.made
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/(?:models|datasets)/(.+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": f"not played here: {self.path}"}, 404)

    def do_PUT(self) -> None:
        """Take a large file."""
        body = self._body()
        assert self.path == f"/lfs/{hashlib.sha256(body).hexdigest()}"
        self.server.large[self.path.rpartition("/")[2]] = body
        self._answer({})

    def do_GET(self) -> None:
        """Nothing is there to be read."""
        self._body()
        self._answer({"error": "Not found"}, 404)

    def _commit(self, name: str, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                data = self.server.large[value["oid"]]
            else:
                assert line["key"] == "header"
                continue
            path = self.server.folder / name / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._answer({"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1", "pullRequestUrl": None})

    def _body(self) -> bytes:
        self.server.calls.append(f"{self.command} {self.path}")
        if self.headers.get("transfer-encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, value: dict, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """A hub that runs until the end of the block."""
    hub = Hub(folder)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
