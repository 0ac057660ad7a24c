"""NVlabs' own training_loop on the CPU, with all that it draws recorded: a process of `tests.surveys.training`.

    python nvlabs_training.py CLONE < JOB.json

It wants CUDA and one torch version; what is in the way of a CPU is put aside here, nothing of the recipe.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np


def main():
    clone, job = Path(sys.argv[1]), json.load(sys.stdin)
    sys.path.insert(0, str(clone))
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    import torch

    torch.utils.data.Sampler.__init__ = lambda self, *_: None
    torch.distributed.init_process_group("gloo", init_method=f"file://{job['outdir']}/rendezvous", rank=0, world_size=1)
    parallel, load = torch.nn.parallel.DistributedDataParallel, torch.load
    torch.nn.parallel.DistributedDataParallel = lambda net, device_ids: parallel(net)
    torch.load = lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False})
    from training import phema, training_loop

    draws: dict[str, list] = {"levels": [], "noise": [], "images": [], "labels": []}
    randn, randn_like, call = torch.randn, torch.randn_like, training_loop.EDM2Loss.__call__

    def loss(self, net, images, labels=None):
        draws["images"].append(images.numpy().copy())
        draws["labels"].append(labels.numpy().copy())
        torch.randn = lambda *args, **kwargs: kept("levels", randn(*args, **kwargs))
        torch.randn_like = lambda *args, **kwargs: kept("noise", randn_like(*args, **kwargs)) * job["noise"]
        try:
            return call(self, net, images, labels)
        finally:
            torch.randn, torch.randn_like = randn, randn_like

    def kept(name, value):
        draws[name].append(value.numpy().copy())
        return value

    steps, update = 0, phema.PowerFunctionEMA.update

    def updated(self, cur_nimg, batch_size):
        nonlocal steps
        update(self, cur_nimg, batch_size)
        steps += 1
        if steps in job["keep"]:
            keep(self, f"{steps}.npz")

    def keep(self, name):
        found = {f"net/{key}": value for key, value in self.net.state_dict().items()}
        for std, average in zip(self.stds, self.emas, strict=True):
            found |= {f"ema-{std:.3f}/{key}": value for key, value in average.state_dict().items()}
        np.savez(f"{job['outdir']}/{name}", **{key: value.numpy() for key, value in found.items()})

    begin = phema.PowerFunctionEMA.__init__

    def begun(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        if job["weights"]:
            from safetensors.torch import load_file

            for each in (self.net, *self.emas):
                each.load_state_dict(load_file(job["weights"]))

    training_loop.EDM2Loss.__call__ = loss
    phema.PowerFunctionEMA.update, phema.PowerFunctionEMA.__init__ = updated, begun
    training_loop.training_loop(
        **job["loop"], run_dir=job["outdir"], device=torch.device("cpu"), status_nimg=None, snapshot_nimg=None,
        data_loader_kwargs={"class_name": "torch.utils.data.DataLoader", "num_workers": 0},
    )  # fmt: skip
    np.savez(f"{job['outdir']}/draws.npz", **{key: np.stack(value) for key, value in draws.items()})


if __name__ == "__main__":
    main()
