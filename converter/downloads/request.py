"""One GET over its redirects. It ends, whatever servers do, and what is said of it is in our own words.

Errors of requests, urllib3 and http.client hold URLs, the proxy's for one, with the passwords and tokens in them: none
of their texts is ever passed on.
"""

import contextlib
import errno
import http.client
import logging
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from ..errors import ConverterError
from .urls import URL, URLError
from .watchdog import Watchdog

REDIRECTS = 10
MOST_HEADERS = 2**18  # bytes of them in one answer, with all that goes before it (100 Continue)

logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # it warns of odd headers, with URLs and tracebacks


class Again(Exception):  # noqa: N818
    """An attempt that broke off, and may be repeated. The message is a phrase."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait  # seconds that the server asks for


class Refused(ConverterError):  # noqa: N818
    """What cannot be fetched, however often one tries. The message is a phrase."""


@contextlib.contextmanager
def opened(url: URL, headers: dict[str, str], timeout: float) -> Iterator[tuple[requests.Response, Watchdog]]:
    """The last answer, whose headers are complete and whose body is still to be read (`response.raw`).

    timeout: seconds without a connection, or without a byte; `Watchdog` has the other limits that follow from it. Who
    reads the body says so to the watchdog, and counts the bytes.
    Raises: Again, Refused; what the body of the `with` raises, but for errors of the connection.
    """
    with Watchdog(timeout) as watchdog, _Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(watchdog))
        try:
            with _follow(session, url, headers, timeout, watchdog) as response:
                yield response, watchdog
            if watchdog.bite:  # a body without a length ends like this, too
                raise Again(watchdog.bite)
        except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            if watchdog.bite:
                raise Again(watchdog.bite) from None
            raise _in_our_words(error) from None


def _follow(session: requests.Session, url: URL, headers: dict[str, str], timeout: float, watchdog: Watchdog):
    """The answer at the end of all redirects, none of whose bodies is read."""
    asked = url
    for _ in range(REDIRECTS + 1):
        user: Any = tuple(part.encode() for part in url.user) if url.user and url.trusts(asked) else None
        try:
            response = session.get(
                asked.request, headers=headers, auth=user, stream=True, timeout=timeout, allow_redirects=False
            )  # fmt: skip
        except ValueError as error:
            raise _in_our_words(error) from None
        location = response.headers.get("Location") if response.is_redirect else None
        if watchdog.bite or not location:
            return response
        response.close()
        try:
            asked = asked.join(location.encode("latin-1").decode("utf-8"))
        except UnicodeError:
            raise Refused("is redirected to what is no URL") from None
        except URLError as error:
            raise Refused(f"its redirect {error}") from None
    raise Refused(f"is redirected more than {REDIRECTS} times")


class _Session(requests.Session):
    """Leaves redirects alone: requests would read all of their bodies."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _Adapter(HTTPAdapter):
    """Shows every socket to a watchdog."""

    def __init__(self, watchdog: Watchdog):
        self._watchdog = watchdog
        super().__init__()

    def init_poolmanager(self, *args, **kwargs):
        super().init_poolmanager(*args, **kwargs)
        self._watched(self.poolmanager)

    def proxy_manager_for(self, proxy, **kwargs):
        known = self.proxy_manager.get(proxy)
        return known or self._watched(super().proxy_manager_for(proxy, **kwargs))

    def _watched(self, manager):
        manager.pool_classes_by_scheme = {
            scheme: _watched(pool, self._watchdog) for scheme, pool in manager.pool_classes_by_scheme.items()
        }
        return manager


def _watched(pool: Any, watchdog: Watchdog) -> Any:
    """A class of connection pools, with connections that a watchdog sees."""

    class Connection(pool.ConnectionCls):
        response_class = _Answer

        def _new_conn(self) -> socket.socket:
            connection = super()._new_conn()
            watchdog.watch(connection)
            return connection

    return type(pool.__name__, (pool,), {"ConnectionCls": Connection})


class _Answer(http.client.HTTPResponse):
    """http.client takes headers that were cut off for complete ones, and skips any number of `100 Continue`."""

    def begin(self):
        lines: Any = _Lines(self.fp)
        self.fp = lines
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = lines.file
        if lines.last not in (b"\r\n", b"\n"):
            self.close()
            raise http.client.IncompleteRead(b"")


class _Lines:
    """A file's lines, counted."""

    def __init__(self, file):
        self.file, self.last, self.bytes = file, b"", 0

    def readline(self, limit: int) -> bytes:
        self.last = self.file.readline(limit)
        self.bytes += len(self.last)
        if self.bytes > MOST_HEADERS:
            raise http.client.LineTooLong("headers")
        return self.last

    def close(self):
        self.file.close()


# What is said


def _in_our_words(error: BaseException) -> Again | Refused:
    """What is to be said of an error of the connection, which wrap each other, and may it be tried again?"""
    errors = list(_chain(error))

    def first(*kinds: type) -> Any:
        return next((each for each in errors if isinstance(each, kinds)), None)

    proxy = " by the proxy" if first(requests.exceptions.ProxyError, urllib3.exceptions.ProxyError) else ""
    if found := first(ssl.SSLCertVerificationError):
        return Refused(f"the connection is not secure: {found.verify_message}"[:200])
    if first(ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return Again(f"the connection ended{proxy} while it was being secured")
    if first(ssl.SSLError, urllib3.exceptions.SSLError):
        return Refused("the connection is not secure: that is no TLS, or none that is safe")
    if first(socket.gaierror):
        return Again(f"its host{proxy} is not known")
    if first(http.client.LineTooLong):
        return Again("the server's headers have no end")
    if first(http.client.RemoteDisconnected, http.client.IncompleteRead):
        return Again("the connection ended in the middle of an answer")
    if codes := [each.errno for each in errors if isinstance(each, OSError) and each.errno in errno.errorcode]:
        return Again(os.strerror(codes[0] or 0) + proxy)
    if first(TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout):
        return Again(f"nothing came{proxy} for too long")
    if first(http.client.HTTPException, urllib3.exceptions.ProtocolError):
        return Again("what the server answers is no HTTP")
    if proxy:
        return Again("the proxy does not connect")
    if first(ValueError):  # InvalidURL, InvalidSchema, InvalidHeader, LocationParseError, InvalidProxyURL
        return Refused("cannot be asked for: is the URL right, and the proxy's?")
    return Again(f"failed ({type(errors[0]).__name__})")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it was made from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = (getattr(each, "reason", None), *each.args, each.__cause__, each.__context__)
        waiting += [another for another in inner if isinstance(another, BaseException)]
