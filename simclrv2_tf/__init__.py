"""SimCLRv2 in Keras 3 / TensorFlow."""
