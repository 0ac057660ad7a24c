"""Repositories of models on the Hugging Face hub, hf://, by its own client."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jax_edm2.messages import one_line
from jax_edm2.remote import files
from jax_edm2.remote.files import RETRIES, SILENCE, SLOWEST, NotThereError, RemoteFile
from jax_edm2.remote.urls import LOGIN, hub_parts
from jax_edm2.tensors import CheckpointError

Result = TypeVar("Result")


class HubFile(RemoteFile):
    """A file of a model's repository, at the commit that its revision stands for."""

    def __init__(self, url: str):
        hub = _hub()
        self.url = url
        self._repo, revision, self._name = hub_parts(url)

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


def listing(url: str) -> dict[str, str]:
    """URLs, of the commit that there is now, by their names, of what is in a repository or a folder of it.

    Raises: CheckpointError.
    """
    url = url.rstrip("/")
    try:
        repo, revision, folder = hub_parts(url)
    except CheckpointError:
        repo, revision, folder = hub_parts(url, whole=True)
    hub = _hub()
    about = _tried(url, lambda: hub.HfApi().model_info(repo, revision=revision, timeout=SILENCE))
    start = f"{folder}/" if folder else ""
    names = [each.rfilename.removeprefix(start) for each in about.siblings if each.rfilename.startswith(start)]
    return {name: f"hf://{repo}@{about.sha}/{start}{name}" for name in names if "/" not in name}


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
                time.sleep(files.WAIT * 2**attempt if attempt < RETRIES else 0)
                continue
        except Exception as error:  # of the HTTP library, which is another one in other versions of the client
            why = f"the connection to the hub breaks off, {RETRIES + 1} times in a row ({type(error).__name__})"
            time.sleep(files.WAIT * 2**attempt if attempt < RETRIES else 0)
            continue
        raise CheckpointError(f"{url}: {why}") from None
    raise CheckpointError(f"{url}: {why}") from None


def check_repository(url: str):
    """Is it a URL such as hf://owner/repo, and is there what it takes? Raises: CheckpointError."""
    hub_parts(url, whole=True)
    _hub()


def make_repository(url: str):
    """If there is no hf://owner/repo, make it, as a private one. Raises: CheckpointError."""
    hub, (repo, *_) = _hub(), hub_parts(url, whole=True)
    _tried(url, lambda: hub.HfApi().create_repo(repo, private=True, exist_ok=True))


def commit(url: str, contents: Mapping[str, Path | bytes], message: str) -> str:
    """Put files into hf://owner/repo@branch, in one commit: its URL. Raises: CheckpointError."""
    hub, (repo, revision, _) = _hub(), hub_parts(url, whole=True)

    def attempt() -> str:
        operations = [hub.CommitOperationAdd(name, file) for name, file in contents.items()]
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
