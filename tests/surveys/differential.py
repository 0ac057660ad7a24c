"""Snapshots that almost are what they seem, read by us and by Python's unpickler with torch's own modules.

    python -m tests.surveys.differential --mutants 5000        # some minutes; seeded

What we accept must be, whole, what torch's unpickling would run: same tensors, same outputs (support/unpickled).
What NVlabs' code could have written must be accepted.
"""

import argparse
import sys
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch

from jax_edm2.torch_ref.network import Block
from jax_edm2.torch_ref.snapshot import EasyDict
from tests.corpora.differential_cases import CASES, TABLES, Later, build, dumps, judge, sound

# Mutants: each is given a snapshot's dictionary and a random generator, and changes something.


def _pick(rng, values):
    values = list(values)
    return values[int(rng.integers(len(values)))] if values else None


def _module(data, rng):
    modules = [module for module in data["ema"].modules() if isinstance(module, torch.nn.Module)]
    return _pick(rng, modules)


def _anything(data, rng):
    """A value of any kind that files can hold."""
    tensor = torch.from_numpy(rng.standard_normal(_pick(rng, [(), (4,), (2, 4, 3, 3), (8, 4)]))).half()
    return _pick(
        rng,
        [
            None, True, False, 0, 1, 4, 0.3, 0.5, 256, "enc", "dec", "keep", (1, 1), [1, 1], [1, 3, 3, 1], {},
            EasyDict(), tensor, torch.nn.Parameter(tensor), _module(data, rng), np.float64(0.3), np.int64(4), range(2),
            set(), OrderedDict(), vars(_module(data, rng))["_modules"], np.float32([1, 2]),
        ],
    )  # fmt: skip


def _name(data, rng):
    """A name that means something somewhere."""
    names = {key for module in data["ema"].modules() for table in (vars(module), *_tables(module)) for key in table}
    methods = ("forward", "items", "values", "__class__", "_call_impl", "skip", "attend", "to")
    return _pick(rng, [*sorted(names), *methods])


def _tables(module):
    return [vars(module)[table] for table in TABLES if isinstance(vars(module).get(table), dict)]


def set_attribute(data, rng):
    vars(_module(data, rng))[_name(data, rng)] = _anything(data, rng)


def other_value(data, rng):
    state = vars(_module(data, rng))
    state[_pick(rng, [key for key in state if key not in TABLES])] = _anything(data, rng)


def set_entry(data, rng):
    _pick(rng, _tables(_module(data, rng)))[_name(data, rng)] = _anything(data, rng)


def delete_attribute(data, rng):
    state = vars(_module(data, rng))
    state.pop(_pick(rng, state))


def delete_entry(data, rng):
    table = _pick(rng, [table for module in data["ema"].modules() for table in _tables(module) if table])
    table.pop(_pick(rng, table))


def move_entry(data, rng):
    module = _module(data, rng)
    places = [*_tables(module), vars(module)]
    source, target = _pick(rng, [place for place in places if place]), _pick(rng, places)
    key = _pick(rng, source)
    target[key] = source[key] if rng.integers(2) else source.pop(key)


def exchange_entries(data, rng):
    one, other = (
        _pick(rng, [table for module in data["ema"].modules() for table in _tables(module) if table]) for _ in range(2)
    )
    a, b = _pick(rng, one), _pick(rng, other)
    one[a], other[b] = other[b], one[a]


def reorder(data, rng):
    module = _pick(rng, [module for module in data["ema"].modules() if len(module._modules) > 1])
    keys = list(module._modules)
    rng.shuffle(keys)
    module.__dict__["_modules"] = {key: module._modules[key] for key in keys}


def reorder_state(data, rng):
    module = _module(data, rng)
    state = dict(vars(module))
    keys = list(state)
    rng.shuffle(keys)
    vars(module).clear()
    vars(module).update({key: state[key] for key in keys})


def other_class(data, rng):
    module = _module(data, rng)
    module.__class__ = type(_module(data, rng))


def other_argument(data, rng):
    kwargs = data["ema"]._init_kwargs
    data["ema"]._init_kwargs = {
        **kwargs,
        _pick(rng, [*kwargs, "dropout", "sigma_data", "use_fp16"]): _anything(data, rng),
    }


def legal_form(data, rng):
    """Arguments and attributes in other types, of the same value."""
    kwargs = dict(data["ema"]._init_kwargs)
    forms = (tuple, list, lambda value: [np.int64(v) for v in value], lambda value: range(min(value), max(value) + 1))
    kwargs["channel_mult"] = _pick(rng, forms)(kwargs["channel_mult"])
    data["ema"]._init_kwargs = EasyDict(kwargs) if rng.integers(2) else kwargs
    module = _pick(rng, [module for module in data["ema"].modules() if isinstance(module, Block)])
    module.__dict__["res_balance"] = np.float64(module.res_balance)


def legal_tensor(data, rng):
    module = _pick(rng, [module for module in data["ema"].modules() if module._parameters])
    form = _pick(rng, [torch.bfloat16, torch.float64, torch.float32, None])
    if form is None:
        for parameter in module._parameters.values():
            if isinstance(parameter, torch.Tensor) and parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
    else:
        module.to(form)


def other_strides(data, rng):
    for parameter in _module(data, rng)._parameters.values():
        if isinstance(parameter, torch.Tensor) and parameter.ndim > 1:
            parameter.data = parameter.data.transpose(0, 1)


def later(data, rng):
    """Something that has been pickled is fetched again, and changed."""
    module = _module(data, rng)
    target = _pick(rng, [*_tables(module), module._init_kwargs if "_init_kwargs" in vars(module) else module])
    data["later"] = Later(target, _pick(rng, [None, _name(data, rng)]), _anything(data, rng))


def beside(data, rng):
    """Encoder and loss."""
    entry = data[_pick(rng, ["encoder", "loss_fn"])]
    if hasattr(entry, "__dict__") and rng.integers(4):
        vars(entry)[_pick(rng, [*vars(entry), "decode", "scale", "bias", "_vae", "encode"])] = _anything(data, rng)
    else:
        data[_pick(rng, ["encoder", "loss_fn"])] = _anything(data, rng)


MUTATIONS = (
    set_attribute, other_value, set_entry, delete_attribute, delete_entry, move_entry, exchange_entries, reorder,
    reorder_state, other_class, other_argument, legal_form, legal_tensor, other_strides, later, beside,
)  # fmt: skip


def mutants(count: int, seed: int, report=lambda done: None) -> tuple[Counter, list[str]]:
    """How many of each kind were refused and accepted, and every one that we read otherwise than torch does."""
    rng = np.random.default_rng(seed)
    outcomes: Counter = Counter()
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.pkl"
        for done in range(count):
            mutation = MUTATIONS[done % len(MUTATIONS)]
            name = mutation.__name__
            kind = _pick(rng, [{}, {"label_dim": 0}, {"channel_mult": [2, 1]}, {"clip_act": None}])
            base = sound(done % 2, num_blocks=0, **kind)
            try:
                mutation(base, rng)
                if not rng.integers(3):
                    _pick(rng, MUTATIONS)(base, rng)
                data = dumps(base, int(_pick(rng, [3, 4, 5])))
            except Exception:  # torch or the pickler refuse to make it
                outcomes[name, "not made"] += 1
                continue
            try:
                accepted, wrong = judge(data, path)
            except Exception as error:
                accepted, wrong = False, f"raises {error!r:.200}"
            outcomes[name, "accepted" if accepted else "refused"] += 1
            if wrong:
                problems.append(f"mutant {done} of seed {seed} ({name}): {wrong}")
            report(done + 1)
    return outcomes, problems


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.surveys.differential", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for name, edit, legal in CASES:
            accepted, wrong = judge(build(edit), Path(folder) / "case.pkl")
            if wrong or accepted != legal:
                problems.append(f"{name}: {wrong or ('refused', 'accepted')[accepted]}")

    def report(done):
        if done % 100 == 0 and sys.stderr.isatty():
            print(f"\r{done:,}", end="", file=sys.stderr)

    outcomes, found = mutants(args.mutants, args.seed, report)
    problems += found
    kinds = ("refused", "accepted", "not made")
    print(f"{'mutation':16}" + "".join(f"{kind:>10}" for kind in kinds))
    for mutation in MUTATIONS:
        print(f"{mutation.__name__:16}" + "".join(f"{outcomes[mutation.__name__, kind]:10,}" for kind in kinds))
    for problem in problems:
        print(f"PROBLEM {problem}")
    print(f"{len(CASES)} cases and {args.mutants:,} mutants: {len(problems)} that torch would read otherwise")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
