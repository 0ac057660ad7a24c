"""What glibc does with memory that is freed, told otherwise."""

import contextlib
import ctypes
import gc

_M_MMAP_THRESHOLD = -3  # of mallopt


def make_room():
    """Give back what nobody uses: garbage that waits to be collected, and what glibc keeps of all that was freed."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # other systems' C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once():
    """From now on everything above a megabyte is given back when it is freed, which takes more time, and is not kept.

    Tensors of many sizes that come and go otherwise leave glibc with several times what is ever used at once.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)
