"""Compiling for accelerators that are not here: what a program's text says, what a device has, and one line for errors.

The compilers themselves are not installed where the tests run: `make accelerators` runs them.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from jax_edm2.config import EDM2Config
from jax_edm2.converter import presets
from jax_edm2.converter.verify.compiling import estimate as estimates
from jax_edm2.converter.verify.compiling.estimate import Estimate, estimate, too_large, usual_programs
from jax_edm2.converter.verify.compiling.job import DECODER, DENOISER, PROGRAMS, SAMPLER, TRAINING, Job
from jax_edm2.converter.verify.compiling.programs import programs
from jax_edm2.converter.verify.compiling.targets import Target, devices
from jax_edm2.converter.verify.compiling.text import count
from jax_edm2.converter.verify.report import compiled
from jax_edm2.converter.verify.request import VerifyError
from tests.support.command_line import Tool
from tests.support.states import TINY

VERIFY = Tool("edm2-verify", [])
XS = presets.config("edm2-img512-xs-2147483-0.135")
TEXT = """HloModule jit_f, is_scheduled=true

%fused_transpose (p: bf16[2,3]) -> bf16[3,2] {
  %p = bf16[2,3]{1,0} parameter(0)
  ROOT %t = bf16[3,2]{1,0} transpose(%p), dimensions={1,0}
}

%fused_dot (p.1: bf16[8,8]) -> bf16[8,8] {
  %p.1 = bf16[8,8]{1,0} parameter(0)
  ROOT %dot.1 = bf16[8,8]{1,0} dot(%p.1, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (arg: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %arg = (s32[], bf16[8,8]) parameter(0)
  %x = bf16[8,8]{1,0} get-tuple-element(%arg), index=1
  %d = bf16[8,8]{1,0} fusion(%x), kind=kOutput, calls=%fused_dot, metadata={op_name="jit(f)/Precond/unet/enc_8x8_block0/dot"}, backend_config={"estimated_cycles":"100"}
  %r = bf16[8,8]{1,0} all-reduce(%d), to_apply=%sum, backend_config={"estimated_cycles":"10"}
  ROOT %out = (s32[], bf16[8,8]) tuple(%x, %r)
}

ENTRY %main (a: bf16[2,3], b: bf16[8,8]) -> bf16[8,8] {
  %a = bf16[2,3]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} parameter(1)
  %w = bf16[3,2]{1,0} fusion(%a), kind=kLoop, calls=%fused_transpose
  %c = (f32[4,4]{1,0}, u8[0]{0}) custom-call(%w), custom_call_target="__cudnn$convForward"
  %loop = (s32[], bf16[8,8]) while(%b), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %o = bf16[8,8]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_what_a_programs_text_says():
    found = count(TEXT)
    assert found.kernels == {"transpose": 1, "__cudnn$convForward": 1, "matrix product": 3, "all-reduce": 3}
    assert (found.transposes, found.transposed_bytes) == (1, 12)
    assert found.collectives == {"all-reduce": 3 * 128}
    assert found.cycles == {"matrix product": 300, "all-reduce": 30}
    assert found.cycles_by_block == {"enc_8x8_block0": 300, "elsewhere": 30}


def test_the_text_of_a_program_that_is_compiled_here():
    compiled_here = jax.jit(lambda x: jnp.sin(x @ x).sum()).trace(jnp.ones((64, 64))).lower().compile()
    assert sum(count(compiled_here.as_text()).kernels.values()) >= 1


def test_targets():
    assert Target.parse("tpu:v5e:2x2").chips == 4
    assert Target.parse("tpu:v5p").shape == (1, 1, 1)
    assert Target.parse("gpu:h100").device.peak("bfloat16") == 989e12
    for text in (
        "tpu",
        "h100",
        "gpu:v5e",
        "tpu:h100",
        "gpu:b300",
        "tpu:v5e:0x2",
        "tpu:v5e:2x2x2",
        "tpu:v5e:99x99",
        "\x1b",
    ):
        with pytest.raises(VerifyError) as error:
            Target.parse(text)
        assert str(error.value).isprintable()
    for device in devices().values():
        assert device.source
        assert 1e10 < device.memory < 1e12 < device.peak("bfloat16")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_programs_can_be_traced_without_weights(precision):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    job = Job("gpu:h100", EDM2Config(**{**TINY, "img_channels": 4}), 2, precision, PROGRAMS, steps=4)
    for platform in ("gpu", "tpu"):
        made = programs(job, platform, mesh)
        assert tuple(made) == PROGRAMS
        for name in PROGRAMS:
            function, arguments, donated = made[name]()
            with jax.numpy_dtype_promotion("standard" if name == TRAINING else "strict"):  # optax needs it
                outputs = jax.eval_shape(function, *arguments)
            assert max(donated, default=0) < len(arguments)
            if name in (DENOISER, SAMPLER):
                assert (outputs.shape, outputs.dtype) == ((2, 4, 8, 8), jnp.float32)
    assert Job.from_json(job.to_json()) == job
    assert usual_programs(EDM2Config(**TINY)) == (DENOISER, SAMPLER)


def found(program=DENOISER, batch=8, temp=800e6, **more) -> Estimate:
    memory = {"argument": int(300e6), "output": 0, "alias": 0, "temp": int(temp), "generated_code": 0}
    counts = count(TEXT).to_json()
    target = Target.parse("tpu:v5e:1x1")
    job = Job(target.text, XS, batch, "bfloat16", steps=32)
    return Estimate(
        program, None, 1.0, memory, {"bytes accessed": 4.5e9}, counts, 1, target, dataclasses.replace(job, **more)
    )


def test_what_it_adds_up_to():
    one = found()
    assert (one.bytes, one.fits, one.largest_batch) == (1.1e9, True, 149)
    assert one.flop == pytest.approx(719e9, rel=1e-3)
    assert one.roofline_seconds == 4.5e9 / 819e9
    assert found(SAMPLER).flop == one.flop
    assert found(TRAINING).flop == 3 * one.flop
    decoder = found(DECODER)
    sampler = found(SAMPLER)
    assert (sampler.moved, sampler.cycle_seconds, sampler.share_of_peak) == (None, None, None)  # a loop is counted once
    assert sampler.roofline_seconds == sampler.flop / sampler.target.device.peak("bfloat16")
    assert (decoder.flop, decoder.roofline_seconds, decoder.share_of_peak) == (None, None, None)
    assert not any("FLOP" in line for line in compiled.terminal([decoder]))
    large = found(temp=20e9)
    assert not large.fits
    assert too_large(large) == (
        "the denoiser needs 20.3 GB on each chip at batch 8, and TPU v5e has 16; about 5 images would fit"
    )
    record = compiled.to_json([one, large], "edm2-verify")
    assert record["label"] == "estimate, not a measurement"
    assert json.loads(json.dumps(record)) == record
    lines = list(compiled.terminal([one, large]))
    assert lines[-1] == f"BAD {too_large(large)}"
    page = compiled.html(record, [one, large])
    assert page.count("estimate, not a measurement") >= 2
    assert "<script" not in page


def test_a_program_that_does_not_compile(monkeypatch):
    broken = dataclasses.replace(found(), error="it is <b>no</b> program", memory={}, cost={}, counts={})
    assert "BAD denoiser  does not compile: it is <b>no</b> program" in compiled.terminal([broken])
    assert "<b>no" not in compiled.html(compiled.to_json([broken], ""), [broken])


def test_errors_are_one_line(digits_pkl, tmp_path, monkeypatch):
    fails = VERIFY.fails
    fails(digits_pkl, "--compile-for", "tpu:v9", text="'tpu:v9' is no target; known are tpu:v5e, ")
    fails(digits_pkl, "--compile-for", "tpu:v5e:2x2", "--batch", "6", text="--batch 6 does not divide into 4 chips")
    fails(digits_pkl, "--compile-for", "tpu:v5e", "--precision", "float16", text="does not compute in float16, but in")
    fails(digits_pkl, "--programs", "denoiser", text="--programs is for --compile-for")
    fails(
        digits_pkl, "--compile-for", "gpu:h100", "--programs", "encoder", text="'encoder' is none of denoiser, sampler"
    )
    fails(tmp_path / "none.pkl", "--compile-for", "gpu:h100", text="none.pkl: there is no such file")
    if not estimates._there("libtpu"):
        fails("--preset", "edm2-img512-xxl", "--compile-for", "tpu:v5e", text="pip install 'edm2-jax[tpu-compile]'")


def test_a_worker_that_dies_is_one_line(monkeypatch):
    monkeypatch.setattr(estimates, "_there", lambda module: True)
    monkeypatch.setattr(
        estimates.processes, "module", lambda name: ["sh", "-c", "cat >/dev/null; echo libtpu_lockfile >&2"]
    )
    with pytest.raises(VerifyError, match="another process holds libtpu"):
        estimate(Job("tpu:v5e", XS, 8, "bfloat16"))
    monkeypatch.setattr(
        estimates.processes, "module", lambda name: ["sh", "-c", "cat >/dev/null; echo oh no >&2; exit 3"]
    )
    with pytest.raises(VerifyError, match="ended with exit code 3: oh no"):
        estimate(Job("tpu:v5e", XS, 8, "bfloat16"))
    monkeypatch.setattr(
        estimates.processes, "module", lambda name: ["sh", "-c", 'cat >/dev/null; echo \'{"error": "no chips"}\'']
    )
    with pytest.raises(VerifyError, match="tpu:v5e: no chips"):
        estimate(Job("tpu:v5e", XS, 8, "bfloat16"))
