"""URLs: read strictly, shown without what may be secret in them.

What a URL means is decided here alone, before any library sees it: parsers differ about backslashes, spaces and control
characters, and where they differ, a password becomes a host or a path. What is not plainly a URL is refused, and is
never printed.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin

from ..errors import ConverterError

LONGEST = 8192  # characters
HIDDEN = "(a URL)"  # stands for one that cannot be shown

_URL = re.compile(r"(https?)://(?:([^/?#]*)@)?([^/?#@]*)([^?#]*)(\?[^#]*)?(#.*)?", re.IGNORECASE | re.ASCII)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:%]+)(?::([0-9]{0,5}))?")
_LABEL = re.compile(r"[\w-]{1,63}")
_AT = re.compile(r"@|%(?:25)*(?:40|5c)", re.IGNORECASE)  # as it is, or escaped any number of times; so is a backslash
PORTS = {"http": 80, "https": 443}


class URLError(ConverterError):
    """Text that is no URL that can be fetched. The message is a phrase, with nothing of the text in it."""


@dataclass(frozen=True)
class URL:
    """An http or https URL. host: in lower case. path: begins with /. query: with its ?, or empty."""

    scheme: str
    host: str
    port: int
    path: str
    query: str
    user: tuple[str, str] | None  # and password
    shown: str  # without user, password and query; HIDDEN where it is not certain what is which

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def request(self) -> str:
        """What is fetched: all but user and password."""
        return self._root + self.path + self.query

    @property
    def _root(self) -> str:
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port != PORTS[self.scheme] else "")

    def join(self, location: str) -> "URL":
        """Where a redirect leads. Raises: URLError, also for a user name in it, and for http after https."""
        location = location.strip(" ").replace(" ", "%20")
        _check_characters(location)
        try:
            target = parse(urljoin(self.request, location))
        except ValueError:
            raise URLError("has no host name") from None
        if target.user is not None:
            raise URLError(f"leads to {target.shown} with a user name in it, which is not followed")
        if self.scheme == "https" and target.scheme == "http":
            raise URLError(f"leads from https to {target.shown}")
        return target

    def trusts(self, target: "URL") -> bool:
        """May a redirect's target be told user and password? The same server, or the same host by https."""
        secure = self.port == PORTS["http"] and target.origin == ("https", self.host, PORTS["https"])
        return target.origin == self.origin or secure


def parse(text: str) -> URL:
    """Raises: URLError."""
    _check_characters(text)
    if (match := _URL.fullmatch(text)) is None:
        raise URLError("only http and https URLs can be fetched")
    scheme, user, authority, path, query, fragment = (part or "" for part in match.groups())
    if not authority:
        raise URLError("only http and https URLs can be fetched, and this has no host name")
    found = _AUTHORITY.fullmatch(authority)
    if found is None or (found[2] and not 0 < int(found[2]) < 65536):
        raise URLError("has a host name or port that is none")
    scheme, host, port = scheme.lower(), found[1].lower(), found[2] or ""
    if not _is_host(host):
        raise URLError("has a host name that is none")
    # What holds an @ further on may be a user name and password that were cut off by a / or ? in them.
    rest = query + fragment
    certain = not _AT.search(path) and "@" not in rest and (path != "" or not _AT.search(rest))
    shown = quote(f"{host}{port and ':'}{port}{path.partition(';')[0]}", safe="/:[]%~!$&'()*+,=")
    name, _, password = user.partition(":")
    return URL(
        scheme,
        host,
        int(port) if port else PORTS[scheme],
        path or "/",
        query,
        (unquote(name), unquote(password)) if match[2] is not None else None,
        f"{scheme}://{shown}" if certain else HIDDEN,
    )


def public_url(text: str) -> str:
    """A URL without what may be secret in it: user, password, query. HIDDEN for anything but a plain URL."""
    try:
        return parse(text).shown
    except URLError:
        return HIDDEN


def file_name(text: str) -> str:
    """The last part of a URL's path, as a file name that is safe anywhere."""
    last = public_url(text).partition("://")[2].partition("/")[2].rpartition("/")[2]
    return re.sub(r"[^0-9A-Za-z._-]", "_", last)[-128:] or "download"


def _check_characters(text: str):
    if len(text) > LONGEST:
        raise URLError(f"is longer than {LONGEST:,} characters")
    if not text.isprintable() or re.search(r"[\s\\]", text):
        raise URLError("holds a space, a backslash or a control character; write %20 for a space")


def _is_host(host: str) -> bool:
    if host.startswith("["):
        from ipaddress import IPv6Address

        try:
            return bool(IPv6Address(host[1:-1]))
        except ValueError:
            return False
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))
