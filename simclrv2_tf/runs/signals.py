"""Ctrl-C and SIGTERM: the step is finished and saved first; a second one stops at once."""

import signal
import sys
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM only asks to stop; the next one kills as it always does.

    Python hears signals in its main thread alone, so elsewhere this changes nothing.

    Attributes:
        signal: the one that came; None while there is none.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        here = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS if here}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        print(f"\n{self.signal.name}: stopping after this step, once more stops at once.", file=sys.stderr, flush=True)

    def obey(self) -> None:
        """Ends the program as the signal would have: KeyboardInterrupt, or SystemExit with 128 + SIGTERM.

        A worker stops so with the one that got the signal.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)
