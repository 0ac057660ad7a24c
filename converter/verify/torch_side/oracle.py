"""What PyTorch computes: the truth in float64, and PyTorch's own distance from it in the precision that is judged.

Runs as a process of its own, so that its memory, its switches and any embedded code stay apart from JAX:

    python -m converter.verify.torch_side.oracle < JOB.json
"""

import contextlib
import hashlib
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before CUDA starts

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from converter.errors import ConverterError
from converter.snapshot import Snapshot, read_snapshot
from converter.verify.cases import STEP, Case, make_case, trajectory_start
from converter.verify.facts import Facts
from converter.verify.metrics import difference, gradient_norm
from converter.verify.taps import (
    DENOISED,
    EMBEDDED,
    EMBEDDING,
    LOG_VARIANCE,
    Enough,
    Tap,
    before_clip,
    block_scope,
    boundaries,
)
from converter.verify.torch_side.conditioning import Rounding, condition, conditions, largest
from converter.verify.torch_side.job import Job
from converter.verify.torch_side.precision import set_torch, torch_facts
from converter.verify.torch_side.reference import Reference, as_float32
from converter.verify.torch_side.taps import tapped
from converter.verify.truth import TruthWriter, check_room
from torch_ref.sampling import heun_states, noise_levels
from torch_ref.training import power_function_exponent


def compute(job: Job):
    """Write the truth file of a job. Raises: ConverterError, OSError."""
    started = time.perf_counter()
    switches = set_torch(job.plan.precision, job.device)
    with read_snapshot(job.snapshot) as snapshot, TruthWriter(Path(job.output)) as truth:
        check_room(job.plan, snapshot.config)
        oracle = _Oracle(snapshot, job, truth)
        with oracle.reference.truth():
            oracle.write_truth()
        oracle.reference.lower()
        oracle.compare_reference()
        facts = Facts(
            plan=job.plan,
            config=snapshot.config,
            snapshot={"name": snapshot.path.name, "sha256": _file_hash(snapshot), "source": snapshot.source_hash},
            reference=job.reference,
            parameters=_parameter_hashes(snapshot),
            amplification=oracle.amplification,
            not_finite=oracle.not_finite,
            gradient_sizes=oracle.gradient_sizes,
            errors=oracle.errors,
            repeat=oracle.repeat,
            environment=torch_facts(job.device),
            switches=switches,
            seconds=round(time.perf_counter() - started, 1),
        )
        truth.finish(facts)


class _Oracle:
    def __init__(self, snapshot: Snapshot, job: Job, truth: TruthWriter):
        self.snapshot, self.plan, self.truth = snapshot, job.plan, truth
        self.config = snapshot.config
        held = math.inf if "gradients" in self.plan.checks else job.held  # they are left in the parameters
        self.reference = Reference(snapshot, job.reference, job.device, held)
        self.errors: dict[str, Any] = {}  # of the reference: by phase and name
        self.repeat: float | None = None  # largest relative difference between two runs of the reference
        self.amplification: dict[str, dict[str, float]] = {}  # by case and block
        self.not_finite: list[str] = []  # names of what is not finite in the truth
        self.conditions: dict[str, dict[str, Any]] = {}  # by case, kind and tap; "gradients": by key
        self.gradient_sizes: dict[str, float] = {}  # root mean square of every parameter's true gradient
        blocks = self.config.architecture.encoder + self.config.architecture.decoder
        self._before_clip = {block_scope(spec): before_clip(spec) for spec in blocks}
        total = 9 * len(self.plan.seeds) * ("forward" in self.plan.checks)
        total += 3 * ("gradients" in self.plan.checks)
        total += 2 * (2 * self.plan.steps - 1) * ("trajectory" in self.plan.checks)
        self._bar = tqdm(total=total, desc="PyTorch", unit="run", leave=False, disable=not sys.stderr.isatty())

    def _cases(self) -> Iterator[tuple[str, Case]]:
        for seed in self.plan.seeds:
            yield f"seed{seed}", make_case(self.config, self.plan, seed)

    def write_truth(self):
        for name, case in self._cases():
            if "forward" in self.plan.checks:
                self._write_forward(name, case)
        if "trajectory" in self.plan.checks:
            self._keep("trajectory", np.stack(self._trajectory()))
        if "gradients" in self.plan.checks:
            loss = self._step(lambda key, value: self._keep(key, value.astype(np.float32)))
            self._keep("loss", np.float64(loss))
            self.conditions["gradients"] = largest(self._step_conditions)

    def compare_reference(self):
        precision = self.plan.precision
        for name, case in self._cases():
            if "forward" in self.plan.checks:
                self._compare_forward(name, case)
        if "trajectory" in self.plan.checks:
            pairs = zip(self._trajectory(precision), self.truth["trajectory"], strict=True)
            self.errors["trajectory"] = [difference(x, exact).error for x, exact in pairs]
        if "gradients" in self.plan.checks:
            errors = {}

            def compare(key, value):
                found = difference(value, self.truth[key], self._norm(key)).error
                errors[key] = {"error": found, "condition": self.conditions["gradients"][key]}

            loss = self._step(compare, precision)
            exact = float(self.truth["loss"])
            of_loss = {"error": abs(loss - exact) / abs(exact), "condition": 0.0}
            self.errors["gradients"] = {"loss": of_loss, **errors}
        self._bar.close()

    def _keep(self, key, value):
        if not np.isfinite(value).all():
            self.not_finite.append(key)
        self.truth[key] = value

    # Forward

    def _run(self, case: Case, visit, precision="float32", labels=True):
        """(D, logvar) of a forward pass whose every tap goes through `visit`."""
        self._bar.update()
        with torch.no_grad(), tapped(self.reference.net, self.reference.namespace, self.config, visit):
            return self.reference(case.x, case.sigma, case.labels if labels else None, precision, return_logvar=True)

    def _embed(self, case: Case, visit, precision="float32"):
        """Show `visit` the embedding of class_labels=None, which is all that labels have to do with."""

        def until_embedded(tap, value):
            if tap.scope == EMBEDDING:
                visit(tap, value)
            if tap == EMBEDDED:
                raise Enough
            return value

        with contextlib.suppress(Enough):
            self._run(case, until_embedded, precision, labels=False)

    def _write_forward(self, name: str, case: Case):
        largest: dict[str, float] = {}

        def record(tap: Tap, value):
            self._keep(f"{name}/{tap}", value.numpy())
            if self._before_clip.get(tap.scope) == tap.operation:
                largest[tap.scope] = float(value.abs().max())
            return value

        denoised, logvar = self._run(case, record)
        self._keep(f"{name}/denoised", denoised.numpy())
        self._keep(f"{name}/logvar", logvar.numpy())
        if self.config.label_dim:
            self._embed(case, lambda tap, value: self._keep(f"{name} unlabelled/{tap}", value.numpy()))
        self._write_amplified_clips(name, case, largest)
        self.conditions[name] = self._conditions(name, case)

    def _write_amplified_clips(self, name: str, case: Case, largest: dict[str, float]):
        """The clip of every block, of values that are large enough. largest: magnitude before the clip, by block."""
        if self.config.clip_act is None:
            return
        # Nothing is ever clipped in most networks: multiply by a power of two (exact) until something is.
        self.amplification[name] = amplify = {
            scope: 2.0 ** math.ceil(math.log2(2 * self.config.clip_act / size)) if 0 < size < math.inf else 1.0
            for scope, size in largest.items()
        }

        def clip(tap: Tap, value):
            if self._before_clip.get(tap.scope) == tap.operation:
                return value * amplify[tap.scope]
            if tap.operation == "clip":
                self._keep(f"{name}/{tap}.amplified", value.numpy())
                return _like(self.truth[f"{name}/{tap}"], value)
            return value

        self._run(case, clip)

    def _conditions(self, name: str, case: Case) -> dict[str, dict[str, float]]:
        """The condition numbers of all taps, in the running network and with the truth before every block."""
        boundary = boundaries(self.config)

        def exact(tap):
            return self.truth[f"{name}/{tap}"]

        def truth_at_boundaries(tap, value):
            return _like(exact(tap), value) if tap in boundary else value

        def run(visit):
            self._run(case, visit)

        return {
            "accumulated": conditions(run, exact),
            "isolated": conditions(run, exact, truth_at_boundaries),
        }

    def _compare_forward(self, name: str, case: Case):
        precision = self.plan.precision
        amplify = self.amplification.get(name, {})
        boundary = boundaries(self.config)
        accumulated: dict[str, Any] = {}
        isolated: dict[str, Any] = {}

        conditions = self.conditions[name]

        def note(kind, found, case, tap, value, suffix=""):
            exact = self.truth[f"{case}/{tap}{suffix}"]
            found[str(tap)] = {
                "error": difference(_numpy(value), exact).error,
                "condition": conditions[kind][str(tap)],
                "dtype": str(value.dtype).removeprefix("torch."),
            }
            return exact

        def accumulate(tap, value):
            note("accumulated", accumulated, name, tap, value)
            return value

        def isolate(tap, value):
            if tap.operation == "clip":
                note("isolated", isolated, name, tap, value, ".amplified")
                return _like(self.truth[f"{name}/{tap}"], value)
            exact = note("isolated", isolated, name, tap, value)
            if self._before_clip.get(tap.scope) == tap.operation:
                return value * amplify.get(tap.scope, 1.0)
            return _like(exact, value) if tap in boundary else value

        first = self._run(case, accumulate, precision)
        again = self._run(case, lambda _tap, value: value, precision)
        self.repeat = max(
            [self.repeat or 0.0] + [_apart(_numpy(b), _numpy(a)) for a, b in zip(first, again, strict=True)]
        )
        self._run(case, isolate, precision)
        outputs = {
            output: {
                "error": difference(_numpy(value), self.truth[f"{name}/{output}"]).error,
                "condition": conditions["accumulated"][str(tap)],
            }
            for output, value, tap in zip(("denoised", "logvar"), first, (DENOISED, LOG_VARIANCE), strict=True)
        }
        self.errors[name] = {"accumulated": accumulated, "isolated": isolated, "outputs": outputs}
        if self.config.label_dim:
            found: dict[str, Any] = {}
            self._embed(
                case, lambda tap, value: note("accumulated", found, f"{name} unlabelled", tap, value), precision
            )
            self.errors[f"{name} unlabelled"] = {"accumulated": found}

    # Trajectory

    def _trajectory(self, precision="float32") -> list[np.ndarray]:
        """The states of the deterministic Heun sampler (arXiv 2206.00364, Algorithm 1), first to last."""
        noise, labels = trajectory_start(self.config, self.plan.seeds[0])

        def denoise(x, sigma):
            self._bar.update()
            return self.reference(x, sigma, labels, precision)

        return [_numpy(x) for x in heun_states(denoise, self._put(noise), noise_levels(self.plan.steps))]

    # Gradients and one training step

    def _backward(self, precision="float32") -> tuple[float, torch.Tensor]:
        """The mean EDM2 loss (arXiv 2312.02696, Eqs. 14, 15, 21) and its gradient by the noise.

        Weights are normalised first, and the gradients by parameters are left in them.
        """
        net, normalize = self.reference.net, self.reference.namespace["normalize"]
        case = make_case(self.config, self.plan, self.plan.seeds[0]).first(STEP.batch)
        images, sigma = self._put(case.images), self._put(case.sigma[:, None, None, None])
        noise = self._put(case.noise).requires_grad_()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith(".weight"):
                    parameter.copy_(normalize(parameter))
        net.requires_grad_(True)
        with _recomputed_blocks(net, self.config):
            noisy = images + sigma * noise
            denoised, logvar = self.reference(noisy, sigma, case.labels, precision, return_logvar=True)
            weight = (sigma**2 + self.config.sigma_data**2) / (sigma * self.config.sigma_data) ** 2
            loss = (weight / logvar.exp() * (denoised - images) ** 2 + logvar).mean()
            loss.backward()
        net.requires_grad_(False)
        self._bar.update()
        return float(loss.detach()), noise.grad

    def _step_conditions(self, rounding: Rounding) -> dict[str, float]:
        """The condition numbers of all gradients, and of what the training step makes of them, by their keys."""
        found = {}

        def note(key, value):
            found[key] = condition(value, self.truth[key], self._norm(key))

        with (
            rounding.norms(self.reference.namespace),
            tapped(self.reference.net, self.reference.namespace, self.config, rounding.visit),
        ):
            self._step(note)
        return found

    def _norm(self, key: str) -> float | None:
        kind, name = key.split("/", 1)
        return gradient_norm(name, self.gradient_sizes) if kind == "gradient" else None

    def _step(self, keep, precision="float32") -> float:
        """The loss of one training step: forced weight normalisation, gradient, Adam, EMA.

        keep(key, array) is given the gradient, the new value and the new average of every parameter.
        """
        net = self.reference.net
        loss, by_input = self._backward(precision)
        keep("gradient/input", _numpy(by_input))
        decay = (1 - STEP.images_per_step / STEP.images_seen) ** (power_function_exponent(STEP.ema_std) + 1)
        for name, parameter in net.named_parameters():  # one by one: Adam's state of all would double the memory
            gradient = parameter.grad
            keep(f"gradient/{name}", _numpy(gradient))
            self.gradient_sizes.setdefault(name, float(gradient.double().square().mean().sqrt()))
            average = parameter.detach().clone()
            adam = torch.optim.Adam([parameter], lr=STEP.learning_rate, betas=STEP.betas, eps=STEP.eps)
            adam.state[parameter] = {
                "step": torch.tensor(float(STEP.steps_before)),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.full_like(parameter, self.gradient_sizes[name] ** 2),
            }
            adam.step()
            keep(f"step/{name}", _numpy(parameter))
            average.lerp_(parameter.detach(), 1 - decay)
            keep(f"ema/{name}", _numpy(average))
            parameter.grad = None
        self.reference.reload()
        return loss

    def _put(self, array):
        full = torch.float64 if self.reference.raised else torch.float32
        return torch.as_tensor(array, dtype=full, device=self.reference.device)


@contextlib.contextmanager
def _recomputed_blocks(net, config):
    """Activations inside blocks are computed again on the way back, so that memory is that of one block."""
    architecture = config.architecture
    names = [block_scope(spec) for spec in architecture.encoder + architecture.decoder]
    blocks = [net.get_submodule(name) for name in names]
    for block in blocks:
        block.forward = lambda *args, forward=block.forward: checkpoint(forward, *args, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _numpy(tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def _like(array: np.ndarray, tensor):
    return torch.from_numpy(array.copy()).to(tensor.device, tensor.dtype)


def _apart(x, y) -> float:
    if np.array_equal(x, y, equal_nan=True):
        return 0.0
    found = difference(x, np.asarray(y, np.float64)).error
    return found if math.isfinite(found) else math.inf


def _parameter_hashes(snapshot: Snapshot) -> dict[str, Any]:
    """Shape and sha256 of every tensor's float32 bytes, so that a checkpoint can be held to them without the file."""
    found = {}
    for name, record in snapshot.tensors.items():
        values = np.ascontiguousarray(as_float32(snapshot.read(name)), "<f4")
        found[name] = {"shape": list(record.shape), "sha256": hashlib.sha256(values.tobytes()).hexdigest()}
    return found


def _file_hash(snapshot: Snapshot) -> str:
    from converter.convert import SourceHash

    with SourceHash(snapshot) as source_hash:
        return source_hash.result()


def main():
    job = Job.from_json(sys.stdin.read())
    try:
        compute(job)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ConverterError, OSError, MemoryError) as error:
        print(f"edm2-verify: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
