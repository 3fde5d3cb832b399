"""Every test sees four logical CPU devices and deterministic float32 kernels; no test touches a GPU or the network."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
)

import keras


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
    return lambda count: tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
