"""moto's S3 server on loopback, which misbehaves on request."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "s3cret-key", "AWS_REGION": "us-east-1"}


class S3:
    """moto's server. `answer(environ, number)` may answer GET number in another way: with an HTTP message, in bytes,
    after which the connection ends. What it returns None for is moto's.

    `refuse(environ, number)` is asked of every other request: those that it says are answered with 403.
    requests: (method, path, range) of all requests. sent: how many bytes of objects GETs have asked for.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_):
                pass

        self.answer: Callable = lambda environ, number: None
        self.refuse: Callable = lambda environ, number: False
        self.requests: list[tuple[str, str, str | None]] = []
        self.gets = 0
        self._lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._app, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}"}

    @property
    def sent(self) -> int:
        ranges = (
            re.fullmatch(r"bytes=(\d+)-(\d+)", each or "") for method, _, each in self.requests if method == "GET"
        )
        return sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)

    def _app(self, environ, start):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self.requests.append((method, path, environ.get("HTTP_RANGE")))
            number = self.gets
            self.gets += method == "GET"
        message = self.answer(environ, number) if method == "GET" else None
        if method != "GET" and self.refuse(environ, number):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("403 Forbidden", [("Content-Length", "0")])
            return []
        if message is None:
            if environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer"):  # Google's, which moto takes for Amazon's
                del environ["HTTP_AUTHORIZATION"]
            return self._moto(environ, start)
        connection = environ["werkzeug.socket"]
        with contextlib.suppress(OSError):
            connection.sendall(message)
            connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def put(self, key: str, data: bytes, *, public: bool = False) -> str:
        """Its URL."""
        self._client().put_object(Bucket=BUCKET, Key=key, Body=data, ACL="public-read" if public else "private")
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        return self._client().get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def names(self) -> list[str]:
        return [each["Key"] for each in self._client().list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def delete(self, key: str):
        self._client().delete_object(Bucket=BUCKET, Key=key)

    def _client(self):
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name=KEYS["AWS_REGION"],
            aws_access_key_id="owner", aws_secret_access_key="s3cret",
        )  # fmt: skip

    def __enter__(self):
        self._thread.start()
        self._client().create_bucket(Bucket=BUCKET, ACL="public-read-write")
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
