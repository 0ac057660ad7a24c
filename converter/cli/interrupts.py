"""Ctrl-C, at whatever moment: exit code 130 and one line, and no traceback. Imports next to nothing."""

import os
import signal
import sys

INTERRUPTED = 130
_name = "edm2"


def leave_at_once(name: str):
    """From now on, Ctrl-C ends the process: while it imports, and when it is done."""
    global _name
    _name = name
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for what a shell runs in the background
        signal.signal(signal.SIGINT, _leave)


class KeyboardInterrupts:
    """In the `with` body, Ctrl-C is a KeyboardInterrupt, so that what is half done can be removed; before, after, and
    when it comes twice, it ends the process."""

    def __enter__(self):
        sys.unraisablehook = _again
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _raise)

    def __exit__(self, *_):
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _leave)


def _raise(*_):
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _leave(*_):
    try:
        os.write(2, f"{_name}: interrupted\n".encode())
    finally:
        os._exit(INTERRUPTED)


def _again(unraisable: "sys.UnraisableHookArgs"):
    """Where Python cannot raise (in a callback of its garbage collector, say) it would print and go on."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        import threading

        signal.signal(signal.SIGINT, _raise)
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)
