"""Signals and waiting: a waiting program logs the reason once a minute, and obeys a signal within ten seconds.

Python runs a signal handler only when the main thread returns from C code, and the wait of a library may never end. So
a watching thread receives each signal at once, and ends the process if the main thread does not.
"""

import atexit
import collections
import contextlib
import logging
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE_SECONDS = 8.0  # after a signal, before a process that has not ended by itself is ended
REPORT_SECONDS = 60.0
IDLE_SECONDS = 5.0  # period over which CPU use is measured
IDLE_SHARE = 0.02  # of a core: maximum CPU use of a waiting process
ECHO_SECONDS = 1.0  # within which a second SIGHUP is from the same terminal, as kernel and shell both send one
TICK_SECONDS = 0.5

_waits: list["_Wait"] = []  # what the main thread waits for, the innermost last
_watch: "SignalWatch | None" = None
_scratch = contextlib.ExitStack()
atexit.register(_scratch.close)


def scratch_dir(prefix: str, parent: str | None = None) -> str:
    """Creates a temporary folder that is removed when the process ends, also by `end_process`; returns its path."""
    return _scratch.enter_context(tempfile.TemporaryDirectory(prefix=prefix, dir=parent))


def end_process(status: int) -> None:
    """Ends the process at once, without waiting for other threads or workers; removes its temporary folders."""
    with contextlib.suppress(Exception):
        _scratch.close()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(status)


class _Wait:
    """A possible wait of the main thread; the arguments are those of `waiting`."""

    def __init__(
        self,
        reason: str | Callable[[], str],
        usual_seconds: float = 0.0,
        timeout: float | None = None,
        message: str = "",
    ):
        self.reason, self.usual_seconds, self.timeout, self.message = reason, usual_seconds, timeout, message
        self.started = self.reported = time.monotonic()

    def describe(self) -> str:
        return self.reason if isinstance(self.reason, str) else self.reason()


@contextlib.contextmanager
def waiting(
    reason: str | Callable[[], str], usual_seconds: float = 0.0, timeout: float | None = None, message: str = ""
) -> Iterator[None]:
    """Runs its body, which may wait for an event outside the process.

    Under a `SignalWatch`, the reason is logged once a minute while the process is idle.

    Args:
        reason: what it may wait for, or a function that returns this.
        usual_seconds: time for which it may be idle without waiting, while an accelerator computes.
        timeout: seconds after which the process ends with status 2; None: never.
        message: the error line of the timeout.
    """
    wait = _Wait(reason, usual_seconds, timeout, message)
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)


class SignalWatch:
    """Makes a program obey SIGINT, SIGTERM and SIGHUP wherever it waits. A no-op outside the main thread.

    The first signal raises KeyboardInterrupt or SystemExit, unless a `StopRequest` lets the step end. After
    `GRACE_SECONDS` a process that is still there is ended; with a `StopRequest` only if it is idle. A second signal
    ends the process at once. The process then ends with the context. A SIGHUP that is ignored, as under nohup, stays
    ignored.

    Attributes:
        stop: takes the first signal instead of an exception; set by a `StopRequest`.
    """

    def __init__(self) -> None:
        self.stop: Callable[[signal.Signals], None] | None = None
        self._signal: signal.Signals | None = None
        self._is_obeyed = False
        self._received = self._idle_since = 0.0
        self._lock = threading.Lock()
        self._cpu: collections.deque[tuple[float, float]] = collections.deque()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        global _watch
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        ignored = [number for number in SIGNALS[2:] if signal.getsignal(number) is signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS if number not in ignored}
        _watch, self._thread = self, threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _watch
        if not self._handlers:
            return
        if self._is_obeyed and isinstance(error, KeyboardInterrupt | SystemExit):
            self.restart_grace()
            atexit._run_exitfuncs()  # still watched, as those of libraries may wait
            status: Any = error.code if isinstance(error, SystemExit) else 128 + signal.SIGINT
            end_process(status)
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        _watch = None
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def restart_grace(self) -> None:
        """Restarts the grace period after a signal, because the process has only now begun to end."""
        self._received = time.monotonic()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Obeys the first signal, in the main thread. Another one ends the process, by the kernel or by the watch."""
        if self._is_obeyed:
            return
        self._is_obeyed = True
        self._announce(number)
        for handled in SIGNALS[:2]:
            signal.signal(handled, signal.SIG_DFL)
        if self.stop is not None:
            self.stop(signal.Signals(number))
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    def _announce(self, number: int) -> None:
        """Prints, once, that a signal has arrived."""
        with self._lock:
            if self._signal is not None:
                return
            self._signal, self._received = signal.Signals(number), time.monotonic()
        _print(f"\n{self._signal.name}: stopping{' after this step' if self.stop else ''}; repeat to stop now.")

    def _run(self) -> None:
        """Watches until the context ends, in a thread of its own."""
        count = 0
        while True:
            if select.select([self._reader], [], [], TICK_SECONDS)[0]:
                numbers = self._reader.recv(64)
                if not numbers:
                    return
                for number in filter(SIGNALS.__contains__, numbers):
                    count += 1
                    self._announce(number)
                    is_echo = number == self._signal == SIGNALS[-1] and time.monotonic() - self._received < ECHO_SECONDS
                    if count > 1 and not is_echo:
                        end_process(128 + number)
            self._check(time.monotonic())

    def _check(self, now: float) -> None:
        """Ends a process that does not obey a signal or has waited for too long; logs what it waits for."""
        is_idle, wait = self._is_idle(now), _waits[-1] if _waits else _Wait("another process")
        is_stuck = is_idle and now - wait.started >= wait.usual_seconds
        if self._signal is not None and now - self._received >= GRACE_SECONDS and (self.stop is None or is_stuck):
            _print(f"{self._signal.name}: stopped while waiting for {wait.describe()}")
            end_process(128 + self._signal)
        if wait.timeout is not None and now - wait.started >= wait.timeout:
            _print(f"error: {wait.message}")
            end_process(2)
        if is_stuck and now - max(self._idle_since, wait.started, wait.reported) >= REPORT_SECONDS:
            wait.reported = now
            log.warning("waiting for %s, for %d s", wait.describe(), now - max(self._idle_since, wait.started))

    def _is_idle(self, now: float) -> bool:
        """Returns whether the process has used next to no CPU for `IDLE_SECONDS`."""
        self._cpu.append((now, time.process_time()))
        while now - self._cpu[0][0] > IDLE_SECONDS + TICK_SECONDS:
            self._cpu.popleft()
        seconds, used = now - self._cpu[0][0], self._cpu[-1][1] - self._cpu[0][1]
        if seconds < IDLE_SECONDS or used > IDLE_SHARE * seconds:
            self._idle_since = now
            return False
        return not _is_runnable()


def _is_runnable() -> bool:
    """Returns whether another thread is ready to run but gets no CPU; on Linux, elsewhere always False."""
    own = str(threading.get_native_id())
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/stat", encoding="utf-8") as file:
                if thread != own and file.read().rpartition(")")[2].split()[0] == "R":
                    return True
    return False


def active_watch() -> SignalWatch | None:
    """Returns the watch of this program; None in a program that has none, such as one that uses the library."""
    return _watch


def _print(line: str) -> None:
    """Prints a line on standard error, even if other Python code holds the stream."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
