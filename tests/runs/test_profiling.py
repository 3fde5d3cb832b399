"""The profile of some steps: a trace of them and of no others."""

import pytest
import tensorflow as tf

from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs.profiling import Profile
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here is Keras's."""


def run(profile: Profile, first: int, last: int, a_call: int) -> list[int]:
    """Steps whose names go into a trace, several a call; the steps of each call."""
    calls, step = [], first
    while step < last:
        calls.append(profile.before(step, min(a_call, last - step)))
        for k in range(calls[-1]):
            with tf.profiler.experimental.Trace(f"step {step + k + 1:02}"):
                pass
        step += calls[-1]
        profile.after(step)
    return calls


def traced(folder) -> list[int]:
    traces = b"".join(path.read_bytes() for path in folder.glob("plugins/profile/*/*.xplane.pb"))
    return [step for step in range(1, 21) if b"step %02d" % step in traces]


@pytest.mark.parametrize(
    ("steps", "first", "calls", "found"),
    [
        ((4, 6), 0, [3, 3, 5, 4], [4, 5, 6]),
        ((1, 1), 0, [1, 5, 5, 4], [1]),
        ((4, 6), 4, [2, 5, 4], [5, 6]),  # a run that goes on in its middle
        ((13, 99), 10, [2, 3], [13, 14, 15]),  # one that ends in it
        ((4, 6), 10, [5], []),
        ((0, 0), 0, [5, 5, 5], []),
    ],
)
def test_a_trace_is_of_the_steps_asked_for(steps, first, calls, found, tmp_path):
    with Profile(steps, tmp_path) as profile:
        assert run(profile, first, 15, 5) == calls
    assert traced(tmp_path) == found


@pytest.mark.parametrize("value", ["10", "10,", "0,3", "5,4", "a,b", "1,2,3", "-1,3"])
def test_what_is_no_pair_of_steps_is_refused(value):
    with pytest.raises(SettingError, match=f"^--profile_steps={value}: must (be two|look)"):
        Config(profile_steps=value)
