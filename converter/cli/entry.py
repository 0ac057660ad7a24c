"""Where the commands begin: what they are made of is imported when Ctrl-C is provided for."""

import importlib

from converter.cli.interrupts import leave_at_once


def convert():
    _run("convert")


def verify():
    _run("verify")


def sample():
    _run("sample")


def _run(name: str):
    leave_at_once(f"edm2-{name}")
    importlib.import_module(f"converter.cli.{name}").main()
