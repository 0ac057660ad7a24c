"""Where the commands begin: what they are made of is imported when Ctrl-C is provided for."""

from .interrupts import leave_at_once

leave_at_once("edm2")


def convert():
    _run("convert")


def phema():
    _run("phema")


def verify():
    _run("verify")


def sample():
    _run("sample")


def train():
    _run("train")


def dataset():
    _run("dataset")


def metrics():
    _run("metrics")


def _run(name: str):
    leave_at_once(f"edm2-{name}")
    import importlib

    importlib.import_module(f".{name}", __package__).main()
