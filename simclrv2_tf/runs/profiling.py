"""A profile of some steps of a run, for TensorBoard."""

import pathlib

import tensorflow as tf


class Profile:
    """Traces the steps that were asked for, and no others: a call of the devices ends where the profile does.

    Args:
        steps: the first and the last one, counted from 1; (0, 0): none.
        folder: TensorBoard's, where the trace goes to ``plugins/profile``.
    """

    def __init__(self, steps: tuple[int, int], folder: pathlib.Path):
        self.start, self.end = steps[0] - 1, steps[1]  # of steps done
        self.folder = folder
        self.running = False

    def __enter__(self) -> "Profile":
        return self

    def before(self, step: int, steps: int) -> int:
        """Called with the steps done and how many are next; starts if they are the first ones of the profile.

        Returns:
            How many to run, so that none before or after the profile runs in one call with it.
        """
        if self.start <= step < self.end and not self.running:
            tf.profiler.experimental.start(str(self.folder))
            self.running = True
        return min([steps, *(edge - step for edge in (self.start, self.end) if edge > step)])

    def after(self, step: int) -> None:
        """Called with the steps done; writes the trace if those were the last ones."""
        if self.running and step >= self.end:
            self._stop()

    def __exit__(self, *error: object) -> None:
        if self.running:  # the run stopped in its middle
            self._stop()

    def _stop(self) -> None:
        tf.profiler.experimental.stop()
        self.running = False
