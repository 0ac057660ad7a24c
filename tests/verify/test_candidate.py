"""Somebody else's port, held to the truth of a snapshot: correct ones agree, mistakes are found and named."""

import contextlib
import json

import jax
import jax.numpy as jnp
import pytest

from jax_edm2.converter import processes
from jax_edm2.converter.networks import in_memory
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify import assert_agrees
from jax_edm2.converter.verify.cases import OF_ANY_DENOISER, Plan
from jax_edm2.converter.verify.jax_side.ported import Ported
from jax_edm2.converter.verify.oracle_process import save_truth
from jax_edm2.converter.verify.port import import_port
from jax_edm2.converter.verify.request import FromSnapshot, Port, VerifyError
from jax_edm2.folding import fold
from jax_edm2.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.support.command_line import Tool
from tests.support.networks import network

TOOL = Tool("edm2-verify", processes.module("jax_edm2.converter.cli.verify"))
run, fails = TOOL.run, TOOL.fails
CONFIG = {  # an image is a cube: its axes may be mixed up without another shape
    "img_resolution": 4, "img_channels": 4, "label_dim": 3, "model_channels": 8, "channel_mult": [1], "num_blocks": 0,
    "attn_resolutions": [4], "channels_per_head": 8, "logvar_channels": 4,
}  # fmt: skip
PLAN = Plan(OF_ANY_DENOISER, seeds=(0, 1), steps=1)
MODULE = """
import jax_edm2
print("loading")  # is no part of --json
model = jax_edm2.from_pretrained({snapshot!r})
def denoise(x, sigma, labels):
    return model.net.apply(model.variables, x, sigma, labels, return_logvar=True)
def dropped(x, sigma, labels):
    return denoise(x, sigma, None)
"""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    path = tmp_path_factory.mktemp("candidate") / "small.pkl"
    write_snapshot(path, network(CONFIG, 2))
    return path


@pytest.fixture(scope="module")
def ours(snapshot):
    """Our network and its variables."""
    with read_snapshot(snapshot) as opened:
        return Precond(opened.config), in_memory(opened)


@pytest.fixture(scope="module")
def truth(snapshot):
    path = snapshot.with_suffix(".npz")
    save_truth(FromSnapshot(snapshot, PLAN), path)
    return path


def shaped(value):
    return value.reshape(-1, 1, 1, 1)


def test_our_network_agrees_and_all_that_can_be_judged_is(ours, truth):
    net, variables = ours

    def denoise(x, sigma, labels):
        return net.apply(variables, x, sigma, labels, return_logvar=True)

    outcome = assert_agrees(truth, denoise)
    measured = {check: [m.name for m in found] for check, found in outcome.measurements.items() if found}
    assert measured["forward"] == ["denoised", "logvar"] * 2
    assert measured["derivative"] == ["of D by the noise, seed0", "of D by the noise, seed1"]
    assert len(measured["trajectory"]) == 2
    assert set(measured) == set(OF_ANY_DENOISER)
    assert outcome.findings.parameters is None
    assert "not judged: parameters, operations inside" in outcome.warnings[0]


def test_a_port_that_computes_in_another_way_agrees(ours, truth):
    """Weights prepared once, logvar as [N], no sigma but ln(sigma): and it is compiled by itself."""
    net, variables = fold(*ours, "cpu")

    @jax.jit
    def denoise(x, sigma, labels):
        denoised, logvar = net.apply(variables, x, jnp.exp(jnp.log(sigma)), labels, return_logvar=True)
        return [denoised, logvar[:, 0, 0, 0]]

    assert_agrees(truth, denoise)
    outcome = assert_agrees(truth, lambda *given: denoise(*given)[0])
    assert "not judged: logvar, parameters" in outcome.warnings[0]


def wrong_skip(net, denoised, logvar, x, sigma):
    level, data = shaped(sigma), net.config.sigma_data
    return denoised + data**2 * (1 / (level + data**2) - 1 / (level**2 + data**2)) * x, logvar


def half_of_it_stopped(net, denoised, logvar, x, sigma):
    skip = x / (1 + shaped(sigma) ** 2 / net.config.sigma_data**2)
    return jax.lax.stop_gradient(denoised - skip) + skip, logvar


FAULTS = {  # what they do to the outputs of a network, and the checks that fail
    "sigma is not squared in c_skip": (wrong_skip, {"forward", "derivative", "trajectory"}),
    "the gradient is stopped": (half_of_it_stopped, {"derivative"}),
    "logvar": (lambda net, denoised, logvar, x, sigma: (denoised, 1.001 * logvar), {"forward"}),
    "not a number": (lambda net, denoised, logvar, x, sigma: (denoised * jnp.nan, logvar), set(OF_ANY_DENOISER)),
}


def failing(truth, denoise):
    """The checks that disagree."""
    with pytest.raises(AssertionError, match="DISAGREES: ") as caught:
        assert_agrees(truth, denoise)
    lines = str(caught.value).splitlines()
    return {line.split()[1] for line in lines if line.startswith("BAD ")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_what_is_returned(ours, truth, fault):
    (net, variables), (change, checks) = ours, FAULTS[fault]

    def denoise(x, sigma, labels):
        return change(net, *net.apply(variables, x, sigma, labels, return_logvar=True), x, sigma)

    assert failing(truth, denoise) == checks


def test_faults_inside(ours, truth):
    net, variables = ours
    half = net.clone(dtype=jnp.bfloat16)

    def turned(x, sigma, labels):
        return net.apply(variables, x.transpose(0, 2, 3, 1), sigma, labels).transpose(0, 3, 1, 2)

    for denoise in (
        lambda x, sigma, labels: net.apply(variables, x, sigma, None),
        lambda x, sigma, labels: half.apply(variables, x, sigma, labels).astype(jnp.float32),
        turned,  # [N, H, W, C] is not what the network takes
    ):
        assert failing(truth, denoise) == set(OF_ANY_DENOISER)


def test_one_sigma_for_all_images(ours, truth):
    net, variables = ours

    def denoise(x, sigma, labels):
        return net.apply(variables, x, jnp.broadcast_to(sigma[0], sigma.shape), labels)

    assert failing(truth, denoise) == {"forward", "derivative"}


HOSTILE = {
    "given x [4, 4, 4, 4], sigma [4] and labels [4, 3], ValueError: no": lambda x, s, c: _raise(ValueError("no")),
    "SystemExit: 0": lambda x, s, c: _raise(SystemExit(0)),
    "cannot be traced by JAX, as jax.jit does: TracerBoolConversionError": lambda x, s, c: x if s[0] > 1 else -x,
    "returns D of float32 [4, 4, 4], which should be float32 [4, 4, 4, 4]": lambda x, s, c: x[0],
    "returns D of bfloat16 [4, 4, 4, 4], which should be float32": lambda x, s, c: x.astype(jnp.bfloat16),
    "returns logvar of float32 [], which should be float32 [4]": lambda x, s, c: (x, x.mean()),
    "returns neither D nor (D, logvar), but 1 values": lambda x, s, c: None,
    "returns neither D nor (D, logvar), but 3 values": lambda x, s, c: (x, x, x),
    "takes 0 positional arguments but 3 were given": lambda: None,
    "cannot be differentiated: ValueError: Reverse-mode differentiation does not work": lambda x, s, c: (
        jax.lax.while_loop(lambda y: y.sum() > 1e9, lambda y: y / 2, x)
    ),
}


def _raise(error):
    raise error


@pytest.mark.parametrize("text", HOSTILE)
def test_what_cannot_be_judged_is_refused_before_anything_is_computed(ours, text):
    with pytest.raises(VerifyError) as caught:
        Ported.checked(Port("theirs:denoise", HOSTILE[text]), ours[0].config, PLAN)
    assert str(caught.value).startswith("theirs:denoise: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "body", "text"),
    [
        ("denoise", "", "names no function: write package.module:function"),
        ("a b:denoise", "", "names no function"),
        ("port_1:", "", "names no function"),
        ("no_such_port:denoise", "", "there is no module no_such_port, here or installed"),
        ("port_2:denoise", "import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("port_3:denoise", "", "port_3 has no denoise"),
        ("port_4:denoise", "denoise = 1", "is int, and no function"),
        ("port_5:denoise", "def (", "cannot be imported: SyntaxError"),
        ("port_6:denoise", "raise OSError('two\\nlines')", "cannot be imported: OSError: two lines"),
        ("port_7:denoise", "import sys; sys.exit()", "cannot be imported: SystemExit"),
    ],
)
def test_names_that_lead_nowhere(tmp_path, monkeypatch, name, body, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.suppress(OSError):
        if "no_such" not in name:
            (tmp_path / f"{name.partition(':')[0]}.py").write_text(body)
    with pytest.raises(VerifyError) as caught:
        import_port(name)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(snapshot, truth, tmp_path, monkeypatch):
    """A module of the current folder; a truth file needs no snapshot; exit codes and reports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_port.py").write_text(MODULE.format(snapshot=str(snapshot)))
    candidate = ("--truth", truth, "--device", "cpu", "--candidate")
    result = run(*candidate, "my_port:dropped", "--json", "--report", "report")
    assert result.returncode == 1, result.stderr
    record = json.loads(result.stdout)
    assert (record["verdict"], record["port"]) == ("disagrees", "my_port:dropped")
    assert record["checked"] == [*OF_ANY_DENOISER]
    assert record["headline"] == "my_port:dropped does not compute what PyTorch computes"
    assert record["parameters"] is None
    assert "my_port:dropped" in (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report" / "report.md").read_text().startswith("### edm2-verify: disagrees\n")
    (tmp_path / "no_port.py").write_text("number = 1")
    fails(*candidate, "no_port:number", text="no_port:number: is int, and no function")


def test_without_a_truth_pytorch_is_asked(snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_port.py").write_text(MODULE.format(snapshot=str(snapshot)))
    result = run(snapshot, "--candidate", "my_port:denoise", "--checks", "derivative", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "AGREES IN PART: my_port:denoise computes" in result.stdout
    assert "not checked: forward, trajectory" in result.stdout.replace("\n", " ")


def test_our_network_has_a_derivative_too(snapshot):
    result = run(snapshot, "--checks", "derivative", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "ok  derivative  1 of 1 agree" in result.stdout


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--checkpoint", "a.safetensors"), "--candidate is what JAX computes: leave --checkpoint out"),
        (("--save-truth", "a.npz"), "leave --save-truth out"),
        (("--show-source",), "leave --show-source out"),
        (("--compile-for", "gpu:h100"), "leave --compile-for out"),
        (("--sweep",), "leave --sweep out"),
        (("--checks", "forward,parameters"), "can be judged: leave parameters out of --checks"),
        (("--golden",), "not with candidate"),
        (("--weights", "net"), "--weights and --config-from are for training states"),
    ],
)
def test_what_does_not_go_with_it(snapshot, options, text):
    arguments = [] if "--golden" in options else [snapshot]
    fails(*arguments, "--candidate", "my_port:denoise", *options, text=text)


def test_a_truth_with_nothing_to_judge_it_by(ours, snapshot, tmp_path):
    save_truth(FromSnapshot(snapshot, Plan(("parameters",))), tmp_path / "truth.npz")
    with pytest.raises(VerifyError, match="forward, derivative, trajectory can be judged"):
        assert_agrees(tmp_path / "truth.npz", lambda x, s, c: x)
    with pytest.raises(TypeError, match="seeds: is fixed by the truth file"):
        assert_agrees(tmp_path / "truth.npz", lambda x, s, c: x, seeds=(1,))
