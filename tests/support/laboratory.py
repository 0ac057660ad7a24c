"""The network that faults are made in, its truth, and what edm2-verify says to each fault of `tests.corpora.faults`."""

import contextlib
import dataclasses
import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jax_edm2.converter.networks import in_memory
from jax_edm2.converter.snapshot import read_snapshot
from jax_edm2.converter.verify.cases import Plan
from jax_edm2.converter.verify.jax_side.candidate import Candidate
from jax_edm2.converter.verify.jax_side.judgement import judge
from jax_edm2.converter.verify.jax_side.precision import jax_dtype
from jax_edm2.converter.verify.outcome import Outcome
from jax_edm2.converter.verify.torch_side import oracle
from jax_edm2.converter.verify.torch_side.job import Job
from jax_edm2.converter.verify.truth import Truth
from jax_edm2.network import Precond
from jax_edm2.torch_ref.snapshot import write_snapshot
from tests.corpora.faults import BEYOND, CONFIG, LOGVAR, TRAINING, Fault
from tests.support.networks import network

STEPS = 4
ALL = (*Plan().checks, "training")


@contextlib.contextmanager
def edited(file: str, old: str, new: str):
    """While open, the functions of jax_edm2/FILE.py run with `old` replaced by `new` in their source.

    What JAX has traced before stays as it was: run what is to be wrong in `afresh` or under jax.disable_jit().
    """
    module = importlib.import_module(f"jax_edm2.{file}")
    source = Path(module.__file__).read_text()
    if old not in source:
        raise ValueError(f"jax_edm2/{file}.py has no {old!r}")
    code = compile(source.replace(old, new, 1), module.__file__, "exec")
    before = dict(_codes(compile(source, module.__file__, "exec")))  # what runs in tests has checks of shapes in it
    running = dict(_functions(module))
    replaced = []
    for name, changed in _codes(code):
        function = running.get(name)
        if function is not None and before.get(name) != changed:
            replaced.append((function, function.__code__, function.__defaults__))
            function.__code__ = changed
    mutant = types.ModuleType(module.__name__)
    mutant.__package__ = module.__package__
    sys.modules[module.__name__] = mutant  # dataclasses look their module up
    try:
        exec(code, mutant.__dict__)
    finally:
        sys.modules[module.__name__] = module
    for name, function in _functions(mutant):
        if name in running and running[name].__defaults__ != function.__defaults__:
            replaced.append((running[name], running[name].__code__, running[name].__defaults__))
            running[name].__defaults__ = function.__defaults__
    if not replaced:
        raise ValueError(f"replacing {old!r} changes no function")
    try:
        yield
    finally:
        for function, code, defaults in reversed(replaced):
            function.__code__, function.__defaults__ = code, defaults


@contextlib.contextmanager
def afresh():
    """What JAX has compiled before does not count inside, nor what it compiles inside after."""
    jax.clear_caches()
    try:
        yield
    finally:
        jax.clear_caches()


def _functions(module):
    """(qualified name, function) of everything that is defined in a module, without Flax's and JAX's wrappers."""
    for value in list(vars(module).values()):
        members = (
            list(vars(value).values()) if isinstance(value, type) and value.__module__ == module.__name__ else [value]
        )
        for member in members:
            while hasattr(member, "__wrapped__"):
                member = member.__wrapped__
            if isinstance(member, types.FunctionType) and member.__module__ == module.__name__:
                yield member.__qualname__, member


def _codes(code):
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


class Laboratory:
    """The truth of the test network, computed once, and what is said of a fault."""

    def __init__(self, folder: Path, precision: str = "float32"):
        self.path, self.truth_path = folder / "faults.pkl", folder / "truth.npz"
        write_snapshot(self.path, network(CONFIG, 1))
        plan = Plan(ALL, steps=STEPS, precision=precision)
        oracle.compute(Job(str(self.path), str(self.truth_path), plan))
        with read_snapshot(self.path) as snapshot:
            self.leaves = {
                "/".join(key.key for key in path): np.asarray(value)
                for path, value in jax.tree_util.tree_leaves_with_path(in_memory(snapshot))
            }

    def examine(self, fault: Fault | None, checks: tuple[str, ...]) -> Outcome:
        """Verify the network with a fault, operation by operation; or compiled: with none, or one in derivatives,
        whose operations are so many that they would take four times as long one by one."""
        leaves = dict(self.leaves)
        context: Any = contextlib.nullcontext()
        if fault is not None and fault.kind == "checkpoint":
            fault.edit(leaves)  # type: ignore[operator]
        elif fault is not None:
            context = edited(*fault.edit)  # type: ignore[misc]
        variables = unflatten_dict({path: jnp.asarray(value) for path, value in leaves.items()}, sep="/")
        with (
            read_snapshot(self.path) as snapshot,
            Truth(self.truth_path) as truth,
            context,
            afresh() if fault in BEYOND + TRAINING else jax.disable_jit(fault is not None),
        ):
            truth.plan = dataclasses.replace(truth.plan, checks=checks)
            candidate = Candidate(Precond(truth.config, jax_dtype(truth.plan.precision)), variables, truth.config)
            return judge(candidate, truth, snapshot=snapshot)


def checks_for(fault: Fault) -> tuple[str, ...]:
    return (fault.scope,) if fault in BEYOND + TRAINING else ("parameters", "forward")


def found(fault: Fault, outcome: Outcome) -> tuple[str, str]:
    """(scope, operation) that the verdict names first; for checks beyond the forward pass (check, name)."""
    if fault in BEYOND + TRAINING:
        bad = [m for m in outcome.measurements[fault.scope] if not m.agrees]
        return (fault.scope, bad[0].name) if bad else ("", "")
    if outcome.guilty:
        return outcome.guilty[0].scope, outcome.guilty[0].operation
    bad = [m for m in outcome.measurements["forward"] if not m.agrees]
    return (LOGVAR, bad[0].name) if bad else ("", "")


def is_found(fault: Fault, outcome: Outcome) -> bool:
    scope, operation = found(fault, outcome)
    if outcome.verdict != "disagrees" or scope != fault.scope:
        return False
    return fault.operation in operation if fault in BEYOND + TRAINING else fault.operation == operation
