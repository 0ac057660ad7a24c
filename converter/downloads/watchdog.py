"""An end to connections that are kept open and bring nothing, or next to nothing.

A library's time-outs are for one read from a socket each: a byte now and then satisfies them for ever, in a handshake,
a status line, headers, the sizes of chunks, a body. A thread that knows only the time and how much has arrived shuts
the sockets down, wherever the other thread waits in them.
"""

import contextlib
import socket
import threading
from collections import deque

TIMEOUT = 20  # seconds: the longest silence of a server
PERIOD = 3  # time-outs: until an answer's headers are complete, and over which the speed of a body is averaged
SPEED = 1000  # bytes a second, the least
_TICKS = 6  # of a period


class Watchdog:
    """Watches the sockets of one attempt while it is open; `bite` is what it ended them for, or None.

    received: bytes of the body, kept up to date by who reads it, who also says when that begins (`read`).
    """

    def __init__(self, timeout: float):
        self.period = PERIOD * timeout  # seconds
        self.received = 0
        self.bite: str | None = None
        self._reading = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        for each in self._sockets:
            each.close()

    def watch(self, connection: socket.socket):
        """A socket that has just been connected; TLS may take it over."""
        with self._lock:
            self._sockets.append(connection.dup())
            if self.bite is not None:
                _shut(self._sockets[-1])

    def read(self):
        """The headers are complete: from now on the body must come fast enough."""
        self._reading = True

    def _run(self):
        waited, arrived = 0, deque[int](maxlen=_TICKS + 1)
        # Ticks are counted, not seconds: a machine that slept, or a process that was stopped, is no server's fault.
        while not self._done.wait(self.period / _TICKS):
            if self._reading:
                arrived.append(self.received)
                count = arrived[-1] - arrived[0]
                if len(arrived) > _TICKS and count < SPEED * self.period:
                    self._end(f"the server sent {count:,} bytes in {self.period:,.0f} s, which is too slow")
                    break
            else:
                waited += 1
                if waited == _TICKS:
                    self._end(f"the server's headers were not complete after {self.period:,.0f} s")
                    break

    def _end(self, why: str):
        with self._lock:
            self.bite = why
            for each in self._sockets:
                _shut(each)


def _shut(connection: socket.socket):
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
