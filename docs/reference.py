"""`make docs`: the reference of all public names, from their docstrings, in site/. A warning of ours is an error.

python docs/reference.py [FOLDER]
"""

import sys
import warnings
from pathlib import Path

import pdoc

import jax_edm2

PACKAGES = (
    "jax_edm2",
    "jax_edm2.training",
    "jax_edm2.evaluation",
    "jax_edm2.converter",
    "!jax_edm2.converter.cli",
    "jax_edm2.torch_ref",
)


def main():
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", r"Error parsing type annotation .* for (?!jax_edm2)")
    for name in jax_edm2.__all__:  # they are imported when they are first asked for, and pdoc does not ask
        setattr(jax_edm2, name, getattr(jax_edm2, name))
    pdoc.render.configure(docformat="markdown", math=False, search=True, footer_text=f"edm2-jax {jax_edm2.__version__}")
    pdoc.pdoc(*PACKAGES, output_directory=Path(sys.argv[1] if len(sys.argv) > 1 else "site"))


if __name__ == "__main__":
    main()
