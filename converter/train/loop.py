"""The training itself: from a request to checkpoints, snapshots, pictures and figures in a folder.

report = train(TrainRequest(outdir=Path("run"), data=Path("images.zip"), preset="edm2-img64-xs"))
"""

import contextlib
import dataclasses
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.errors import JaxRuntimeError

from jax_edm2.training import (
    batches,
    data_mesh,
    encode,
    fully_sharded,
    make_optimizer,
    on_host,
    on_mesh,
    replicated,
    to_training_state,
    train_step,
)
from jax_edm2.training_state import TrainingState

from ..devices import gave_up
from ..flops import multiply_accumulates
from ..progress import Warn
from .checkpoints import Checkpoints
from .clock import Clock
from .options import write_options
from .pictures import Sampler, draw_losses
from .plan import Plan, make_plan
from .request import TrainError, TrainRequest
from .snapshots import write_snapshots
from .states import begun, initial_variables, read_training, record_of_training, resumed
from .statistics import Statistics, Status, memory
from .tally import mean_loss, no_tally, tallied

LOCK = ".lock"
Stop = Callable[[], bool]  # whether training shall end after the step that it is in


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
    peak: Callable[[str], float | None] = lambda _: None,
) -> TrainReport:
    """Train, on all devices that JAX has, until the duration is reached or `stop` says so: then with a checkpoint.

    Where `outdir` has a checkpoint, training goes on from the newest that is sound, bit for bit as if it had not been
    stopped, if nothing else was changed. Of several processes, all have to see the same `outdir`.
    warn: is given a line for each thing that the user should know. status: of the figures, every so many images;
    advance: of the images that have been seen, after every step. peak: floating-point operations a second that one
    device can do in a precision, if that is known.
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
            raise TrainError(gave_up(error, "--batch-gpu, --remat and --fsdp take less memory")) from None


def _check_extra():
    """What is only needed when data are read or a picture is drawn is there. Raises: TrainError."""
    for name in ("grain", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise TrainError(f"training needs {name}: pip install 'edm2-jax[training]'")


def plan_of(request: TrainRequest, warn: Warn = warnings.warn) -> Plan:
    """What `train` would do; of what it would go on with the record alone is read, and nothing is written.

    Raises: as `train`.
    """
    found = Checkpoints(request.outdir, request.keep, warn).newest(record_of_training)
    if found is not None:
        return make_plan(request, found[1])
    return make_plan(request, record_of_training(request.resume, request.config_from) if request.resume else None)


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

    def __init__(self, request: TrainRequest, warn: Warn, peak: Callable, stack: contextlib.ExitStack):
        self.request, self.warn, self.outdir = request, warn, request.outdir
        self.mesh = data_mesh()
        self.first = jax.process_index() == 0
        self.checkpoints = Checkpoints(self.outdir, request.keep, warn)
        place = partial(fully_sharded if request.fsdp else replicated, mesh=self.mesh)
        path, stored = self.checkpoints.newest(partial(read_training, place=place)) or (None, None)
        goes_on = path is not None
        if stored is None and request.resume is not None:
            path, stored = request.resume, read_training(request.resume, place, request.config_from)

        plan = make_plan(request, None if stored is None else stored.record)
        platform = jax.devices()[0].platform
        self.record, self.recipe, self.dataset = plan.record, plan.recipe, plan.dataset
        self.net, self.parts = plan.net(platform), plan.parts(self.mesh.size)
        self.optimizer, self.peak = make_optimizer(self.recipe), peak(plan.dtype(platform))
        self.sampler = Sampler(
            self.net, self.record, self.dataset.label_dim, request.samples, request.vae, request.fetching
        )
        if stored is not None:
            self.state, self.shardings = resumed(stored, path, self.optimizer, self.recipe, place)
        else:
            variables = plan.variables or initial_variables(self.net, request.seed)
            self.state, self.shardings = begun(variables, self.optimizer, self.recipe, place)
        training = None if stored is None else stored.record.training
        self.seconds = 0.0 if training is None else training.seconds
        self.images = self.began = self.saved = 0 if training is None else training.images
        self.written: list[Path] = []

        self.statistics = Statistics(self.outdir, request.tensorboard) if self.first else None
        if self.statistics is not None:
            stack.callback(self.statistics.close)
            write_options(plan, goes_on, warn)
            self.checkpoints.sweep()

    # The loop

    def run(self, status: Callable[[Status], object], advance: Callable[[int], object], stop: Stop) -> TrainReport:
        request, recipe = self.request, self.recipe
        if self.images >= recipe.duration:
            return self._report(math.nan)
        step, process = self._step(), (jax.process_index(), jax.process_count())
        data = batches(self.dataset, recipe.batch_size, seed=request.seed, start=self.images, part=process)
        root, clock = jax.random.key(request.seed), Clock(self.images)
        empty = partial(jax.device_put, no_tally(), replicated(no_tally(), self.mesh))
        tally, for_status, for_picture = empty(), _sums(), _sums()
        previous, loss, done = None, math.nan, False
        while not done:
            before, self.images = self.images, self.images + recipe.batch_size
            with clock.waiting():
                images, labels = next(data)
            labels = _padded(labels, self.net.config.label_dim)
            asked = np.full(len(jax.local_devices()), stop(), np.int32)
            self.state, tally, asked = step(self.state, tally, *on_mesh((images, labels, asked), self.mesh), root)
            stopped = previous is not None and bool(on_host(previous))  # so at most two steps are under way
            previous = asked
            advance(self.images)

            finished = self.images >= recipe.duration
            done = stopped or finished
            tell = done or _due(request.status, before, self.images)
            snap = _due(request.snapshot, before, self.images) or (finished and request.snapshot > 0)
            if tell or snap:
                found, tally = on_host(tally).astype(np.float64), empty()
                for_status, for_picture = for_status + found, for_picture + found
            if tell:
                loss, for_status = mean_loss(for_status), _sums()
                self._tell(clock, loss, status)
            with clock.maintaining():
                if snap:
                    self._snapshot(for_picture)
                    for_picture = _sums()
                if done or _due(request.checkpoint, before, self.images):
                    self._checkpoint(clock)
        if (failure := self.checkpoints.wait()) is not None:
            raise TrainError(f"{self.checkpoints.path(self.images)}: was not written: {failure}")
        return self._report(loss)

    def _report(self, loss: float) -> TrainReport:
        path = self.checkpoints.path(self.images)
        return TrainReport(
            self.outdir, self.began, self.images, self.seconds, loss, self.images >= self.recipe.duration,
            path if path.exists() else None, tuple(self.written),
        )  # fmt: skip

    def _step(self) -> Callable:
        """A compiled step: of the dataset's images, and with a tally of losses. Of the state nothing is kept.

        asked: of every device, whether its process was told to stop; whether any was is what comes out.
        """
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

    def _tell(self, clock: Clock, loss: float, status: Callable[[Status], object]):
        if not math.isfinite(loss):
            kimg = self.images / 1000
            self.warn(f"at {kimg:.1f} kimg the loss is {loss}; a lower --lr, --ls or another --precision may help")
        told, used, share = clock.tell(self.images), memory(), None
        self.seconds += told.seconds
        if self.peak is not None and told.training > 0:
            work = 6 * multiply_accumulates(self.net.config) * told.images  # forwards once, backwards twice
            share = work / told.training / (self.peak * self.mesh.size)
        now = Status(
            self.images, self.recipe.duration, loss, self.recipe.rate(self.images - self.recipe.batch_size),
            self.seconds, told, used, share,
        )  # fmt: skip
        status(now)
        if self.statistics is not None:
            self.statistics.write(now)

    # What is written

    def _checkpoint(self, clock: Clock):
        if self.saved == self.images:
            return
        state: TrainingState = to_training_state(
            on_host(self.state), self.record, self.recipe, seconds=self.seconds + clock.since()
        )
        self.saved = self.images
        if self.first:
            self.checkpoints.save(self.images, state)

    def _snapshot(self, tally: np.ndarray):
        averages = on_host(dict(self.state.averages))
        if not self.first:
            return
        request, kimg = self.request, self.images // 1000
        record = dataclasses.replace(self.record, training=None, assumed=None)
        self.written += write_snapshots(
            self.outdir, self.images, self.net, averages, record, request.snapshot_dtype, request.pkl
        )
        if self.sampler.count:
            self.sampler.draw(averages[max(averages)], self.outdir / f"samples-{kimg:07d}.png")
        draw_losses(tally, f"{self.outdir.name} at {kimg:,} kimg", self.outdir / f"loss-{kimg:07d}.png")


def _sums() -> np.ndarray:
    """A tally of none, for sums of many on the host."""
    return no_tally().astype(np.float64)


def _padded(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels [N, label_dim] of data that has fewer classes than the network."""
    return np.pad(labels, ((0, 0), (0, classes - labels.shape[1])))


def _due(every: int, before: int, images: int) -> bool:
    return bool(every) and images // every > before // every
