"""The source inside a snapshot beside known ones: what is called known, what differs, and who is told."""

import dataclasses
import inspect
import json

import pytest

import jax_edm2
from jax_edm2.config import EDM2Config
from jax_edm2.converter import embedded, processes, sample
from jax_edm2.converter.cli.convert import edm2_convert
from jax_edm2.converter.cli.sample import edm2_sample
from jax_edm2.converter.cli.verify import edm2_verify
from jax_edm2.converter.meaning import MOST_BYTES, MeaningError, meaning_of
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.record import Code, Record, RecordError
from jax_edm2.torch_ref import network
from tests.cli.test_verify import embedding

SOURCE = inspect.getsource(network)
OURS, OUTSIDE = "torch_ref of edm2-jax", "the module's other statements"
SILU = ("return F.silu(x) / 0.596", "return F.silu(x) / 0.6")


def edited(old: str, new: str, source: str = SOURCE) -> str:
    assert old in source
    return source.replace(old, new)


def forked(path, *edit: str):
    embedding(path, lambda source: edited(*(edit or SILU), source))
    return path


def test_our_present_source_is_known():
    """If not: `python -m golden.known_sources`."""
    assert embedded.known_text(embedded.sha256_of(SOURCE)) == OURS
    found = meaning_of(SOURCE)
    assert [
        known.name for known in embedded.known_sources() if (known.whole, known.parts) == (found.whole, found.parts)
    ] == [OURS]


@pytest.mark.parametrize("name", ["digits.pkl", "digits-guide.pkl"])
def test_the_snapshots_that_we_have_are_known(digits_pkl, name):
    with read_snapshot(digits_pkl.with_name(name)) as snapshot:
        assert embedded.identify(snapshot.source) == Code(embedded.sha256_of(snapshot.source), known=OURS)


def test_nvlabs_source_is_recorded_as_hashes_alone():
    (known,) = (known for known in embedded.known_sources() if known.name.startswith("NVlabs/edm2"))
    functions = {"normalize", "resample", "mp_silu", "mp_sum", "mp_cat"}
    classes = {"MPFourier", "MPConv", "Block", "UNet", "Precond"}
    methods = {f"{name}.{method}" for name in classes for method in ("__init__", "forward")}
    assert set(known.parts) == functions | classes | methods | {OUTSIDE}
    hashes = [known.text, known.whole, *known.parts.values()]
    assert all(len(value) == 64 and int(value, 16) for value in hashes)


def test_text_that_means_the_same_is_known():
    source = edited('"""Magnitude-preserving SiLU (Eq. 81)."""', '"another docstring"')
    source = edited("def mp_silu(x):", "# a comment\n\n\ndef mp_silu( x ) :  # and one here", source)
    source = edited("return F.silu(x) / 0.596", "return (F . silu(x)\f / 0.5960)", source).replace("\n", "\r\n")
    assert embedded.identify(source) == Code(embedded.sha256_of(source), known=OURS)


FORKS = {
    "another constant": (SILU, ("mp_silu",)),
    "the type of a constant": (("mp_sum(a, b, t=0.5)", "mp_sum(a, b, t=True)"), ("mp_sum",)),
    "a default": (("eps=1e-4", "eps=1e-3"), ("normalize",)),
    "an order of arguments": (("mp_sum(a, b, t=0.5)", "mp_sum(b, a, t=0.5)"), ("mp_sum",)),
    "a decorator": (("def mp_silu", "@torch.compile\ndef mp_silu"), ("mp_silu",)),
    "a class attribute": (("class Block(Recorded):\n", "class Block(Recorded):\n    balance = 2\n"), ("Block",)),
    "a base class": (("class Block(Recorded)", "class Block(nn.Module)"), ("Block",)),
    "a metaclass": (("class Block(Recorded)", "class Block(Recorded, metaclass=M)"), ("Block",)),
    "a method": (("class Block(Recorded):\n", "class Block(Recorded):\n    def train(self): 0\n"),
                 ("Block.train (added)",)),
    "an annotation, which is evaluated": (("def mp_silu(x)", "def mp_silu(x: setattr(F, 'silu', F.relu))"),
                                          ("mp_silu",)),
    "an import": (("import torch.nn.functional as F", "import torch.nn.modules as F"), (OUTSIDE,)),
    "a second definition": (("def mp_sum", "def mp_silu(x): return x\n\n\ndef mp_sum"), ("mp_silu (2) (added)",)),
    "a rename": (("def mp_silu", "def mp_relu"), ("mp_silu (missing)", "mp_relu (added)")),
    "letters that look alike": (("def mp_silu", "def mp_s\u0456lu"), ("mp_silu (missing)", "mp_s\\u0456lu (added)")),
    "an asynchronous function": (("def mp_silu", "async def mp_silu"), ("mp_silu",)),
    "a global": (("return F.silu(x)", "global F; return F.silu(x)"), ("mp_silu",)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_is_not_known_and_what_differs_is_named(name):
    edit, differs = FORKS[name]
    code = embedded.identify(edited(*edit))
    assert (code.known, code.nearest, code.differs) == (None, OURS, differs)


@pytest.mark.parametrize("line", ["F.silu = F.relu", "del mp_silu", "Block.forward = None", "if 1: x = 2", "'x'"])
def test_a_statement_at_the_end_is_a_difference(line):
    assert embedded.identify(f"{SOURCE}\n{line}\n").differs == (OUTSIDE,)


def test_another_order_is_a_difference():
    first, second = "import math\n", "from typing import Any\n"
    definition = inspect.getsource(network.mp_silu)
    assert embedded.identify(edited(first + second, second + first)).differs == (OUTSIDE,)
    assert embedded.identify(edited(definition, "") + definition).differs == (embedded.ORDER,)


def test_what_is_said_of_strange_sources_is_bounded():
    many = embedded.identify(SOURCE + "".join(f"def extra{i}{'x' * 150}(): 0\n" for i in range(1000)))
    assert len(many.differs) == Code.MOST
    assert many.differs[-1] == "981 more"
    assert len(embedded.description(many)) < 1700
    assert "normalize (missing)" in embedded.identify("").differs


# Depth, time and memory: whatever is refused, is refused with a phrase, and no process of ours crashes.
HOSTILE = {
    "a minus of a minus": "x = " + "-" * 200_000 + "1",
    "not not": "x = " + "not " * 50_000 + "1",
    "attributes": "x = a" + ".b" * 100_000,
    "calls": "x = f" + "()" * 100_000,
    "sums": "x = " + "1+" * 100_000 + "1",
    "lambdas": "x = " + "lambda:" * 30_000 + "1",
    "parentheses": "x = " + "(" * 200_000,
    "elif": "if a: pass\n" + "elif a: pass\n" * 19_000,
    "a null byte": "x = 1\0",
    "a surrogate": "x = '\ud800'",
    "a byte order mark": "\ufeffx = 1",
    "long integers": "x = " + "9" * 5_000,
    "no Python": "x = (",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_sources(name):
    with pytest.raises(MeaningError, match=r"^is (no Python: .{1,190}|nested too deep, or too large, to be compared)$"):
        meaning_of(HOSTILE[name])
    (differs,) = embedded.identify(HOSTILE[name]).differs
    assert differs.startswith("all of it, which is ")


def test_limits(monkeypatch):
    with pytest.raises(MeaningError, match=r"holds 262,145 bytes; 262,144 are compared at most"):
        meaning_of(" " * (MOST_BYTES + 1))
    monkeypatch.setattr(processes, "python", lambda code: ["sh", "-c", "cat > /dev/null; kill -SEGV $$"])
    with pytest.raises(MeaningError, match=r"cannot be parsed in 10 s and 1 GB"):
        meaning_of("x = 1")


def test_hashes_are_the_same_in_every_version_of_python():
    """Recorded with 3.11.7, 3.12.1 and 3.13.0."""
    source = """
"doc"
from __future__ import annotations
@d(1, *a, **k)
async def f(a, /, b: int = 1, *c, d=None, e, **g) -> "x":
    "doc"
    async with a as b, c: yield 1
    return f"a{1!r:>{b}}b" "c" f"{x=}" u"d" f""
class C(B, m=M):
    x: int = 0
    def g(self): del self.x[1:2, ...], a
match x:
    case [1, *_, {"a": 2, **r}] | C(x=None) if x: pass
    case _: global y
try: raise E from e
except* (A, B) as e: assert not -1j ** 1e999, 0x10
else: lambda *, a=1: (a := {**b, 1: 2}, {*c}, [i async for i in j if k])
"""
    assert meaning_of(source).whole == "8f38b67deeefe269e3167662ab4e104dfd5533dee41b9f893727706a92440f06"


def test_the_record_keeps_it():
    record = Record(EDM2Config(img_resolution=8, img_channels=1, label_dim=0), code=embedded.identify(edited(*SILU)))
    assert Record.from_json(record.to_json()) == record
    fields = json.loads(record.to_json())
    del fields["code"], fields["record_digest"]  # as in records of before
    assert Record.from_json(json.dumps(fields)) == dataclasses.replace(record, code=None)
    odd = [{"sha256": 5}, {"sha256": "0" * 201}, {"known": 1}, {"nearest": []}, {"other": 1}]
    odd += [{"differs": value} for value in ("x", ["x"] * 21, ["x" * 201], [5], [["x"]])]
    for values in odd:
        with pytest.raises(RecordError):
            Record.from_json(json.dumps({**fields, "code": {"sha256": "0" * 64, **values}}))


# Commands


@dataclasses.dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys):
    """Runs a command of ours in this process."""
    commands = {"convert": edm2_convert, "sample": edm2_sample, "verify": edm2_verify}

    def invoke(command, *arguments):
        capsys.readouterr()
        code = commands[command].main([str(argument) for argument in arguments], standalone_mode=False) or 0
        return Done(code, *capsys.readouterr())

    return invoke


def test_convert_and_sample_warn(tmp_path, run, monkeypatch):
    path, target = forked(tmp_path / "fork.pkl"), tmp_path / "fork.safetensors"
    with read_snapshot(path) as snapshot:
        code = embedded.identify(snapshot.source)
    assert (code.nearest, code.differs) == (OURS, ("mp_silu",))
    words = f"fork.pkl: the source of its network (sha256:{code.sha256}) is not a known one; "
    words += f"what differs from {OURS}: mp_silu."
    done = run("convert", path, "-o", target, "--json")
    assert done.returncode == 0
    assert done.stderr.startswith(f"edm2-convert: warning: {words}")
    assert "edm2-verify --reference embedded judges" in done.stderr
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["metadata"]["code"] == {**dataclasses.asdict(code), "differs": ["mp_silu"]}
    assert jax_edm2.read_record(target).code == code
    monkeypatch.setattr(sample, "_draw", lambda *_: (0, 0, 0.0))
    arguments = ("--outdir", tmp_path / "out", "--latents", "--steps=1", "--seeds=1", "--device=cpu", "--json")
    for net in (path, target):
        done = run("sample", f"--net={net}", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(f"edm2-sample: warning: {words.replace('fork.pkl', net.name)}")
        assert done.stderr.count("\n") == 1
        assert json.loads(done.stdout)["network"]["code"]["differs"] == ["mp_silu"]


def test_verify_says_what_was_run(tmp_path, run):
    path = forked(tmp_path / "fork.pkl")
    checks = ("--checks", "parameters,trajectory", "--steps", 2)
    done = run("verify", path, *checks, "--device", "cpu", "--report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"edm2-verify: warning: {path}: the source of its network")
    assert done.stderr.count("\n") == 1
    headline = "JAX computes what torch_ref computes; the snapshot's own source was not run; "
    headline += "checked: parameters, trajectory; not checked: forward, gradients"
    assert f"\nAGREES IN PART WITH torch_ref: {headline}.\n" in done.stdout
    record = json.loads((tmp_path / "report.json").read_text())
    assert (record["verdict"], record["headline"]) == ("agrees", headline)
    assert (record["code"]["known"], record["code"]["differs"], record["code"]["run"]) == (None, ["mp_silu"], False)
    assert any("mp_silu. It was not run" in warning for warning in record["warnings"])
    assert (tmp_path / "report.md").read_text().startswith("### edm2-verify: agrees in part with torch_ref\n")
    assert "<h1>Agrees in part with torch_ref</h1>" in (tmp_path / "report.html").read_text()
    arguments = ("--checks", "trajectory", "--steps", 2, "--device", "cpu", "--json")
    done = run("verify", path, *arguments, "--reference", "embedded", "--trust-embedded-code")
    assert done.returncode == 1, done.stderr  # the fork is another network
    assert json.loads(done.stdout)["code"]["run"] is True
    assert "mp_silu" in done.stderr


def test_a_truth_from_elsewhere_says_it_too(tmp_path, run):
    """As far as the checkpoint beside it knows."""
    path, target, truth = forked(tmp_path / "fork.pkl"), tmp_path / "fork.safetensors", tmp_path / "truth.npz"
    assert run("convert", path, "-o", target).returncode == 0
    assert run("verify", path, "--checks", "parameters", "--save-truth", truth).returncode == 0
    done = run("verify", "--truth", truth, "--checkpoint", target, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "mp_silu. It was not run" in " ".join(done.stdout.split())
    assert done.stdout.endswith("\nAGREES IN PARAMETERS: the parameters are equal; no network was run.\n")


def test_show_source(tmp_path, run):
    hidden = "#" + " " * 5000 + "hidden"
    path = forked(tmp_path / "fork.pkl", "import math\n", f"import math\r{hidden}\n# \x9b2J\u202e\nopen('ran', 'w')\n")
    done = run("verify", path, "--show-source", "--reference", "embedded", "--trust-embedded-code")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert f"{path}: sha256:" in first
    assert f"what differs from {OURS}: {OUTSIDE}" in first
    at = next(i for i, line in enumerate(lines) if line.endswith("import math"))  # where Python ends the line
    assert any(line.strip().startswith("+") and line.endswith("hidden") for line in lines[at:])  # nothing is left out
    assert any(line.endswith("# \\x9b2J\\u202e") for line in lines)
    assert max(map(len, lines)) < 200
    assert not (tmp_path / "ran").exists()
    shown = json.loads(run("verify", path, "--show-source", "--json").stdout)
    with read_snapshot(path) as snapshot:
        assert shown["source"] == snapshot.source
