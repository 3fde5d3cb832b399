"""The 1,797 digits of scikit-learn at 16 px with a narrow ResNet-18: minutes on two CPU cores.

Crops, resizing and initialization are those of torchvision. Measured here with `benchmarks/peer.py` on two CPU cores
(AMD EPYC), 2026-11-30, three seeds, at 5 labels per class; top-1 in per cent:

| pretrain | linear_eval | supervised | finetune | distill |
|---|---|---|---|---|
| kNN 95.5 ± 1.3 | 96.1 ± 0.7 (all labels) | 87.7 ± 2.0 | 94.1 ± 1.9 | 94.6 ± 1.1 |
"""

from simclrv2_tf.settings.recipes.recipe import TORCHVISION, Recipe, RunInfo

# Few labels mean few images: the batch is capped to them, and the learning rate is not scaled up.
LABELLED = dict(
    optimizer="momentum", train_batch_size=50, warmup_epochs=0.0, learning_rate_scaling="sqrt", checkpoint_steps=1000,
    weight_decay=5e-4, crop_area_min=0.8,
)  # fmt: skip


def pretrain(run: RunInfo) -> dict:
    return dict(
        train_batch_size=128, train_epochs=60, checkpoint_epochs=6, learning_rate=1.0, warmup_epochs=5.0,
        weight_decay=1e-4, temperature=0.5, color_jitter_strength=0.5, use_blur=False,
    )  # fmt: skip


def linear_eval(run: RunInfo) -> dict:
    return dict(
        optimizer="momentum", learning_rate=0.3, weight_decay=0.0, warmup_epochs=0.0, train_steps=300,
        train_batch_size=256, checkpoint_steps=300, crop_area_min=1.0,
    )  # fmt: skip


def supervised(run: RunInfo) -> dict:
    return dict(LABELLED, learning_rate=0.04, train_steps=200)


def finetune(run: RunInfo) -> dict:
    return dict(LABELLED, learning_rate=0.0014, train_steps=100, ft_proj_selector=1)


def distill(run: RunInfo) -> dict:
    return dict(
        optimizer="momentum", learning_rate=0.1, weight_decay=5e-4, train_batch_size=128, train_steps=80,
        checkpoint_steps=80, warmup_epochs=0.5, temperature=1.0,
    )  # fmt: skip


RECIPES = {
    "digits": Recipe(
        dict(
            dataset="digits", resnet_depth=18, width_multiplier=0.25, image_size=16, crop_area_min=0.6, use_flip=False,
            eval_batch_size=256, **TORCHVISION,
        ),
        pretrain, linear_eval, supervised, finetune, distill, label_counts=(1, 2, 5, 10),
    )
}  # fmt: skip
