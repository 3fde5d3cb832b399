"""The library refuses the same arguments as the command line, with the same message."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tiny

import simclrv2_tf
from simclrv2_tf import (
    LARS,
    BatchNorm,
    BatchNormSettings,
    ClassificationModel,
    Distiller,
    MovingAverage,
    Network,
    NTXent,
    ProjectionHead,
    ResNet,
    SimCLR,
    ViewSettings,
    WarmUpCosine,
    augment_views,
    center_crop_and_resize,
    distillation_loss,
    load_network,
    load_run,
    nt_xent,
    save_saved_model,
    summarize,
    view_batches,
)
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.settings.config import Config, check_arguments

RGBA = np.zeros([1, 8, 8, 4], np.float32)
VIEW = np.eye(4, dtype=np.float32)


def images(count=8, channels=3):
    return tf.data.Dataset.from_tensors(np.full([12, 12, channels], 99, np.uint8)).repeat(count)


def student(**settings):
    return Distiller(tiny.network(), tiny.network(), tiny.VIEWS, **settings)


# setting: its values, and the functions that take them
SHARED = {
    "temperature": (
        (0, -1.0, math.nan, math.inf, "0.1", None),
        lambda value: nt_xent(VIEW, VIEW, value),
        lambda value: NTXent(value),
        lambda value: distillation_loss(VIEW, VIEW, value),
        lambda value: SimCLR(tiny.network(), tiny.VIEWS, temperature=value),
        lambda value: student(temperature=value),
    ),
    "learning_rate": ((-0.1, math.nan, math.inf), LARS),
    "momentum": (
        (-0.1, 1.0, math.nan),
        lambda value: LARS(0.1, momentum=value),
        lambda value: build_optimizer("momentum", 0.1, value),
    ),
    "weight_decay": (
        (-0.1, math.nan, math.inf),
        lambda value: LARS(0.1, weight_decay=value),
        lambda value: ClassificationModel(tiny.network(), tiny.VIEWS, weight_decay=value),
    ),
    "optimizer": (("sgd",), lambda value: build_optimizer(value, 0.1)),
    "memory_size": ((-1, 2.5, 10**9), lambda value: SimCLR(tiny.network(), tiny.VIEWS, memory_size=value)),
    "ema_decay": (
        (-0.1, 1.5, math.nan),
        lambda value: SimCLR(tiny.network(), tiny.VIEWS, ema_decay=value),
        lambda value: MovingAverage(tiny.network(), value),
    ),
    "distill_alpha": ((-0.1, 1.5, math.nan), lambda value: student(alpha=value)),
    "grad_cache_micro_batch": ((-1,), lambda value: SimCLR(tiny.network(), tiny.VIEWS, micro_batch=value)),
    "width_multiplier": ((0, -1.0, math.nan, 1e6), lambda value: ResNet(10, value)),
    "sk_ratio": ((-0.1, 1.5, math.nan), lambda value: ResNet(50, sk_ratio=value)),
    "se_ratio": ((-0.1, 1.5, math.nan), lambda value: ResNet(10, se_ratio=value)),
    "proj_head_mode": (("quadratic",), ProjectionHead),
    "num_proj_layers": ((0, 1000, 1.5), lambda value: ProjectionHead(num_layers=value)),
    "proj_out_dim": ((0, 10**6), lambda value: ProjectionHead(out_dim=value)),
    "batch_norm_decay": ((-0.1, 1.0, math.nan), lambda value: BatchNormSettings(value), lambda value: BatchNorm(value)),
    "crop_area_min": ((0.0, 1.5, math.nan), lambda value: ViewSettings(32, crop_area_min=value)),
    "color_jitter_strength": ((-1.0, math.nan), lambda value: ViewSettings(32, color_jitter_strength=value)),
    "resize_method": (("nearest",), lambda value: ViewSettings(32, resize_method=value)),
    "crop_sampler": (("mine",), lambda value: ViewSettings(32, crop_sampler=value)),
    "seed": ((-1, 2**40), lambda value: view_batches(images(), 4, tiny.VIEWS, seed=value)),
    "image_size": (
        (7, 10**9),
        lambda value: summarize(tiny.network, value),
        lambda value: save_saved_model(tiny.network(), value, None),
    ),
}
CASES = [
    pytest.param(name, value, call, id=f"{name}-{value}-{number}")
    for name, (values, *calls) in SHARED.items()
    for value in values
    for number, call in enumerate(calls)
]


@pytest.mark.parametrize(("name", "value", "call"), CASES)
def test_the_library_refuses_what_the_command_line_refuses(name, value, call):
    with pytest.raises(SettingError) as library:
        call(value)
    assert "\n" not in str(library.value)
    if isinstance(value, type(getattr(Config(), name))):
        with pytest.raises(SettingError) as command_line:
            Config(**{name: value})
        assert f"--{library.value}" == str(command_line.value)
    else:
        assert str(library.value).startswith(f"{name}={value!r}: ") or str(library.value).startswith(f"{name}={value}")


def test_numbers_of_numpy_and_tensors_are_accepted():
    check_arguments(temperature=np.float32(0.1), memory_size=np.int64(4), learning_rate=1)
    check_arguments(temperature=tf.Variable(-1.0))  # a learned temperature has no bounds
    with pytest.raises(SettingError, match=r"^temperature=-1\.0: must be above 0$"):
        check_arguments(temperature=np.float32(-1))


built = tiny.network
REFUSED = {
    "views of two sizes": (lambda: nt_xent(VIEW, VIEW[:3], 0.1), "two views"),
    "a view that is a vector": (lambda: nt_xent(VIEW[0], VIEW[0], 0.1), "two views"),
    "negatives of another width": (lambda: nt_xent(VIEW, VIEW, 0.1, negatives=VIEW[:, :3]), "negatives must be"),
    "a negative tile": (lambda: nt_xent(VIEW, VIEW, 0.1, tile=-1), "tile=-1: must be"),
    "an odd number of rows": (lambda: NTXent()(VIEW[:3], VIEW[:3]), "y_pred must be"),
    "logits of other classes": (lambda: distillation_loss(VIEW, VIEW[:, :3], 0.1), "logits of the same"),
    "a trust coefficient of 0": (lambda: LARS(0.1, trust_coefficient=0), "trust_coefficient=0: must be"),
    "a peak that is NaN": (lambda: WarmUpCosine(math.nan, 10), "peak=nan: must be"),
    "a batch of no images": (lambda: view_batches(images(), 0, tiny.VIEWS), "batch_size=0: must be"),
    "no views": (lambda: view_batches(images(), 4, tiny.VIEWS, num_views=0), "num_views=0: must be"),
    "a side of 0": (lambda: ViewSettings(0), "image_size=0: must be"),
    "an aspect without end": (lambda: ViewSettings(32, crop_aspect_max=math.inf), "crop aspects must"),
    "an epsilon of 0": (lambda: BatchNorm(epsilon=0), "epsilon=0: must be"),
    "gray views": (lambda: augment_views(np.zeros([2, 8, 8, 1]), np.zeros([2, 10]), tiny.VIEWS), "images .N, S, S, 3"),
    "another resize method": (lambda: center_crop_and_resize(np.zeros([9, 9, 3]), (8, 8), method="x"), "method=x"),
    "a crop of nothing": (lambda: center_crop_and_resize(np.zeros([9, 9, 3]), (8, 8), 0), "crop_fraction"),
    "RGBA": (lambda: built()(RGBA), "images must be RGB"),
    "RGBA for a method": (
        lambda: SimCLR(built(), tiny.VIEWS)(RGBA),
        "images must be RGB",
    ),
    "a network that is not built": (lambda: load_network(Network(tiny.encoder()), ".", with_classifier=True), "built"),
    "an average of no weights": (lambda: MovingAverage(Network(tiny.encoder()), 0.9), "must be built"),
    "a teacher of other classes": (lambda: Distiller(built(), built(classes=2), tiny.VIEWS), "student's 3 classes"),
    "a teacher without classes": (lambda: Distiller(built(), built(classes=0), tiny.VIEWS), "student's 3 classes"),
    "a run that is not there": (lambda: load_run("nowhere"), "there is no checkpoint"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_cannot_be_used_are_refused_by_name(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "num_views", "message"),
    [
        (SimCLR, 1, r"^SimCLR needs batches of .*num_views=2\).*; these have 1$"),
        (ClassificationModel, 2, r"^ClassificationModel needs batches of .*num_views=1\); these have 2$"),
        (lambda _, views: ClassificationModel(tiny.network(classes=0), views), 1, "has no classifier"),
    ],
)
def test_a_method_refuses_batches_for_another_one(build, num_views, message):
    model = tiny.compiled(build(tiny.network(), tiny.VIEWS))
    with pytest.raises(ValueError, match=message):
        model.fit(view_batches(images(), 4, tiny.VIEWS, num_views=num_views), verbose=0)
    with pytest.raises(ValueError, match=r"view_batches\(.*, not \['labels'\]$"):
        model.make_views({"labels": np.zeros(4)})


def test_every_public_name_can_be_imported():
    assert all(getattr(simclrv2_tf, name).__name__ == name for name in simclrv2_tf.__all__)
