"""Twenty steps give the same numbers on one device, on mirrored replicas and on several worker processes."""

import children
import device_layouts
import numpy as np
import pytest
import tensorflow as tf
import tiny


@pytest.fixture(scope="module")
def one_device():
    return {kind: device_layouts.train(kind, tf.distribute.get_strategy()) for kind in device_layouts.KINDS}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *((kind, 2) for kind in device_layouts.KINDS),
        *(pytest.param(kind, 4, marks=pytest.mark.slow) for kind in device_layouts.KINDS),
    ],
)
def test_replicas_equal_one_device(kind, count, replicas, one_device):
    assert_equal(device_layouts.train(kind, replicas(count)), one_device[kind])


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_equal_one_device(count, one_device, tmp_path):
    logs = [tmp_path / f"log{index}" for index in range(count)]
    workers = [
        children.start(log, device_layouts.work, environment, tmp_path, index)
        for index, (log, environment) in enumerate(zip(logs, children.workers(count), strict=True))
    ]
    for worker, log in zip(workers, logs, strict=True):
        worker.join()
        assert worker.exitcode == 0, log.read_text()[-2000:]
    for kind in device_layouts.KINDS:
        for index in range(count):
            with np.load(tmp_path / f"{kind}-{index}.npz") as arrays:
                assert_equal(dict(arrays), one_device[kind])


def assert_equal(actual, expected):
    """Metrics are compared in float32; everything else in float64, whose rounding batch norm amplifies a little."""
    metrics = {name for name in expected if name.partition("/")[0] in actual and expected[name].dtype == np.float32}
    tiny.assert_close({n: actual[n] for n in metrics}, {n: expected[n] for n in metrics}, rtol=1e-6)
    rest = expected.keys() - metrics
    tiny.assert_close({n: actual[n] for n in rest}, {n: expected[n] for n in rest}, rtol=1e-9)
    assert actual.keys() == expected.keys()
