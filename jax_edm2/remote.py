"""Files in stores: s3://bucket/name, gs://bucket/name, and hf://owner/repo@revision/name on the Hugging Face hub.

They are read by ranges and written whole, by obstore and by the hub's own client, which also find credentials, ask
again where a connection breaks off, and are imported when a store is first used. All ranges are of one version of the
file: of its ETag, or of the commit that a branch stood for when it was opened.
"""

import contextlib
import os
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

from jax_edm2.messages import one_line
from jax_edm2.tensors import CheckpointError

RETRIES = 5  # of a request
WAIT = 0.5  # seconds before the first of them, and twice as many before each that follows
SILENCE = 20.0  # seconds
SLOWEST = 120.0  # seconds for a range

_URL = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.DOTALL | re.IGNORECASE)
_OBJECT = re.compile(r"(s3|gs)://([\w.-]+)/([^/?#](?:[^?#]*[^/?#])?)", re.ASCII)
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([^/@?#]+))?(?:/([^/?#](?:[^?#]*[^/?#])?))?", re.ASCII)
FORMS = "s3://bucket/name, gs://bucket/name or hf://owner/repo@revision/name"
LOGIN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": "set HF_TOKEN, or run `hf auth login`",
}
Result = TypeVar("Result")


def is_remote(path: str | os.PathLike) -> bool:
    """Is it a URL, of whatever scheme, and not a path on this disk?"""
    return isinstance(path, str) and _URL.fullmatch(path) is not None


def is_stored(text: str) -> bool:
    """Is it a URL of one of our stores?"""
    return re.match("(s3|gs|hf)://", text) is not None


def file_name(url: str) -> str:
    """The last part of a URL's path, as a file name that is safe anywhere."""
    return re.sub(r"[^0-9A-Za-z._-]", "_", url.rpartition("/")[2])[-128:]


def pinned(url: str) -> str | None:
    """The version that a URL names itself: a commit of the hub."""
    match = _HUB.fullmatch(url)
    return match[2] if match and re.fullmatch("[0-9a-f]{40}", match[2] or "") else None


class NotThereError(CheckpointError):
    """A bucket or repository that can be read, and has nothing of this name; or a bucket that is not there."""


class RemoteFile(ABC):
    """A file in a store. url: as it was given. size: in bytes. version: another one for other contents."""

    threads = 8  # that read at once
    piece = 2**23  # bytes that are asked for at a time
    url: str
    size: int
    version: str

    @abstractmethod
    def read(self, first: int, last: int) -> Any:
        """The bytes from `first` to before `last`, as a buffer. Raises: CheckpointError."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` with what is at `offset`, and return how many bytes that is. Raises: CheckpointError."""
        data = memoryview(self.read(offset, offset + len(view)))
        if len(data) != len(view):
            raise CheckpointError(f"{self.url}: the store sends {len(data):,} bytes where {len(view):,} were asked for")
        view[:] = data
        return len(view)


def open_remote(url: str) -> RemoteFile:
    """Raises: CheckpointError for what is no such URL, is not there or cannot be read, or for a missing package."""
    return (_HubFile if url.startswith("hf://") else _Object)(url)


def _shown(url: str) -> str:
    """What is no path, but for what may be secret in it."""
    return one_line(url) if re.fullmatch("[^@?#]*", url) else f"{url.partition(':')[0]}://..."


def exists(url: str) -> bool:
    """Is there such a file? Raises: CheckpointError where that cannot be found out."""
    try:
        open_remote(url)
    except NotThereError:
        return False
    return True


@contextlib.contextmanager
def uploading(url: str, *, overwrite: bool) -> Iterator[Path]:
    """Yields a path on this disk for a file to be written to, which then goes into the store, whole or not at all.

    If the body raises, nothing does. Raises: FileExistsError if there is one, before and after the body, unless
    `overwrite`; CheckpointError.
    """
    if not overwrite and exists(url):
        raise FileExistsError(f"{url} exists")
    with tempfile.TemporaryDirectory(prefix="edm2-") as folder:
        path = Path(folder, file_name(url))
        yield path
        if not overwrite and exists(url):
            raise FileExistsError(f"{url} exists")
        if url.startswith("hf://"):
            name = _hub_parts(url)[2]
            commit(url.removesuffix(f"/{name}"), {name: path}, f"{name}, by edm2-jax")
        else:
            store, key = _bucket(url)
            with _explained(url):
                _obstore().put(store, key, path)


# Buckets


class _Object(RemoteFile):
    """An object in a bucket, as obstore reads it."""

    def __init__(self, url: str):
        self.url = url
        self._store, self._key = _bucket(url)
        with _explained(url):
            about = _obstore().head(self._store, self._key)
        self.size, etag = about["size"], about["e_tag"]
        if not etag:
            raise CheckpointError(f"{url}: the store gives it no ETag, so nobody could tell if it changed meanwhile")
        self.version = etag

    def read(self, first: int, last: int) -> Any:
        if first == last:
            return b""
        with _explained(self.url):
            found = _obstore().get(self._store, self._key, options={"range": (first, last), "if_match": self.version})
            about, data = found.meta, found.bytes()
        if (about["e_tag"], about["size"]) != (self.version, self.size):  # from a store that knows no If-Match
            raise CheckpointError(f"{self.url}: {_CHANGED}")
        return data


_CHANGED = "was changed while it was read; read it again"


def _bucket(url: str) -> tuple[Any, str]:
    """A store, and the name of an object in it. Raises: CheckpointError."""
    _obstore()
    if (match := _OBJECT.fullmatch(url)) is None:
        raise CheckpointError(f"{_shown(url)}: is no path of a store; those are {FORMS}")
    from obstore.store import from_url

    scheme, bucket, key = match.groups()
    client = {"allow_http": True, "timeout": timedelta(seconds=SLOWEST)}
    backoff = {"init_backoff": timedelta(seconds=WAIT), "max_backoff": timedelta(seconds=10), "base": 2}
    retry = {"max_retries": RETRIES, "backoff": backoff, "retry_timeout": timedelta(seconds=SLOWEST)}
    with _explained(url):
        return from_url(f"{scheme}://{bucket}", client_options=client, retry_config=retry), key  # type: ignore


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise CheckpointError("s3:// and gs:// need obstore: pip install 'edm2-jax[remote]'") from None
    return obstore


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """obstore's errors, whose texts have many lines, in our words."""
    from obstore import exceptions

    login = LOGIN[url[:2]]
    try:
        yield
    except FileNotFoundError:
        raise NotThereError(f"{url}: there is no such object, or no such bucket; is the name right?") from None
    except exceptions.PreconditionError:
        raise CheckpointError(f"{url}: {_CHANGED}") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise CheckpointError(f"{url}: the store refuses it to who you are; {login}") from None
    except exceptions.BaseError as error:
        line = str(error).partition("\n")[0]
        if re.search(r"//169\.254\.|/latest/|/computeMetadata/", line):  # where credentials are looked for last
            raise CheckpointError(f"{url}: there are no credentials; {login}") from None
        line = re.sub(r"\?\S*", "", line)  # what is signed
        raise CheckpointError(f"{url}: the store cannot be read or written ({one_line(line):.300})") from None


# The hub


class _HubFile(RemoteFile):
    """A file of a model's repository, at the commit that its revision stands for."""

    def __init__(self, url: str):
        hub = _hub()
        self.url = url
        self._repo, revision, self._name = _hub_parts(url)

        def look():
            at = hub.hf_hub_url(self._repo, self._name, revision=revision)
            return hub.get_hf_file_metadata(at, headers=hub.utils.build_hf_headers(), timeout=SILENCE)

        about = _tried(url, look)
        if about.size is None or not about.commit_hash:
            raise CheckpointError(f"{url}: the hub does not say how long it is, or of which commit")
        self.size, self.version = about.size, about.commit_hash
        self._at = hub.hf_hub_url(self._repo, self._name, revision=about.commit_hash)

    def read(self, first: int, last: int) -> bytes:
        if first == last:
            return b""
        return _tried(self.url, lambda: self._attempt(first, last))

    def _attempt(self, first: int, last: int) -> bytes:
        """One request. Raises: errors of the HTTP library; CheckpointError."""
        utils = _hub().utils
        headers = utils.build_hf_headers() | {"Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
        begun, data = time.monotonic(), bytearray()
        with utils.get_session().stream(
            "GET", self._at, headers=headers, follow_redirects=True, timeout=SILENCE
        ) as response:
            utils.hf_raise_for_status(response)
            found = response.headers.get("Content-Range", "none")
            if response.status_code != 206 or found != f"bytes {first}-{last - 1}/{self.size}":
                raise CheckpointError(
                    f"{self.url}: asked for bytes {first}-{last - 1}/{self.size}, the hub answers "
                    f"{response.status_code} and {one_line(found):.60}; was it changed?"
                )
            for part in response.iter_raw():
                data += part
                if len(data) > last - first or time.monotonic() - begun > SLOWEST:
                    raise CheckpointError(f"{self.url}: the hub's answer is too long, or too slow")
        return bytes(data)


def _hub_parts(url: str, *, whole: bool = False) -> tuple[str, str | None, str]:
    """Repository, revision and the file's name. whole: of a repository, without a name. Raises: CheckpointError."""
    match = _HUB.fullmatch(url)
    if match is None or (match[3] is None) != whole or {"", ".", ".."} & {*(match[3] or "x").split("/")}:
        form = "hf://owner/repo or hf://owner/repo@branch" if whole else FORMS
        raise CheckpointError(f"{_shown(url)}: is no path of a store; those are {form}")
    return match[1], match[2] and unquote(match[2]), match[3] or ""


def _tried(url: str, ask: Callable[[], Result]) -> Result:
    """What `ask` gives, if need be after some attempts. Raises: CheckpointError."""
    from huggingface_hub import errors

    for attempt in range(RETRIES + 1):
        try:
            return ask()
        except CheckpointError:
            raise
        except errors.GatedRepoError:
            why = f"is gated: ask for access on its page, and {LOGIN['hf']}"
        except errors.RepositoryNotFoundError:
            why = f"the hub has no such repository, or not for who you are: is the name right? Else {LOGIN['hf']}"
        except errors.RevisionNotFoundError:
            why = "the repository has no such revision"
        except errors.EntryNotFoundError:
            raise NotThereError(f"{url}: the repository has no such file at this revision") from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            why = f"the hub answers {status}" + (f"; {LOGIN['hf']}" if status in (401, 403) else "")
            if status in (408, 425, 429) or status >= 500:
                time.sleep(WAIT * 2**attempt if attempt < RETRIES else 0)
                continue
        except Exception as error:  # of the HTTP library, which is another one in other versions of the client
            why = f"the connection to the hub breaks off, {RETRIES + 1} times in a row ({type(error).__name__})"
            time.sleep(WAIT * 2**attempt if attempt < RETRIES else 0)
            continue
        raise CheckpointError(f"{url}: {why}") from None
    raise CheckpointError(f"{url}: {why}") from None


def check_repository(url: str):
    """Is it a URL such as hf://owner/repo, and is there what it takes? Raises: CheckpointError."""
    _hub_parts(url, whole=True)
    _hub()


def make_repository(url: str):
    """If there is no hf://owner/repo, make it, as a private one. Raises: CheckpointError."""
    hub, (repo, *_) = _hub(), _hub_parts(url, whole=True)
    _tried(url, lambda: hub.HfApi().create_repo(repo, private=True, exist_ok=True))


def commit(url: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Put files into hf://owner/repo@branch, in one commit: its URL. Raises: CheckpointError."""
    hub, (repo, revision, _) = _hub(), _hub_parts(url, whole=True)

    def attempt() -> str:
        operations = [hub.CommitOperationAdd(name, file) for name, file in files.items()]
        done = hub.HfApi().create_commit(repo, operations, commit_message=message, revision=revision)
        return str(done.commit_url)

    with _bars(hub.utils):
        return _tried(url, attempt)


@contextlib.contextmanager
def _bars(utils: Any) -> Iterator[None]:
    """The client's progress bars are for terminals."""
    hidden = not sys.stderr.isatty() and not utils.are_progress_bars_disabled()
    if hidden:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            utils.enable_progress_bars()


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError("hf:// needs huggingface_hub: pip install 'edm2-jax[remote]'") from None
    return huggingface_hub
