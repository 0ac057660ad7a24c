"""An HTTP server on loopback that misbehaves on request."""

import contextlib
import http.server
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any


class Server:
    """Serves `data` under any path. `answer(handler, number)` may answer request `number` in another way.

    requests: the headers of all requests so far. sent: bytes of the object that were sent, as far as the server knows.
    """

    def __init__(self, data: bytes, answer: Callable | None = None):
        self.data, self.answer = data, answer or (lambda handler, number: serve(handler))
        self.requests: list = []
        self.sent = 0
        self._lock = threading.Lock()
        self._http = QuietServer(_Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def url(self, path="edm2-img512-s-2147483-0.130.pkl") -> str:
        return f"http://127.0.0.1:{self._http.server_port}/edm2/{path}"

    def note(self, headers) -> int:
        with self._lock:
            self.requests.append(headers)
            return len(self.requests) - 1

    def count(self, number):
        with self._lock:
            self.sent += number


class QuietServer(http.server.ThreadingHTTPServer):
    """A server on a free port. owner: what its handlers ask."""

    daemon_threads = True

    def __init__(self, handler: "type[QuietHandler]", owner: Any):
        super().__init__(("127.0.0.1", 0), handler)
        self.owner = owner

    def handle_error(self, request, client_address):  # clients that go away are what the tests are about
        pass


class QuietHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: QuietServer

    def log_message(self, *_):
        pass


class _Handler(QuietHandler):
    def do_GET(self):
        owner = self.server.owner
        owner.answer(self, owner.note(self.headers))


def serve(
    handler,
    *,
    data: bytes | None = None,
    etag: str | None = '"v1"',
    ranges: bool = True,
    cut: int | None = None,
    reset: bool = False,
    length: bool = True,
    chunked: bool = False,
    excess: bytes = b"",
    content_range: str | None = None,
    status: int | None = None,
    pause: float = 0.0,
    headers: dict | None = None,
):
    """Answer a request as a good server would, but for what is asked otherwise.

    cut: the connection ends (with RST, if `reset`) when that many bytes of the object have been sent, counted from its
    beginning. length: send Content-Length. pause: seconds before every 64 kB.
    """
    owner = handler.server.owner
    data = owner.data if data is None else data
    first = 0
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if wanted and ranges and handler.headers.get("If-Range") == etag:
        first = int(wanted[1])
        if first >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
    partial = first or content_range is not None
    handler.send_response(status or (206 if partial else 200))
    if partial:
        handler.send_header("Content-Range", content_range or f"bytes {first}-{len(data) - 1}/{len(data)}")
    if etag is not None:
        handler.send_header("ETag", etag)
    if chunked:
        handler.send_header("Transfer-Encoding", "chunked")
    elif length:
        handler.send_header("Content-Length", str(len(data) - first))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    if not length and not chunked:
        handler.close_connection = True
    handler.end_headers()
    end = len(data) if cut is None else max(min(cut, len(data)), first)
    body = data[first:end] + (excess if end == len(data) else b"")
    with contextlib.suppress(OSError):
        for start in range(0, len(body), 65536):
            piece = body[start : start + 65536]
            time.sleep(pause)
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if chunked else piece)
            owner.count(len(piece))
        if chunked and end == len(data):
            handler.wfile.write(b"0\r\n\r\n")
    if end < len(data):
        hang_up(handler, reset)


def hang_up(handler, reset=False):
    """End the connection, at once and without a goodbye if `reset`."""
    handler.close_connection = True
    handler.wfile.flush()
    if reset:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
    else:
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)


class Raw:
    """A server that speaks no HTTP unless `answer(connection, number)` does. It listens until it is closed."""

    def __init__(self, answer: Callable):
        self.answer, self.count = answer, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._socket.close()

    def url(self, scheme="http") -> str:
        return f"{scheme}://127.0.0.1:{self._socket.getsockname()[1]}/edm2/edm2-img512-s-2147483-0.130.pkl"

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.count += 1
                threading.Thread(target=self._answer, args=(connection, self.count - 1), daemon=True).start()

    def _answer(self, connection: socket.socket, number: int):
        with contextlib.suppress(OSError), connection:  # clients that go away are what the tests are about
            self.answer(connection, number)


def drip(connection: socket.socket, start: bytes, piece: bytes, pause: float = 0.02):
    """Send `start`, and then `piece` for ever, until the client goes away."""
    connection.sendall(start)
    while True:
        connection.sendall(piece)
        time.sleep(pause)
