"""`make first-minutes`: a person's first ten minutes, on the wheel, in a folder of their own, as they would go.

A fresh environment gets the wheel and no torch; the folder has traps in it: files with the names of our parts. Convert,
look, sample, load, fine-tune 20 steps, save, sample again, pack pictures, FID (by a detector with random weights; the
published one would have to be fetched), and the goldens; then what edm2-train takes, a short training, another EMA
length of it and FID by length; then torch, and the proof.

python tests/surveys/first_minutes.py [FOLDER]: needs nothing but Python; the environment is made in FOLDER.
"""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
TRAP = "raise SystemExit('code of the working folder was run')\n"
FINE_TUNE = """
import jax, jax.numpy as jnp, optax
import jax_edm2

model = jax_edm2.from_pretrained("digits.safetensors", dtype=jnp.float32)
net, variables = model.net, model.variables
images, labels = jnp.zeros((8, 1, 8, 8)), jax.nn.one_hot(jnp.arange(8), 10)
adam = optax.adam(1e-3, b1=0.9, b2=0.99)


@jax.jit
def step(variables, state, key):
    variables = jax_edm2.project_to_sphere(variables)
    noise_key, sigma_key = jax.random.split(key)
    noise, sigma = jax.random.normal(noise_key, images.shape), jnp.exp(1.6 * jax.random.normal(sigma_key, (8,)) - 0.8)

    def loss(params):
        return jax_edm2.denoising_loss(net, {**variables, "params": params}, images, sigma, noise, labels).mean()

    value, gradient = jax.value_and_grad(loss)(variables["params"])
    updates, state = adam.update(gradient, state)
    return {**variables, "params": optax.apply_updates(variables["params"], updates)}, state, value


state, losses = adam.init(variables["params"]), []
for key in jax.random.split(jax.random.key(0), 20):
    variables, state, loss = step(variables, state, key)
    losses.append(float(loss))
assert step._cache_size() == 1, "compiled more than once"
assert sum(losses[-5:]) < sum(losses[:5]), losses
record = model.replace(variables=variables).save("mine.safetensors")
assert record.source is None and record.fine_tuned_from.name == "digits.pkl", record
samples = jax_edm2.from_pretrained("mine.safetensors").sample(range(4), classes=[1, 2, 3, 4], num_steps=8)
samples.to_pil()[0].save("mine.png")
"""
DETECTOR = """
import numpy as np
from safetensors.numpy import save_file
from jax_edm2.evaluation import inception

rng, tensors = np.random.default_rng(0), {}
for name, shape in inception.tensors().items():
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    values = scale * rng.standard_normal(shape) + name.endswith("running_var")
    tensors[name] = values.astype(np.float32)
save_file(tensors, "inception.safetensors")
"""
NO_TORCH = "import importlib.util as i; assert i.find_spec('torch') is None"
NAMES = """
import importlib.metadata as m
tops = {str(path).split("/")[0] for path in m.files("edm2-jax")} - {"..", "__pycache__"}
assert tops == {"jax_edm2"} | {top for top in tops if top.endswith(".dist-info")}, tops
"""


def main(folder: Path):
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python, work = str(environment / "bin" / "python"), folder / "work"
    work.mkdir()
    for name in ("converter", "golden", "torch_ref", "numpy"):
        (work / f"{name}.py").write_text(TRAP)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*words: object, safe: bool = True):
        began = time.perf_counter()
        command = [str(word) for word in words]
        if command[0].startswith("edm2-"):
            command[0] = str(environment / "bin" / command[0])
        # A person's own python puts the working folder first: that is theirs, and has the traps. Commands must not.
        variables = {**clean, "PYTHONSAFEPATH": "1"} if safe else clean
        done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True)
        line = " ".join(str(word) if len(str(word)) < 60 else "..." for word in words)
        print(f"{time.perf_counter() - began:6.1f} s  {line.replace(str(folder) + '/', '')}", flush=True)
        if done.returncode:
            sys.exit(f"exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout + done.stderr

    def command(*words: object):
        return run(*words, safe=False)

    built = run(python, *PIP[:2], "wheel", "--verbose", "--no-deps", "-w", folder, ROOT)
    ours = [line for line in built.splitlines() if "arning" in line and "Location" not in line]
    assert not ours, f"the build warns: {ours}"
    (wheel,) = folder.glob("edm2_jax-*.whl")
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", wheel)
    run(python, "-c", NO_TORCH)
    run(python, "-c", NAMES)
    snapshot = ROOT / "golden" / "digits.pkl"
    command("edm2-convert", snapshot)
    command("edm2-convert", "inspect", "digits.safetensors")
    command("edm2-convert", "check", "digits.safetensors")
    command("edm2-sample", "--net=digits.safetensors", "--outdir=out", "--seeds=0-7", "--steps=8", "--grid")
    run(python, "-c", FINE_TUNE)
    command("edm2-sample", "--net=mine.safetensors", "--outdir=out2", "--seeds=0-7", "--steps=8")
    command("edm2-dataset", "convert", "--source=out", "--dest=out.zip", "--resolution=8x8", "--transform=center-crop")
    run(python, "-c", DETECTOR)
    detector, few = ("--metrics=fid", "--inception=inception.safetensors"), "--num=8"
    command("edm2-metrics", "ref", "--data=out.zip", "--dest=ref.pkl", *detector)
    command("edm2-metrics", "calc", "--images=out2", "--ref=ref.pkl", few, *detector)
    command("edm2-metrics", "gen", "--net=digits.safetensors", "--steps=8", "--ref=ref.pkl", few, *detector)
    assert "AGREES" in command("edm2-verify", "--golden", "--device", "cpu")
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", f"{wheel}[training]")
    data = f"--data={ROOT / 'golden' / 'digits-five.zip'}"
    command(
        "edm2-train", "--outdir=runs/0", data, "--init=digits.safetensors", "--batch=128", "--lr=0.002", "--rampup=0",
        "--duration=2Ki", "--status=1Ki", "--snapshot=1Ki", "--checkpoint=2Ki",
    )  # fmt: skip
    command("edm2-phema", "--indir=runs/0", "--outdir=phema", "--outstd=0.080")
    command(
        "edm2-metrics", "sweep", "--indir=runs/0", "--outdir=sweep", "--outstd=0.080,0.090", "--steps=8", few,
        "--ref=ref.pkl", *detector,
    )  # fmt: skip
    run(python, "-c", NO_TORCH)
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", f"{wheel}[verify]")
    said = command("edm2-verify", snapshot, "--checkpoint", "digits.safetensors", "--device", "cpu", "--steps", 8)
    assert "AGREES: JAX computes what PyTorch computes." in said, said


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="edm2-first-") as temporary:
            main(Path(temporary))
