"""Step counts of a run: steps per epoch and the ends of its intervals."""

import pytest

from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


@pytest.mark.parametrize(("num_examples", "epoch_steps"), [(3, 1), (8, 1), (43, 5), (46, 6), (48, 6)])
def test_steps_per_epoch_are_rounded_to_the_nearest_number(num_examples, epoch_steps):
    plan = Plan.of(Config(train_batch_size=8, checkpoint_epochs=3), num_examples)
    assert (plan.epoch_steps, plan.interval_steps) == (epoch_steps, 3 * epoch_steps)


@pytest.mark.parametrize(
    ("total", "ends"),
    [
        (3, [3]),
        (8, [4, 8]),
        (9, [4, 9]),  # a remainder of less than half an interval belongs to the last one
        (10, [4, 8, 10]),
        (11, [4, 8, 11]),
    ],
)
def test_intervals(total, ends):
    plan = Plan(total_steps=total, epoch_steps=2, interval_steps=4, warmup_steps=0, peak_learning_rate=0.1)
    step, reached = 0, []
    while step < total:
        step = plan.interval_end(step)
        reached.append(step)
    assert reached == ends
    assert [plan.interval_of(step) for step in (0, 3, 4, 8)] == [0, 0, 1, 2]
