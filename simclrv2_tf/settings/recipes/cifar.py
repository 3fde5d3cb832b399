"""CIFAR-10 and CIFAR-100 at 32 px with a ResNet-18.

`cifar10` and `cifar100` pretrain and evaluate as the official README does on CIFAR-10, and fine-tune and distil as in
the paper. `cifar10_sgd` pretrains in a tenth of the time: 100 epochs of SGD. Not measured here.

Published, top-1 in per cent: `cifar10` about 91 in linear evaluation (https://github.com/google-research/simclr);
`cifar100` 65.8 with the online classifier (https://github.com/vturrisi/solo-learn, SimCLR, ResNet-18, 1,000 epochs).
"""

import dataclasses

from simclrv2_tf.settings.recipes.recipe import Recipe, RunInfo


def pretrain(run: RunInfo) -> dict:
    return dict(
        train_batch_size=512, train_epochs=1000, checkpoint_epochs=10, learning_rate=1.0, warmup_epochs=10.0,
        weight_decay=1e-4, temperature=0.5, color_jitter_strength=0.5, use_blur=False,
    )  # fmt: skip


def linear_eval(run: RunInfo) -> dict:
    return dict(
        optimizer="momentum", train_batch_size=512, train_epochs=100, checkpoint_epochs=10, learning_rate=0.1,
        warmup_epochs=0.0, weight_decay=0.0, zero_init_logits_layer=True,
    )  # fmt: skip


def supervised(run: RunInfo) -> dict:
    return dict(
        optimizer="momentum", train_batch_size=512, train_epochs=200, checkpoint_epochs=10, learning_rate=0.1,
        warmup_epochs=5.0, weight_decay=5e-4,
    )  # fmt: skip


def finetune(run: RunInfo) -> dict:
    return dict(
        train_batch_size=512, train_epochs=60, checkpoint_epochs=10, learning_rate=0.005, learning_rate_scaling="sqrt",
        warmup_epochs=0.0, weight_decay=0.0, zero_init_logits_layer=True, ft_proj_selector=1,
    )  # fmt: skip


def distill(run: RunInfo) -> dict:
    return dict(
        train_batch_size=512, train_epochs=400, checkpoint_epochs=10, learning_rate=1.0, warmup_epochs=10.0,
        weight_decay=1e-4, temperature=0.1 if run.is_self_distillation else 1.0,
    )  # fmt: skip


CIFAR10 = Recipe(
    dict(dataset="cifar10", resnet_depth=18, image_size=32),
    pretrain, linear_eval, supervised, finetune, distill, label_counts=(4, 25, 400),
)  # fmt: skip
SGD = dict(train_epochs=100, optimizer="momentum", learning_rate=0.06, warmup_epochs=0.0, weight_decay=5e-4)
RECIPES = {
    "cifar10": CIFAR10,
    "cifar10_sgd": dataclasses.replace(
        CIFAR10,
        common={**CIFAR10.common, "crop_area_min": 0.2},
        pretrain=lambda run: pretrain(run) | SGD,
        distill=lambda run: distill(run) | dict(train_epochs=100),
    ),
    "cifar100": dataclasses.replace(
        CIFAR10, common={**CIFAR10.common, "dataset": "cifar100"}, label_counts=(4, 25, 100)
    ),
}
