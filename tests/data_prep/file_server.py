"""A web server on this machine that misbehaves as it is told, for the tests of downloads."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class FileServer:
    """Serves the files below `root`; `faults[path]` are what the next GETs of a path do wrong.

    Also as a Hugging Face hub: /OWNER/REPO/resolve/REVISION/FILE redirects to /slots/FILE.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.tokens: list[str | None] = []
        self.answers_head = True
        self.released = threading.Event()  # ends all stalls
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(self))
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def ranges(self, path: str) -> list[str]:
        """The Range of each GET of a path."""
        return [given for method, name, given in self.requests if (method, name) == ("GET", path)]


@contextlib.contextmanager
def serve(root: Path) -> Iterator[FileServer]:
    server = FileServer(root)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def make_handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *unused: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer("HEAD", "" if server.answers_head else "405")

        def do_GET(self) -> None:
            faults = server.faults[self.path]
            self.answer("GET", faults.popleft() if faults else "")

        def answer(self, method: str, fault: str) -> None:
            given = self.headers.get("Range", "")
            server.requests.append((method, self.path, given))
            server.tokens.append(self.headers.get("Authorization"))
            hub = re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", self.path)
            name = f"slots/{hub[1]}" if hub else self.path.removeprefix("/moved").lstrip("/")
            path = server.root / name
            if fault.isdigit() or not path.is_file():
                self.send_error(int(fault) if fault else 404)
                return
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if hub or fault == "redirect":
                self.send_response(302)
                place = f"/slots/{hub[1]}" if hub else f"/moved{self.path}"
                # Another host, as the hub's.
                self.send_header("Location", server.url.replace("127.0.0.1", "localhost") + place)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{digest}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if fault == "login page":
                content = b"<html>please log in</html>"
            start = 0
            current = self.headers.get("If-Range") in (None, f'"{digest}"')
            if given and not fault.startswith("no ranges") and current:
                start = int(re.fullmatch(r"bytes=(\d+)-", given)[1])  # type: ignore[index]
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                total = len(content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            body = content[start:]
            said = {"says more": len(body) + 10, "says less": len(body) // 2}
            self.send_header("Content-Length", str(said.get(fault, len(body))))
            self.send_header("ETag", f'"{digest}"')
            self.end_headers()
            if method == "HEAD":
                return
            half = fault in ("breaks off", "stalls", "no ranges and breaks off")
            self.wfile.write(body[: len(body) // 2] if half else body)
            self.wfile.flush()
            if fault == "stalls":
                server.released.wait()
            self.close_connection = True

    return Handler
