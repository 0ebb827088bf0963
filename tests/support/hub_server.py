"""Serve a folder of ``<owner>/<name>/`` on loopback, like Hugging Face's hub for fsspec's ``hf://``, and take commits into it."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "0" * 40


@contextmanager
def running_hub(root: Path) -> Iterator[str]:
    """Run a hub while the block runs; yield its address, for the environment's HF_ENDPOINT."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            match unquote(asked.path).strip("/").split("/"):
                case ["api", "models", owner, name, "tree", _, *below] if (root / owner / name).joinpath(*below).is_dir():
                    self._answer(json.dumps(listing(root / owner / name, below, "recursive=true" in asked.query)).encode())
                case ["api", "models", owner, name, *_] if (root / owner / name).is_dir():
                    self._answer(json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []}).encode())
                case [owner, name, "resolve", _, *below] if (file := (root / owner / name).joinpath(*below)).is_file():
                    self._answer(file.read_bytes())
                case _:
                    self._answer(b"{}", status=404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            match unquote(urlsplit(self.path).path).strip("/").split("/"):
                case ["api", "validate-yaml"]:
                    front = yaml.safe_load(json.loads(body)["content"].split("---")[1])
                    self._answer(json.dumps({"errors": [] if isinstance(front, dict) else ["no mapping"], "warnings": []}).encode())
                case ["api", "repos", "create"]:
                    asked = json.loads(body)
                    name = asked["name"] if "/" in asked["name"] else f"{asked['organization']}/{asked['name']}"
                    there = (root / name).is_dir()
                    (root / name).mkdir(parents=True, exist_ok=True)
                    url = f"http://{self.headers['Host']}/{name}"
                    self._answer(json.dumps({"url": url, "id": name}).encode(), status=409 if there else 200)
                case ["api", "models", owner, name, "preupload", _] if (root / owner / name).is_dir():
                    files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
                    self._answer(json.dumps({"files": [file | {"shouldIgnore": False, "oid": None} for file in files]}).encode())
                case ["api", "models", owner, name, "commit", _] if (root / owner / name).is_dir():
                    for line in map(json.loads, body.splitlines()):
                        if line["key"] == "file":
                            file = root / owner / name / line["value"]["path"]
                            file.parent.mkdir(parents=True, exist_ok=True)
                            file.write_bytes(base64.b64decode(line["value"]["content"]))
                    url = f"http://{self.headers['Host']}/{owner}/{name}/commit/{COMMIT}"
                    self._answer(json.dumps({"commitUrl": url, "commitOid": COMMIT, "success": True}).encode())
                case _:
                    self._answer(b"{}", status=404)

        def _answer(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            headers = {"Content-Length": str(len(body)), "ETag": '"0"', "X-Repo-Commit": COMMIT}
            for name, value in (headers | ({"X-Error-Code": "RepoNotFound"} if status == 404 else {})).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listing(repository: Path, below: list[str], recursive: bool) -> list[dict]:
    folder = repository.joinpath(*below)
    return [
        {"type": "directory" if path.is_dir() else "file", "path": str(path.relative_to(repository)), "oid": COMMIT,
         "size": 0 if path.is_dir() else path.stat().st_size}
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
    ]  # fmt: skip
