"""Fashion-MNIST, 60,000 images of clothes, for a CPU (16 px) or a GPU (32 px).

`fashion_mnist` is the narrow ResNet-18 of the digits at 16 px; `fashion_mnist_32px` is a full ResNet-18 at 32 px, which
was not tuned and not measured. The learning rates and steps of `supervised` and `finetune` depend on
`--labels_per_class` (or `--label_fraction`): they were chosen, on 5,000 training images at 16 px, for 1 and 10, for 60,
for 600 and for all 6,000 labels per class. A number in between takes those of the next smaller one.

`fashion_mnist`, measured here with `benchmarks/paper_claims.py` on two CPU cores (AMD EPYC), 2026-11-26, three seeds:
kNN 85.5 ± 0.0 after pretraining, linear evaluation 86.6 ± 0.1 (all labels), and by labels per class, top-1 in per cent:

| `--labels_per_class` | supervised | finetune | distill |
|---|---|---|---|
| 1 | 34.1 ± 5.3 | 58.4 ± 1.4 | 58.8 ± 1.5 |
| 10 | 69.4 ± 3.4 | 75.8 ± 1.5 | 76.1 ± 1.5 |
| 60 | 80.4 ± 0.3 | 83.0 ± 0.6 | 83.2 ± 0.9 |
| 600 | 88.0 ± 0.2 | 89.1 ± 0.5 | 89.2 ± 0.2 |
| 0 (all) | 90.2 ± 0.1 | 91.1 ± 0.2 | 90.7 ± 0.2 |
"""

from simclrv2_tf.settings.recipes import digits
from simclrv2_tf.settings.recipes.recipe import Recipe, RunInfo

MANY_LABELS = dict(train_batch_size=128, checkpoint_steps=5000, crop_area_min=0.6)
ALL = 6000  # labels per class


def pretrain(run: RunInfo) -> dict:
    return dict(
        optimizer="momentum", train_batch_size=128, train_epochs=15, checkpoint_epochs=3, learning_rate=0.25,
        warmup_epochs=1.0, weight_decay=1e-4, temperature=0.2, crop_area_min=0.2, use_blur=False,
    )  # fmt: skip


def pretrain_32px(run: RunInfo) -> dict:
    longer = dict(train_batch_size=512, train_epochs=100, checkpoint_epochs=20, warmup_epochs=5.0, weight_decay=5e-4)
    return pretrain(run) | longer


def linear_eval(run: RunInfo) -> dict:
    return digits.linear_eval(run) | dict(train_steps=2350, checkpoint_steps=2350, learning_rate=1.0)


def supervised(run: RunInfo, steps_600: int = 1200, steps_all: int = 3000) -> dict:
    settings = digits.supervised(run) | dict(learning_rate=0.04, train_steps=800, crop_area_min=0.9)
    if _labels_per_class(run) >= 600:
        settings |= dict(MANY_LABELS, learning_rate=0.013, train_steps=steps_600)
    if _labels_per_class(run) >= ALL:
        settings |= dict(train_steps=steps_all)
    return settings


def finetune(run: RunInfo, steps_all: int = 3000) -> dict:
    settings = digits.finetune(run) | dict(learning_rate=0.0014, train_steps=400, crop_area_min=0.6)
    if _labels_per_class(run) >= 60:
        settings |= dict(learning_rate=0.0378)
    if _labels_per_class(run) >= 600:
        settings |= dict(MANY_LABELS, learning_rate=0.0126, train_steps=1200)
    if _labels_per_class(run) >= ALL:
        settings |= dict(train_steps=steps_all)
    return settings


def distill(run: RunInfo) -> dict:
    epochs = dict(train_steps=0, train_epochs=10, checkpoint_steps=0, checkpoint_epochs=5, warmup_epochs=0.2)
    return digits.distill(run) | dict(epochs, temperature=0.1 if run.is_self_distillation else 1.0)


def _labels_per_class(run: RunInfo) -> int:
    return run.labels_per_class or round(ALL * run.label_fraction)


COMMON = dict(dataset="fashion_mnist", resnet_depth=18, crop_area_min=0.6, eval_batch_size=512)
RECIPES = {
    "fashion_mnist": Recipe(
        COMMON | dict(width_multiplier=0.25, image_size=16),
        pretrain, linear_eval, supervised, finetune, distill, label_counts=(1, 10),
    ),
    "fashion_mnist_32px": Recipe(
        COMMON | dict(width_multiplier=1.0, image_size=32),
        pretrain_32px, linear_eval, lambda run: supervised(run, 2400, 9400), lambda run: finetune(run, 4700), distill,
        label_counts=(1, 10),
    ),
}  # fmt: skip
