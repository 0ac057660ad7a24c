"""The command lines: each parses, makes one library call, and reports."""

import sys

if sys.argv[:1] == [
    "-m"
]:  # `python -m jax_edm2.converter.cli.convert` comes here first, as edm2-convert comes to entry.py
    from .interrupts import leave_at_once

    leave_at_once("edm2-" + next((part for part in sys.orig_argv if "converter.cli." in part), "").rpartition(".")[2])
