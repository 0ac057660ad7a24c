"""Broken and hostile sources of datasets: pictures, archives of them, labels, latents, and places that are none."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from tests.corpora.hostile_vaes import SMALL
from tests.corpora.inputs import ACCEPT, Input
from tests.support.json_mutants import RAW

INPUTS: list[Input] = []
CONVERT = ("edm2-dataset", "convert", "--source=input", "--dest=output.zip")
DECODE = ("edm2-dataset", "decode", "--source=input", "--dest=output.zip", "--vae=input/vae", "--device=cpu")
ENCODE = ("edm2-dataset", "encode", *DECODE[2:])
COMPUTED = {"seconds": 30, "megabytes": 500}  # a network is compiled and run


def add(kind: str, name: str, says: str, build: Callable[[Path], Any], command=CONVERT, **more: Any):
    INPUTS.append(Input(kind, name, build, says, command, "input", "output.zip", **more))


def png(size=(8, 8), mode="RGB", kind="PNG", **more) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new(mode, size).save(stream, kind, **more)
    return stream.getvalue()


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(width: int, height: int, chunks: bytes = b"") -> bytes:
    """A PNG file that says its size, and has nothing else but other chunks."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)) + chunks


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def folder(files: dict[str, bytes]) -> Callable[[Path], Any]:
    def build(path: Path):
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)

    return build


# Pictures

PICTURES = "picture"
DATA = chunk(b"IDAT", zlib.compress(b"x"))
BROKEN = {
    "text": (b"no picture", "is no picture that can be read: of no kind that is known"),
    "nothing": (b"", "is no picture that can be read"),
    "a signature alone": (png()[:8], "is no picture that can be read"),
    "half of it": (png((64, 64))[:45], "is no picture that can be read"),
    "without an end": (header(8, 8), "is no picture that can be read"),
    "pixels that are not compressed": (header(8, 8, chunk(b"IDAT", bytes(99))), "is no picture that can be read"),
    "a checksum is wrong": (png()[:20] + b"\xff" + png()[21:], "is no picture that can be read"),
    "40,000 x 40,000": (header(40_000, 40_000, DATA), "is no picture that can be read: Image size (1600000000 pixels)"),
    "12,000 x 12,000": (header(12_000, 12_000, DATA), "is a picture of 12000 x 12000, and 89,478,485 pixels are"),
    "no width": (header(0, 8), "is no picture that can be read"),
    "a text of 100 MB": (
        header(8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8), 9))), "is no picture that can be read",
    ),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch) system\n", "of no kind that is known"),
    "a page of PDF": (b"%PDF-1.4\n", "of no kind that is known"),
    "not a power of two": (png((12, 12)), "is of 12 x 12, and pictures must be square, with sides"),
    "wide": (png((16, 8)), "is of 16 x 8, and pictures must be square"),
}  # fmt: skip
for name, (data, says) in BROKEN.items():
    add(PICTURES, name, f"input: 'a/b.png' {says}" if says.startswith("is") else says, folder({"a/b.png": data}))
add(
    PICTURES,
    "of two sizes",
    "'b.png' is of 16 x 16, and others are of 8 x 8",
    folder({"a.png": png(), "b.png": png((16, 16))}),
)
add(PICTURES, "JPEG cut short", "'a.jpg' is no picture that can be read: image file is truncated",
    folder({"a.jpg": png((64, 64), kind="JPEG")[:-40]}))  # fmt: skip
add(
    PICTURES,
    "TIFF of 2^31 tiles",
    "'a.tif' is no picture that can be read",
    folder({"a.tif": b"II*\0\xff\xff\xff\x7f"}),
)
add(PICTURES, "with escapes in its name", r"'\x1b[2J\u202e.png' is no picture", folder({"\x1b[2J\u202e.png": b"x"}))
add(PICTURES, "with a name that is no text", r"'\udcff.png' is no picture", folder({os.fsdecode(b"\xff.png"): b"x"}))
add(PICTURES, "a broken one beside others", "'5.png' is no picture",
    folder({**{f"{number}.png": png() for number in range(20)}, "5.png": b"x"}))  # fmt: skip
add(PICTURES, "sound", ACCEPT, folder({"a.png": png()}))
add(
    PICTURES,
    "with a corrupt note of the camera",
    ACCEPT,
    folder({"a.jpg": png(kind="JPEG", exif=b"Exif\0\0II*\0\xff\xff")}),
)
add(PICTURES, "none", "input: holds no files with the ending .png", folder({"readme.txt": b""}))
add(PICTURES, "a pipe", "input: holds no files with the ending .png", lambda path: _pipe(path / "a.png"))
add(PICTURES, "links in a circle", "'a/b' is a link to a folder that it lies in", lambda path: _circle(path))
add(PICTURES, "a link to itself", "input/a.png: Too many levels of symbolic links", lambda path: _itself(path))


def _pipe(path: Path):
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)


def _circle(path: Path):
    (path / "a").mkdir(parents=True)
    (path / "a" / "b").symlink_to(path)


def _itself(path: Path):
    path.mkdir()
    (path / "a.png").symlink_to(path / "a.png")


# Archives

ARCHIVES = "picture archive"


def archive(name: str, says: str, content: Callable[[], bytes]):
    add(ARCHIVES, name, says, lambda path: path.write_bytes(content()))


def packed(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as made:
        for name, data in files.items():
            made.writestr(zipfile.ZipInfo(name), data, kind)
    return stream.getvalue()


def patched(offset: int, form: str, value: int, data: bytes | None = None) -> bytes:
    """A sound archive with another number in its directory's only entry, and in the member's own header."""
    found = bytearray(data or packed({"a.png": png()}))
    struct.pack_into(form, found, found.index(b"PK\1\2") + offset, value)
    struct.pack_into(form, found, offset - 2, value)
    return bytes(found)


archive("of a ZIP's kind", ACCEPT, lambda: packed({"a.png": png()}))
archive("text", "input: is no ZIP file that can be read", lambda: b"no archive")
archive("nothing", "input: is no ZIP file that can be read", lambda: b"")
archive("half of it", "input: is no ZIP file that can be read", lambda: packed({"a.png": png()})[:100])
archive("without members", "input: holds no files with the ending .png", lambda: packed({}))
archive("encrypted", "'a.png' is encrypted", lambda: patched(8, "<H", 1))
archive("of a method that nobody knows", "'a.png' is broken", lambda: patched(10, "<H", 77))
archive("of another length", "'a.png' is", lambda: patched(24, "<I", 10))
archive("of 4 GB by its entry", "'a.png' has 4,294,967,294 bytes, and may have", lambda: patched(24, "<I", 2**32 - 2))
archive("another checksum", "'a.png' is broken: Bad CRC-32", lambda: patched(16, "<I", 7))
archive("300 MB of zeros", "'a.png' has 300,000,000 bytes, and may have 268,435,456", lambda: _zeros())
archive("a name above it", "'../a.png' is no name of a file in a dataset", lambda: packed({"../a.png": png()}))
archive("a name from the root", "'/a.png' is no name of a file in a dataset", lambda: packed({"/a.png": png()}))
archive("a name twice", "two files in it have one name", lambda: _twice())
archive("a broken picture", "'a.png' is no picture that can be read", lambda: packed({"a.png": b"x", "b.png": png()}))


def _zeros() -> bytes:
    return packed({"a.png": bytes(300_000_000)}, zipfile.ZIP_DEFLATED)


def _twice() -> bytes:
    return packed({"a.png": png(), "b.png": png()}).replace(b"b.png", b"a.png")


# Labels

LABELS = "dataset.json"


def labels(name: str, says: str, text: bytes):
    add(LABELS, name, says, folder({"a.png": png(), "b.png": png(), "dataset.json": text}))


labels("nothing", "'dataset.json' is no JSON", b"")
labels("half of it", "'dataset.json' is no JSON", b'{"labels": [')
labels("no UTF-8", "'dataset.json' is no JSON", b"\xff\xfe")
labels("nested deep", "'dataset.json' is no JSON", RAW["lists nested 100,000 deep"])
labels("a number", "'dataset.json' must be", b"5")
labels("labels of text", "'dataset.json' must be", b'{"labels": "many"}')
labels("pairs of three", 'and has ["a.png", 1, 2]', b'{"labels": [["a.png", 1, 2]]}')
labels("a class of true", 'and has ["a.png", true]', b'{"labels": [["a.png", true]]}')
labels("a class of a list", 'and has ["a.png", [0, 1]]', b'{"labels": [["a.png", [0, 1]]]}')
labels("a class below 0", "says that 'a.png' is of class -1", b'{"labels": [["a.png", -1]]}')
labels("a class of 30 digits", "says that 'a.png' is of class 9", b'{"labels": [["a.png", %s]]}' % (b"9" * 30))
labels("a class of 5,000 digits", "'dataset.json' is no JSON", b'{"labels": [["a.png", %s]]}' % (b"9" * 5000))
labels("a file twice", "names 'a.png' twice", b'{"labels": [["a.png", 1], ["a.png", 2]]}')

# Latents and VAEs

LATENTS, VAE = "latents", "encoding"


def vae(path: Path, **config: Any):
    """A VAE with both halves, of a size that fits, below the source."""
    import safetensors.numpy

    from jax_edm2.vae import CONFIG, WEIGHTS, VAEConfig

    config = {**SMALL, **config}
    found = VAEConfig(**{**config, "block_out_channels": tuple(config["block_out_channels"])})
    rng = np.random.default_rng(0)
    shapes = {**found.encoder_tensors, **found.decoder_tensors}
    tensors = {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}
    (path / "vae").mkdir(parents=True)
    safetensors.numpy.save_file(tensors, path / "vae" / WEIGHTS)
    (path / "vae" / CONFIG).write_text(json.dumps(config))


def with_vae(files: dict[str, bytes], **config: Any) -> Callable[[Path], Any]:
    def build(path: Path):
        vae(path, **config)
        folder(files)(path)

    return build


def latents(name: str, says: str, files: dict[str, bytes], **more: Any):
    add(LATENTS, name, says, with_vae(files), DECODE, **more)


SOUND = np.zeros((8, 4, 4), np.float32)
HUGE = npy(SOUND)[:10] + b"{'descr': '<f8', 'fortran_order': False, 'shape': (64, 4096, 4096), }".ljust(117) + b"\n"
latents("sound", ACCEPT, {"a.npy": npy(SOUND)}, **COMPUTED)
latents("none", "input: holds no files with the ending .npy", {"a.png": png()})
latents("text", "'a.npy' is no NPY file that can be read", {"a.npy": b"x"})
latents("of objects", "'a.npy' holds '|O'", {"a.npy": npy(np.array([None, {}], object))})
latents("of 8 GB", "'a.npy' says 8589934592 bytes of values, and has 0", {"a.npy": HUGE})
latents("of 6 channels", "'a.npy' is [6, 4, 4], and the VAE decodes means and", {"a.npy": npy(SOUND[:6])})
latents("of bytes", "'a.npy' holds uint8, not float32", {"a.npy": npy(SOUND.astype(np.uint8))})
latents("NaN", "'a.npy' has values that are not finite", {"a.npy": npy(SOUND * np.nan)})
latents("of two sizes", "'b.npy' is [8, 8, 4], and 'a.npy' is [8, 4, 4]",
        {"a.npy": npy(SOUND), "b.npy": npy(np.zeros((8, 8, 4), np.float32))})  # fmt: skip
latents("that overflow", "'a.npy' becomes NaN or infinite", {"a.npy": npy(SOUND + np.float32(3e38))}, **COMPUTED)

add(VAE, "sound", ACCEPT, with_vae({"a.png": png()}), ENCODE, **COMPUTED)
add(
    VAE,
    "no multiple",
    "'a.png' is of 9 x 8, and the VAE takes multiples of 2",
    with_vae({"a.png": png((9, 8))}),
    ENCODE,
)
add(VAE, "of two sizes", "'b.png' is [16, 8, 3], and 'a.png' is [8, 8, 3]",
    with_vae({"a.png": png(), "b.png": png((8, 16))}), ENCODE)  # fmt: skip
add(VAE, "a VAE of one channel", "input/vae: encodes 1 channels", with_vae({"a.png": png()}, in_channels=1), ENCODE)
add(VAE, "a VAE to five channels", "input/vae: decodes to 5 channels", with_vae({"a.npy": npy(SOUND)}, out_channels=5),
    DECODE)  # fmt: skip
add(VAE, "no VAE", "input/vae/diffusion_pytorch_model.safetensors: there is no such file",
    folder({"a.png": png(), "vae/x": b""}), ENCODE)  # fmt: skip
add(VAE, "a name that is not there", "offline", folder({"a.png": png()}),
    (*ENCODE[:-2], "--vae=nobody/nothing", "--offline", "--cache-dir=cache", "--device=cpu"))  # fmt: skip

# Destinations

DEST = "destination"


def dest(name: str, says: str, to: str, build: Callable[[Path], Any] = lambda path: None, *more: str):
    def both(path: Path):
        folder({"a.png": png()})(path)
        build(path)

    add(DEST, name, says, both, (*CONVERT[:3], f"--dest={to}", *more))


dest("the source itself", "input: is a folder that is not empty", "input")
dest("a file", "input/file: is a file, and no folder", "input/file", lambda path: (path / "file").write_text("x"))
dest("below a file", "input/a.png", "input/a.png/out.zip")
dest("a folder with a ZIP's name", "is a folder, and --dest with the ending .zip is a file", "input/x.zip",
     lambda path: (path / "x.zip").mkdir())  # fmt: skip
dest("a ZIP that is there", "input/x.zip exists; use --force to replace it", "input/x.zip",
     lambda path: (path / "x.zip").write_text("x"))  # fmt: skip
dest("a name of 300 letters", "File name too long", "x" * 300 + ".zip")
dest("too small for what is asked", "nothing is written: all pictures are too small", "output.zip", lambda path: None,
     "--transform=center-crop-wide", "--resolution=16x8")  # fmt: skip
