"""Which URLs name files in stores, and what they say."""

import os
import re
from urllib.parse import unquote

from jax_edm2.messages import one_line
from jax_edm2.tensors import CheckpointError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.DOTALL | re.IGNORECASE)
_OBJECT = re.compile(r"(s3|gs)://([\w.-]+)/([^/?#](?:[^?#]*[^/?#])?)", re.ASCII)
_BUCKET = re.compile(r"(s3|gs)://([\w.-]+)()/?", re.ASCII)
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([^/@?#]+))?(?:/([^/?#](?:[^?#]*[^/?#])?))?", re.ASCII)
FORMS = "s3://bucket/name, gs://bucket/name or hf://owner/repo@revision/name"
LOGIN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": "set HF_TOKEN, or run `hf auth login`",
}


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


def shown(url: str) -> str:
    """What is no path, but for what may be secret in it."""
    return one_line(url) if re.fullmatch("[^@?#]*", url) else f"{url.partition(':')[0]}://..."


def bucket_parts(url: str, *, folder: bool = False) -> tuple[str, str, str]:
    """Scheme, bucket, and the object's name. folder: of a bucket, or a folder in it. Raises: CheckpointError."""
    match = _OBJECT.fullmatch(url.rstrip("/") if folder else url) or (folder and _BUCKET.fullmatch(url)) or None
    if match is None:
        raise CheckpointError(f"{shown(url)}: is no path of a store; those are {FORMS}")
    scheme, bucket, key = match.groups("")
    return scheme, bucket, key


def hub_parts(url: str, *, whole: bool = False) -> tuple[str, str | None, str]:
    """Repository, revision and the file's name. whole: of a repository, without a name. Raises: CheckpointError."""
    match = _HUB.fullmatch(url)
    if match is None or (match[3] is None) != whole or {"", ".", ".."} & {*(match[3] or "x").split("/")}:
        form = "hf://owner/repo or hf://owner/repo@branch" if whole else FORMS
        raise CheckpointError(f"{shown(url)}: is no path of a store; those are {form}")
    return match[1], match[2] and unquote(match[2]), match[3] or ""
