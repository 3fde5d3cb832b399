"""Twenty steps give the same on one device, on mirrored replicas and on workers in processes of their own."""

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
        ("pretrain", 4),
        *(pytest.param(kind, 4, marks=pytest.mark.slow) for kind in device_layouts.KINDS[1:]),
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
            with np.load(tmp_path / f"{kind}-{index}.npz") as found:
                assert_equal(dict(found), one_device[kind])


def assert_equal(found, expected):
    """Metrics, which are float32, and everything else to float64's rounding, a little amplified by batch norm."""
    metrics = {name for name in expected if name.partition("/")[0] in found and expected[name].dtype == np.float32}
    tiny.assert_close({n: found[n] for n in metrics}, {n: expected[n] for n in metrics}, rtol=1e-6)
    rest = expected.keys() - metrics
    tiny.assert_close({n: found[n] for n in rest}, {n: expected[n] for n in rest}, rtol=1e-9)
    assert found.keys() == expected.keys()
