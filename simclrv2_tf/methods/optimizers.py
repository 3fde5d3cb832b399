"""Builds an optimizer by its name in the settings."""

import keras

from simclrv2_tf.methods.lars import LARS
from simclrv2_tf.settings.config import check_arguments


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class AdamW(keras.optimizers.AdamW):
    """Keras's AdamW without the decay of vectors: biases, and scales and offsets of normalization layers."""

    def _use_weight_decay(self, variable: keras.Variable) -> bool:
        return len(variable.shape) > 1 and super()._use_weight_decay(variable)


def build_optimizer(
    name: str,
    schedule: float | keras.optimizers.schedules.LearningRateSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> keras.optimizers.Optimizer:
    """Builds LARS, SGD with Nesterov momentum, Adam, or AdamW.

    Args:
        name: "lars", "momentum", "adam" or "adamw".
        schedule: learning rate, constant or scheduled.
        momentum: for "lars" and "momentum".
        weight_decay: L2 coefficient for "lars"; for "adamw" decoupled, a step multiplies kernels by 1 − rate · decay.
            For the others ``losses.l2_penalty`` is part of the loss.

    Raises:
        ValueError: if the name is unknown, or a number out of bounds.
    """
    check_arguments(optimizer=name, momentum=momentum, weight_decay=weight_decay)
    if name == "lars":
        return LARS(schedule, momentum=momentum, weight_decay=weight_decay)
    if name == "momentum":
        return keras.optimizers.SGD(schedule, momentum=momentum, nesterov=True, name="momentum")
    if name == "adamw":
        return AdamW(schedule, weight_decay=weight_decay, name="adamw")
    return keras.optimizers.Adam(schedule, name="adam")


def penalised_variables(model: keras.Model) -> list[keras.Variable]:
    """Trained variables of a model that ``losses.l2_penalty`` decays.

    LARS itself decays all but vectors and the classifier, which leaves the classifier's kernel to the loss. AdamW
    leaves nothing. With other optimizers the loss decays every trained variable but batch norm's gamma and beta.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # float16 wraps it to scale the loss
    if isinstance(optimizer, LARS):
        return [variable for variable in model.network.classifier_variables if len(variable.shape) > 1]
    if isinstance(optimizer, AdamW):
        return []
    return [variable for variable in model.trained_variables if variable.name not in ("gamma", "beta")]
