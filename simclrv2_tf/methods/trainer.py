"""Keras API of a method: ``compile``, ``fit``, ``evaluate``, ``predict``, saving."""

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods import evaluation
from simclrv2_tf.methods.lars import LARS

Logs = dict[str, Any]


class MethodTrainer(keras.Model):
    """Base class of ``Method``, which defines ``run_steps``, ``test_step``, ``predict_step`` and what they need."""

    train_function: Any
    test_function: Any
    predict_function: Any

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: None = None,
        loss_weights: None = None,
        metrics: list | None = None,
        weighted_metrics: list | None = None,
        *,
        skip_bad_steps: bool = False,
        **kwargs: Any,
    ) -> None:
        """Compiles as Keras does, and builds the optimizer: checkpoints need its variables before the first step.

        The classifier is excluded from LARS's weight decay and adaptation.

        Args:
            optimizer: name or optimizer.
            loss: must be None; a method computes its own.
            loss_weights: must be None.
            metrics: computed from the classifier's logits and the integer labels, such as "accuracy"; unlabelled images
                and padding are ignored.
            weighted_metrics: as ``metrics``.
            skip_bad_steps: roll back steps whose loss or gradient is not finite.
            **kwargs: as in Keras.

        Raises:
            SettingError: for float16 on several replicas, where Keras's loss scaling fails.
            ValueError: for a loss, or for metrics if the network has no classifier.
        """
        name = type(self).__name__
        if loss is not None or loss_weights is not None:
            raise ValueError(f"compile(loss=…): {name} computes its own loss; leave it out (see {name}.objective)")
        metrics = [*(metrics or []), *(weighted_metrics or [])]
        if metrics and self.network.classifier is None:
            raise ValueError(f"compile(metrics=…): {name} has no classifier; give its Network num_classes=…")
        with self.distribute_strategy.scope():
            super().compile(optimizer, weighted_metrics=metrics or None, **kwargs)
            if metrics:
                logits = keras.KerasTensor((None, self.network.num_classes), "float32")
                self._compile_metrics.build(keras.KerasTensor((None,), "int32"), logits)
        self.compiled_metric_list = metrics
        scaling = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scaling and self.distribute_strategy.num_replicas_in_sync > 1:
            raise SettingError("--mixed_precision=float16: works on one replica only; use bfloat16 or float32")
        inner = self.optimizer.inner_optimizer if scaling else self.optimizer
        if isinstance(inner, LARS) and not inner.built:
            inner.exclude(self.network.classifier_variables)
        self.optimizer.build(self.trained_variables)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # Each replica counts steps itself. Keras would broadcast the first one's count, which XLA cannot compile.
            self.optimizer.iterations.value._aggregation = tf.VariableAggregation.NONE
        self.skip_bad_steps = skip_bad_steps

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *args: Any,
        class_weight: Any = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as Keras does.

        Args:
            x: batches from ``view_batches``.
            y: must be None.
            *args: as in Keras.
            class_weight: must be None.
            sample_weight: must be None.
            **kwargs: as in Keras; ``validation_data`` as for ``evaluate``.

        Returns:
            The history; training metrics are means over the epoch.

        Raises:
            ValueError: if the batches do not come from ``view_batches``, or labels or weights are passed separately.
        """
        evaluation.refuse_arguments(self, y=y, class_weight=class_weight, sample_weight=sample_weight)
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # otherwise Keras warns that it cannot shuffle a data set
        return super().fit(x, None, *args, **kwargs)

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Trains on one batch from ``view_batches``, see ``fit``."""
        evaluation.refuse_arguments(self, y=y, class_weight=class_weight, sample_weight=sample_weight)
        return super().train_on_batch(x, return_dict=return_dict)

    def make_train_function(self, force: bool = False) -> Any:
        """Returns the function that ``fit`` calls.

        Keras's own fails on several replicas with ``steps_per_execution`` above 1 or ``jit_compile``, and on several
        workers.
        """
        if self.train_function is None or force:
            self._run_steps = None
            self.train_function = self._train_function
        return self.train_function

    def _train_function(self, iterator: Any) -> Logs:
        if not self._training_logs:  # in the first call of an epoch
            evaluation.check_shared_batches(iterator, self)
        logs = self.run_steps(*evaluation.iterate(iterator, self))
        logs = {name: logs[name] for name in self.train_metrics}
        self._training_logs.append(logs)
        return logs | self._compiled_results()

    def make_test_function(self, force: bool = False) -> Any:
        """Returns the function that ``evaluate`` calls."""
        self.average_local_statistics()
        if self.test_function is None or force:
            self.test_function = evaluation.build_test_function(self)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Any:
        """Returns the function that ``predict`` calls."""
        self.average_local_statistics()
        if self.predict_function is None or force:
            self.predict_function = evaluation.build_predict_function(self)
        return self.predict_function

    def reset_metrics(self) -> None:
        """Resets all metrics, at the start of an epoch or an evaluation."""
        super().reset_metrics()
        self._training_logs: list[Logs] = []
        self._metric_sums: dict[str, np.ndarray] = {}

    def add_metrics(self, sums: dict[str, Any]) -> None:
        """Adds ``[Σ w·v, Σ w]`` of each metric of a batch to an evaluation."""
        for name, values in sums.items():
            self._metric_sums[name] = self._metric_sums.get(name, 0) + np.asarray(values, np.float64)

    def get_metrics_result(self) -> Logs:
        """Returns the means of the metrics of an epoch or an evaluation; omits metrics without any image."""
        logs = self._training_logs
        means = {name: float(np.mean([float(each[name]) for each in logs])) for name in (logs[0] if logs else ())}
        means |= {name: float(total / weight) for name, (total, weight) in self._metric_sums.items() if weight > 0}
        return means | self._compiled_results()

    @property
    def has_compiled_metrics(self) -> bool:
        """Returns whether ``compile`` was called with metrics."""
        return self.compiled and bool(self.compiled_metric_list)

    def _compiled_results(self) -> Logs:
        return dict(self._compile_metrics.result()) if self.has_compiled_metrics else {}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """No-op: methods are built by their constructor. Keras's own would consume a batch and average integers."""

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: Any = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Exports the network as Keras does, by default for any number of images of the size of the views.

        Args:
            filepath: a directory, or a file that ends in ``.tflite`` or ``.onnx``.
            format: "tf_saved_model", "litert" or "onnx".
            verbose: as in Keras.
            input_signature: as in Keras.
            **kwargs: as in Keras.
        """
        if input_signature is None:
            size = self.views.image_size
            input_signature = [tf.TensorSpec([None, size, size, 3], tf.float32, name="images")]
        super().export(filepath, format, verbose, input_signature, **kwargs)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments with which a loaded model is compiled."""
        if not self.compiled:
            return {}
        names = ("optimizer", "jit_compile", "steps_per_execution", "skip_bad_steps")
        arguments = {name: getattr(self, name) for name in names} | {"metrics": list(self.compiled_metric_list)}
        return {name: keras.saving.serialize_keras_object(value) for name, value in arguments.items()}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as it was compiled when saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, from the attributes of the same names."""
        classes = [cls for cls in type(self).__mro__ if issubclass(cls, MethodTrainer)]
        parameters = [p for cls in classes for p in list(inspect.signature(cls.__init__).parameters.values())[1:]]
        names = dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "MethodTrainer":
        """Builds a method from its config."""
        return cls(**{k: keras.saving.deserialize_keras_object(v, custom_objects) for k, v in config.items()})
