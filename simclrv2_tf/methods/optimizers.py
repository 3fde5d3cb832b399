"""Builds an optimizer by its name in the settings."""

import keras

from simclrv2_tf.methods.lars import LARS


def build_optimizer(
    name: str,
    schedule: float | keras.optimizers.schedules.LearningRateSchedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> keras.optimizers.Optimizer:
    """Builds LARS, SGD with Nesterov momentum, or Adam.

    Args:
        name: "lars", "momentum" or "adam".
        schedule: learning rate, constant or scheduled.
        momentum: for "lars" and "momentum".
        weight_decay: L2 coefficient for "lars" only. For the others ``losses.l2_penalty`` is part of the loss, because
            Keras's ``weight_decay`` is decoupled from the gradient.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "lars":
        return LARS(schedule, momentum=momentum, weight_decay=weight_decay)
    if name == "momentum":
        return keras.optimizers.SGD(schedule, momentum=momentum, nesterov=True, name="momentum")
    if name == "adam":
        return keras.optimizers.Adam(schedule, name="adam")
    raise ValueError(f'optimizer must be "lars", "momentum" or "adam", not "{name}"')


def penalised_variables(model: keras.Model) -> list[keras.Variable]:
    """Trained variables of a model that ``losses.l2_penalty`` decays.

    LARS itself decays all but vectors and the classifier, which leaves the classifier's kernel to the loss. With other
    optimizers the loss decays every trained variable but batch norm's gamma and beta.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # float16 wraps it to scale the loss
    if isinstance(optimizer, LARS):
        return [variable for variable in model.network.classifier_variables if len(variable.shape) > 1]
    return [variable for variable in model.trained_variables if variable.name not in ("gamma", "beta")]
