"""Graceful stop on Ctrl-C, SIGTERM and SIGHUP: the step is finished and saved; a second signal stops immediately."""

import signal
import sys
import threading
from types import FrameType, TracebackType

from simclrv2_tf.interrupts import SIGNALS, active_watch


class StopRequest:
    """Context in which the first signal only requests a stop, and the next one kills as usual.

    Under a `SignalWatch`, a step that waits for something outside the process is not waited for. A no-op outside the
    main thread, the only one in which Python handles signals.

    Attributes:
        signal: the received signal; None if there is none.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._watch, self._handlers = active_watch(), {}
        if self._watch is not None:
            self._watch.stop = self._request
        elif threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._watch is not None:
            self._watch.restart_grace()
            self._watch.stop = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for handled in SIGNALS:
            signal.signal(handled, signal.SIG_DFL)
        self._request(signal.Signals(number))
        assert self.signal is not None
        print(f"\n{self.signal.name}: stopping after this step; repeat to stop now.", file=sys.stderr, flush=True)

    def _request(self, number: signal.Signals) -> None:
        self.signal = number

    def obey(self) -> None:
        """Ends the program as the signal would have: by KeyboardInterrupt, or by SystemExit with 128 + its number.

        A worker that received no signal exits as after SIGTERM.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or signal.SIGTERM))
