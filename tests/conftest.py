"""Every test sees four logical CPU devices and deterministic float32 kernels; no test touches a GPU or the network."""

import contextlib
import gc
import os
import resource

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Each of pytest's workers has a core. Threads of NumPy's and scikit-learn's that wait for one another there spin, and
# a t-SNE took twenty times its CPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)

import keras  # noqa: E402

# The same examples each time; `make soak` tries many more, and others each time.
SHARED = [hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=25, suppress_health_check=SHARED
)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=2000, suppress_health_check=SHARED)
hypothesis.settings.load_profile("same")


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores, as some tests wait for processes of their own."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish(session):
    """What is imported stays: the garbage collection that Keras makes at each reset need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Layer names, seeds and policies of one test do not reach the next."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def replicas():
    """``replicas(2)`` is a MirroredStrategy over two logical CPU devices."""

    def make(count):
        # Every strategy numbers its collectives from the same key on, and a second one in the process would join the
        # first one's groups; TensorFlow's own tests move the key on too.
        tf.distribute.MirroredStrategy._collective_key_base += 1000
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])

    return make


@pytest.fixture
def parity(request):
    """Asserts that numbers are the recorded ones, and notes by how much they deviate, for ``benchmarks/fidelity.py``.

    ``parity(case, actual, expected, tolerance)``: no number differs by more than ``tolerance`` times the largest of
    ``expected``; with ``of="each"`` times the expected number itself, with ``of="one"`` by more than ``tolerance``; or
    times an array ``of`` whose ``unit`` is named. What is expected to be 0 on a scale of 0 must be 0.
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
        found = [case, precision, expected.size, deviation, float(tolerance), unit]
        request.node.user_properties.append(("parity", found))
        assert deviation <= tolerance, f"{case}: deviates by {deviation:.3g} {unit}, more than {tolerance:.3g}"

    return check


@pytest.fixture
def file_size_limit():
    """``with file_size_limit(100):`` no file can grow beyond 100 bytes, as on a disk that is full."""

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal, so writing fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
