"""Graceful stop on Ctrl-C and SIGTERM: the step is finished and saved; a second signal stops immediately."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context in which the first SIGINT or SIGTERM only requests a stop, and the next one kills as usual.

    A no-op outside the main thread, the only one in which Python handles signals.

    Attributes:
        signal: the received signal; None if there is none.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._handlers = {number: signal.signal(number, self._request) for number in SIGNALS if in_main_thread}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for handled in SIGNALS:
            signal.signal(handled, signal.SIG_DFL)
        print(f"\n{self.signal.name}: stopping after this step; repeat to stop now.", file=sys.stderr, flush=True)

    def obey(self) -> None:
        """Ends the program as the signal would have: by KeyboardInterrupt, or by SystemExit with 128 + SIGTERM.

        A worker without a signal of its own ends like one that got SIGTERM.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the program by SystemExit, as Ctrl-C does by KeyboardInterrupt, so that it cleans up.

    A no-op outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
