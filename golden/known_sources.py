"""Records the sources of networks that torch_ref stands for: converter/known_sources.json, hashes alone.

    python -m golden.known_sources --nvlabs DIR    # DIR: a clone of NVlabs/edm2, bare or not; with all of its history
    python -m golden.known_sources                 # of torch_ref alone, after a change of it
    python -m golden.known_sources --check         # is torch_ref's present source in the record?

Every version of torch_ref/network.py that a snapshot was ever written with stays in the record: they compute the same.
Snapshots that edm2-convert writes carry it with a few lines more (`converter.to_snapshot.PERSISTENT`).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from jax_edm2.converter.embedded import RECORD, known_text, sha256_of
from jax_edm2.converter.meaning import meaning_of
from jax_edm2.converter.to_snapshot import source_text

ROOT = Path(__file__).parent.parent
OURS, OUR_PATH = "torch_ref of edm2-jax", "torch_ref/network.py"
NVLABS, NVLABS_PATH = "NVlabs/edm2, training/networks_edm2.py", "training/networks_edm2.py"


def history(folder: Path, path: str, of: str) -> dict[str, list[str]]:
    """Every text of a file in a git repository, with the commits that have it. of: HEAD, or --all."""

    def git(*arguments):
        return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout

    texts: dict[str, list[str]] = {}
    for commit in reversed(git("rev-list", of).split()):
        if git("ls-tree", commit, path):
            texts.setdefault(git("show", f"{commit}:{path}"), []).append(commit)
    return texts


def version(text: str, **more) -> dict:
    meaning = meaning_of(text)
    return {"text": sha256_of(text), **more, "whole": meaning.whole, "parts": meaning.parts}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m golden.known_sources", description=__doc__.splitlines()[0])
    parser.add_argument("--nvlabs", type=Path, metavar="DIR", help="a clone of NVlabs/edm2, to read it again")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    ours = (ROOT / OUR_PATH).read_text()
    if args.check:
        known = all(known_text(sha256_of(text)) for text in (ours, source_text("network")))
        print(f"{OUR_PATH} is {'' if known else 'NOT '}in the record")
        return 0 if known else 1
    sources = {source["name"]: source for source in json.loads(RECORD.read_text())} if RECORD.exists() else {}
    if args.nvlabs:
        versions = [
            version(text, commits=commits) for text, commits in history(args.nvlabs, NVLABS_PATH, "--all").items()
        ]
        about = {"repository": "https://github.com/NVlabs/edm2", "path": NVLABS_PATH}
        sources[NVLABS] = {"name": NVLABS, **about, "versions": versions}
    mine = sources.setdefault(OURS, {"name": OURS, "path": OUR_PATH, "versions": []})
    for text in (*history(ROOT, OUR_PATH, "HEAD"), ours, source_text("network")):
        if all(known["text"] != sha256_of(text) for known in mine["versions"]):
            mine["versions"].append(version(text))
    RECORD.write_text(json.dumps(list(sources.values()), indent=1) + "\n")
    for source in sources.values():
        print(f"{source['name']}: {len(source['versions'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
