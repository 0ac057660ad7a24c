"""The training itself: from a request to checkpoints, snapshots, pictures and figures in a folder.

report = train(TrainRequest(outdir=Path("run"), data=Path("images.zip"), preset="edm2-img64-xs"))
"""

import contextlib
import dataclasses
import importlib.util
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.errors import JaxRuntimeError

from jax_edm2.dtypes import DTYPES
from jax_edm2.files import whole_or_nothing
from jax_edm2.network import Precond
from jax_edm2.record import Record
from jax_edm2.safetensors_checkpoint import write_safetensors
from jax_edm2.state_layout import expected_state
from jax_edm2.tensors import Tensor
from jax_edm2.training import (
    State,
    batches,
    begin,
    data_mesh,
    encode,
    fully_sharded,
    make_optimizer,
    on_host,
    on_mesh,
    replicated,
    resume,
    to_training_state,
    train_step,
)
from jax_edm2.training_state import TrainingState

from ..flops import multiply_accumulates
from ..progress import Warn
from ..to_snapshot import write_snapshot
from ..training_state import OPTIONS
from .checkpoints import Checkpoints
from .pictures import Sampler, draw_losses
from .plan import DECIMALS, Plan, make_plan, otherwise, read_training
from .request import TrainError, TrainRequest
from .statistics import Statistics, mean_loss, memory, no_tally, tallied

LOCK = ".lock"
Stop = Callable[[], bool]  # whether training shall end after the step that it is in


@dataclass(frozen=True)
class Status:
    """Where a training is: images it has seen, the mean loss since the last status, seconds in all, and figures."""

    images: int
    duration: int
    loss: float
    rate: float
    seconds: float
    seconds_per_kimg: float
    waited: float  # share of the time that was spent waiting for data
    memory: float | None  # GB, of the device if it says so, else of the process
    share_of_peak: float | None  # of the device's floating-point operations


@dataclass(frozen=True)
class TrainReport:
    """began: images that had been seen. finished: all of the duration. checkpoint: the last. written: snapshots."""

    outdir: Path
    began: int
    images: int
    seconds: float
    loss: float
    finished: bool
    checkpoint: Path | None
    written: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        loss = self.loss if math.isfinite(self.loss) else None
        texts = {"outdir": str(self.outdir), "checkpoint": self.checkpoint and str(self.checkpoint)}
        return {**fields, **texts, "loss": loss, "written": [str(path) for path in self.written]}


def train(
    request: TrainRequest,
    *,
    warn: Warn = warnings.warn,
    status: Callable[[Status], object] = lambda _: None,
    advance: Callable[[int], object] = lambda _: None,
    stop: Stop = lambda: False,
    peak: float | None = None,
) -> TrainReport:
    """Train, on all devices that JAX has, until the duration is reached or `stop` says so: then with a checkpoint.

    Where `outdir` has a checkpoint, training goes on from the newest that is sound, bit for bit as if it had not been
    stopped, if nothing else was changed. Of several processes, all have to see the same `outdir`.
    warn: is given a line for each thing that the user should know. status: of the figures, every so many images;
    advance: of the images that have been seen, after every step. peak: floating-point operations a second that one
    device can do.
    Raises: UsageError, TrainError, DatasetError, ConverterError, CheckpointError, OSError.
    """
    _check_extra()
    warn = warn if jax.process_index() == 0 else lambda _line: None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_alone(request.outdir))
        # Of float32: embeddings are always that, and nobody wants TF32 in a training.
        stack.enter_context(jax.default_matmul_precision("highest"))
        try:
            return _Training(request, warn, peak, stack).run(status, advance, stop)
        except JaxRuntimeError as error:
            text = " ".join(str(error).split())
            raise TrainError(
                f"JAX could not go on ({text:.150}); --batch-gpu, --remat and --fsdp take less memory"
            ) from None


def _check_extra():
    """What is only needed when data are read or a picture is drawn is there. Raises: TrainError."""
    for name in ("grain", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise TrainError(f"training needs {name}: pip install 'edm2-jax[training]'")


def plan_of(request: TrainRequest, warn: Warn = warnings.warn) -> Plan:
    """What `train` would do, and nothing is written. Raises: as `train`."""
    found = Checkpoints(request.outdir, request.keep, warn).newest(read_training)
    stored = found[1] if found is not None else None
    if stored is None and request.resume is not None:
        stored = read_training(request.resume, request.config_from)
    return make_plan(request, None if stored is None else stored.record)


@contextlib.contextmanager
def _alone(outdir: Path) -> Iterator[None]:
    """The folder is there, and no other training writes into it; what was made here and is empty is removed."""
    made = not outdir.exists()
    outdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() > 0:
        yield
        return
    lock = filelock.FileLock(outdir / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise TrainError(f"{outdir}: another edm2-train is at work in it") from None
    try:
        yield
    finally:
        (outdir / LOCK).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            if made:
                outdir.rmdir()


class _Training:
    """One training with all that it is made of. Errors in what is asked for come before anything is written."""

    def __init__(self, request: TrainRequest, warn: Warn, peak: float | None, stack: contextlib.ExitStack):
        self.request, self.warn, self.outdir, self.peak = request, warn, request.outdir, peak
        self.mesh = data_mesh()
        self.first = jax.process_index() == 0
        self.checkpoints = Checkpoints(self.outdir, request.keep, warn)
        found = self.checkpoints.newest(self._read)
        self.checkpoint = found[0] if found is not None else None
        stored = found[1] if found is not None else None
        if stored is None and request.resume is not None:
            stored = self._read(request.resume)
        self.plan = plan = make_plan(request, None if stored is None else stored.record)
        self.record, self.recipe = plan.record, plan.recipe
        platform = jax.devices()[0].platform
        self.net: Precond = plan.net(platform)
        self.optimizer = make_optimizer(self.recipe)
        self.parts = plan.parts(self.mesh.size)
        self.sampler = Sampler(self.net, self.record, plan.dataset.label_dim, request.samples, request.vae)
        self.state, self.shardings = self._placed(stored)
        self.statistics = Statistics(self.outdir, request.tensorboard) if self.first else None
        if self.statistics is not None:
            stack.callback(self.statistics.close)
            self._write_options()
            self.checkpoints.sweep()
        self.seconds = 0.0 if stored is None or stored.record.training is None else stored.record.training.seconds
        self.images = self.began = int(on_host(self.state.images))
        self.saved = self.images  # what a checkpoint has, or need not have
        self.written: list[Path] = []
        self.unsaved: Exception | None = None

    def _read(self, path: Path) -> TrainingState:
        """Straight to where its arrays belong."""
        config_from = self.request.config_from if path == self.request.resume else None

        def shardings(record: Record) -> Any:
            return unflatten_dict(
                {
                    name: self._sharding(jax.ShapeDtypeStruct(shape, np.float32))
                    for name, shape in expected_state(record).items()
                },
                sep="/",
            )

        return read_training(path, config_from, shardings)

    def _sharding(self, tree: Any) -> Any:
        return (fully_sharded if self.request.fsdp else replicated)(tree, self.mesh)

    def _placed(self, stored: TrainingState | None) -> tuple[State, Any]:
        """The state that training begins or goes on with, and its shardings."""
        if stored is not None:
            if tuple(stored.averages) != self.recipe.stds:
                have = ",".join(f"{std:g}" for std in stored.averages)
                raise TrainError(f"{self.checkpoint or self.request.resume}: has averages of std {have}: --stds {have}")
            state = resume(stored, self.optimizer)
            shardings = self._sharding(state)
            return jax.device_put(state, shardings), shardings
        variables = self.plan.variables
        if variables is None:
            variables = _initial(self.net, self.request.seed)

        def first(variables):
            return begin(variables, self.optimizer, self.recipe)

        shardings = self._sharding(jax.eval_shape(first, variables))
        return jax.jit(first, out_shardings=shardings)(variables), shardings

    def _write_options(self):
        """training_options.json, as NVlabs' tools have it; what is not as it was is told."""
        path, options = self.outdir / OPTIONS, self.plan.options()
        if self.checkpoint is not None and path.exists():
            try:
                before = json.loads(path.read_text())
            except (ValueError, OSError):
                before = {}
            for line in otherwise(before if isinstance(before, dict) else {}, options):
                self.warn(f"{self.outdir}: of this training, {line}")
        with whole_or_nothing(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(options, indent=2) + "\n")

    # The loop

    def run(self, status: Callable[[Status], object], advance: Callable[[int], object], stop: Stop) -> TrainReport:
        request, recipe = self.request, self.recipe
        step = self._step()
        process = jax.process_index(), jax.process_count()
        dataset = self.plan.dataset
        data = batches(dataset, recipe.batch_size, seed=request.seed, start=self.images, part=process)
        root = jax.random.key(request.seed)
        clock = _Clock(self.images)
        tally, total = no_tally(), np.zeros_like(no_tally(), np.float64)
        for_picture, loss, stopped = np.zeros_like(total), math.nan, False
        local = len(jax.local_devices())
        previous = None
        if self.images >= recipe.duration:
            return self._report(loss)
        tally = jax.device_put(tally, replicated(tally, self.mesh))
        while True:
            before, self.images = self.images, self.images + recipe.batch_size
            with clock.waiting():
                images, labels = next(data)
            labels = _padded(labels, self.net.config.label_dim)
            asked = np.full(local, stop(), np.int32)
            self.state, tally, asked = step(self.state, tally, *on_mesh((images, labels, asked), self.mesh), root)
            if previous is not None:
                stopped = bool(on_host(previous))  # so at most two steps are under way
            previous = asked
            advance(self.images)
            done = stopped or self.images >= recipe.duration
            if done or _due(request.status, before, self.images):
                found = on_host(tally).astype(np.float64)
                tally = jax.device_put(no_tally(), replicated(no_tally(), self.mesh))
                loss, for_picture = mean_loss(found), for_picture + found
                if not math.isfinite(loss):
                    self.warn(
                        f"at {self.images / 1000:.1f} kimg the loss is {loss}; a lower --lr, --ls or another "
                        "--precision may help"
                    )
                self._tell(clock, loss, status)
            with clock.maintaining():
                full = self.images >= recipe.duration and request.snapshot > 0
                if full or _due(request.snapshot, before, self.images):
                    self._snapshot(for_picture)
                    for_picture = np.zeros_like(total)
                if done or _due(request.checkpoint, before, self.images):
                    self._checkpoint(clock)
            if done:
                break
        self.unsaved = self.checkpoints.wait()
        if self.unsaved is not None:
            raise TrainError(f"{self.checkpoints.path(self.images)}: was not written: {self.unsaved}")
        return self._report(loss)

    def _report(self, loss: float) -> TrainReport:
        path = self.checkpoints.path(self.images)
        return TrainReport(
            self.outdir, self.began, self.images, self.seconds, loss, self.images >= self.recipe.duration,
            path if path.exists() else None, tuple(self.written),
        )  # fmt: skip

    def _step(self) -> Callable:
        """A compiled step: of the dataset's images, and with a tally of losses. Of the state nothing is kept."""
        everywhere = replicated(0, self.mesh)

        @partial(jax.jit, donate_argnums=(0, 1), out_shardings=(self.shardings, everywhere, everywhere))
        def step(state, tally, images, labels, asked, root):
            encoding, key = jax.random.split(jax.random.fold_in(root, state.images))
            images = encode(self.record.encoder, images, encoding)
            state, shown = train_step(
                self.net, self.optimizer, self.recipe, state, images, labels, key, parts=self.parts
            )
            return state, tallied(tally, shown["sigma"], shown["losses"]), asked.max()

        return step

    def _tell(self, clock: "_Clock", loss: float, status: Callable[[Status], object]):
        tell = clock.tell(self.images)
        self.seconds += tell.seconds
        rate = self.recipe.rate(self.images - self.recipe.batch_size)
        share = None
        if self.peak is not None and tell.training > 0:
            work = 6 * multiply_accumulates(self.net.config) * tell.images  # forwards once, backwards twice
            share = work / tell.training / (self.peak * self.mesh.size)
        used = memory()
        status(
            Status(
                self.images, self.recipe.duration, loss, rate, self.seconds, tell.training / tell.images * 1e3,
                tell.waiting / tell.seconds, used.get("Resources/peak_gpu_mem_gb", used.get("Resources/cpu_mem_gb")),
                share,
            )
        )  # fmt: skip
        if self.statistics is not None:
            figures = {
                "Loss/loss": loss,
                "Loss/learning_rate": rate,
                "Progress/kimg": self.images / 1e3,
                "Timing/total_sec": self.seconds,
                "Timing/sec_per_tick": tell.seconds,
                "Timing/sec_per_kimg": tell.training / tell.images * 1e3,
                "Timing/maintenance_sec": tell.maintaining,
                "Timing/data_sec": tell.waiting,
                **used,
            }
            self.statistics.write(self.images, figures)

    # What is written

    def _checkpoint(self, clock: "_Clock"):
        if self.saved == self.images:
            return
        state = on_host(self.state)
        self.saved = self.images
        if self.first:
            seconds = self.seconds + clock.since()
            self.checkpoints.save(self.images, to_training_state(state, self.record, self.recipe, seconds=seconds))

    def _snapshot(self, tally: np.ndarray):
        averages = on_host(dict(self.state.averages))
        if not self.first:
            return
        kimg = f"{self.images // 1000:07d}"
        record = dataclasses.replace(self.record, training=None, assumed=None)
        for std, variables in averages.items():
            path = self.outdir / f"network-snapshot-{kimg}-{std:.{DECIMALS}f}.safetensors"
            tensors = _stored(variables, self.request.snapshot_dtype)
            self.written.append(path)
            write_safetensors(path, tensors, record, overwrite=True)
            if self.request.pkl:
                self.written.append(path.with_suffix(".pkl"))
                write_snapshot(path.with_suffix(".pkl"), tensors, record, overwrite=True)
        if self.sampler.count:
            self.sampler.draw(variables, self.outdir / f"samples-{kimg}.png")
        if tally[1].any():
            draw_losses(
                tally, f"{self.outdir.name} at {self.images / 1000:,.0f} kimg", self.outdir / f"loss-{kimg}.png"
            )


def _initial(net: Precond, seed: int) -> Any:
    """Variables of a new network, from a key of its own."""
    config = net.config
    shape = 1, config.img_channels, config.img_resolution, config.img_resolution
    labels = np.zeros((1, config.label_dim), np.float32) if config.label_dim else None
    params, constants = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))
    start = jax.jit(lambda keys: net.init(keys, jnp.zeros(shape), jnp.ones(1), labels))
    variables = start({"params": params, "constants": constants})
    return {name: dict(tree) for name, tree in variables.items()}


def _padded(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels [N, label_dim] of data that has fewer classes than the network."""
    return np.pad(labels, ((0, 0), (0, classes - labels.shape[1])))


def _due(every: int, before: int, images: int) -> bool:
    return bool(every) and images // every > before // every


def _stored(variables: Any, dtype: str) -> dict[str, Tensor]:
    """Tensors by path, of one network's variables."""
    with np.errstate(over="ignore"):  # whoever converts them is told of what is not finite
        arrays = {
            path: np.asarray(array).astype(DTYPES[dtype].numpy)
            for path, array in flatten_dict(variables, sep="/").items()
        }
    return {
        path: Tensor(dtype, array.shape, lambda array=array: [array.tobytes()])  # type: ignore[misc]
        for path, array in arrays.items()
    }


@dataclass(frozen=True)
class _Told:
    """Since the last time: images, seconds in all, in steps, waiting for data (of the steps'), and beside the steps."""

    images: int
    seconds: float
    training: float
    waiting: float
    maintaining: float


class _Clock:
    """Where the time goes."""

    def __init__(self, images: int):
        self._images = images
        self._start()

    def _start(self):
        self._began, self._waiting, self._maintaining = time.perf_counter(), 0.0, 0.0

    def since(self) -> float:
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waiting += time.perf_counter() - began

    @contextlib.contextmanager
    def maintaining(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._maintaining += time.perf_counter() - began

    def tell(self, images: int) -> _Told:
        seconds = self.since()
        told = _Told(images - self._images, seconds, seconds - self._maintaining, self._waiting, self._maintaining)
        self._images = images
        self._start()
        return told
