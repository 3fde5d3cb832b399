"""Fixtures. Tests run on four logical CPU devices in float32, without GPU and network."""

import contextlib
import gc
import os
import resource

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Each pytest worker has one core, on which waiting threads of NumPy and scikit-learn spin: t-SNE took 20 times its CPU
# time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)

import keras  # noqa: E402

# The same examples each time; `make soak` tries many more and different ones.
SHARED = [hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=25, suppress_health_check=SHARED
)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=2000, suppress_health_check=SHARED)
hypothesis.settings.load_profile("same")


def pytest_xdist_auto_num_workers(config):
    """Returns one more than there are cores, because some tests wait for child processes."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) + 1


def pytest_collection_finish(session):
    """Excludes imported modules from garbage collection, which Keras runs at each reset."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Resets layer names, seeds and dtype policies between tests."""
    keras.utils.clear_session(free_memory=False)  # Python collects garbage often enough
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def replicas():
    """Returns a function: ``replicas(2)`` builds a MirroredStrategy over two logical CPU devices."""

    def build(count):
        # Every strategy numbers its collectives from the same key, so a second one in the process would join the groups
        # of the first. TensorFlow's own tests advance the key too.
        tf.distribute.MirroredStrategy._collective_key_base += 1000
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])

    return build


@pytest.fixture
def parity(request):
    """Asserts that numbers equal the recorded ones, and records the deviation for ``benchmarks/fidelity.py``.

    ``parity(case, actual, expected, tolerance)``: no number deviates by more than ``tolerance`` times a scale. The
    scale is the largest of ``expected``, each expected number with ``of="each"``, 1 with ``of="one"``, or an array
    ``of`` with a named ``unit``. Numbers with scale 0 must be equal.
    """

    def check(case, actual, expected, tolerance, precision="float32", of="largest", unit=""):
        actual, expected = np.asarray(actual, "float64"), np.asarray(expected, "float64")
        assert actual.shape == expected.shape, case
        scales = {"largest": np.abs(expected).max(), "each": np.abs(expected), "one": 1.0}
        scale = scales[of] if isinstance(of, str) else np.asarray(of)
        difference = np.abs(actual - expected)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = float(np.max(np.where(difference == 0, 0, difference / scale)))
        unit = unit or {"largest": "of the largest", "each": "of each", "one": "absolute"}[of]
        record = [case, precision, expected.size, deviation, float(tolerance), unit]
        request.node.user_properties.append(("parity", record))
        assert deviation <= tolerance, f"{case}: deviates by {deviation:.3g} {unit}, more than {tolerance:.3g}"

    return check


@pytest.fixture
def file_size_limit():
    """Returns a context manager: in ``with file_size_limit(100):`` files cannot exceed 100 bytes, as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal, so writing fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
