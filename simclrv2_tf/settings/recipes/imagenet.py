"""ImageNet with the settings of the SimCLRv2 paper (https://arxiv.org/abs/2006.10029), with a ResNet-50 by default.

Cost: by the official README, 100 epochs of pretraining take 6 hours on 32 TPU v3; this recipe has 800 epochs. Not
measured here.

With `--label_fraction=0.01` or `--label_fraction=0.1`, `supervised` and `finetune` use the TFDS data set
`imagenet2012_subset` with 1 % or 10 % of the labels, and `finetune` starts from the first layer of the projection head
instead of its input.

These flags choose the network; a run that starts from a checkpoint takes the network from there. A network that is
wider than 1 or has selective kernels is fine-tuned at the lower learning rate of the paper. A student is distilled at
temperature 0.1 if its network is that of its teacher, else at 1. Published (paper, Table 1), top-1 in per cent,
fine-tuned on 1 %, 10 % and all labels, linear evaluation, supervised:

| flags | 1 % | 10 % | 100 % | linear | supervised |
|---|---|---|---|---|---|
| `--resnet_depth=50 --width_multiplier=1` | 57.9 | 68.4 | 76.3 | 71.7 | 76.6 |
| `--resnet_depth=50 --width_multiplier=1 --sk_ratio=0.0625` | 64.5 | 72.1 | 78.7 | 74.6 | 78.5 |
| `--resnet_depth=50 --width_multiplier=2` | 66.3 | 73.9 | 79.1 | 75.6 | 77.8 |
| `--resnet_depth=50 --width_multiplier=2 --sk_ratio=0.0625` | 70.6 | 77.0 | 81.3 | 77.7 | 79.3 |
| `--resnet_depth=101 --width_multiplier=1` | 62.1 | 71.4 | 78.2 | 73.6 | 78.0 |
| `--resnet_depth=101 --width_multiplier=1 --sk_ratio=0.0625` | 68.3 | 75.1 | 80.6 | 76.3 | 79.6 |
| `--resnet_depth=101 --width_multiplier=2` | 69.1 | 75.8 | 80.7 | 77.0 | 78.9 |
| `--resnet_depth=101 --width_multiplier=2 --sk_ratio=0.0625` | 73.2 | 78.8 | 82.4 | 79.0 | 80.1 |
| `--resnet_depth=152 --width_multiplier=1` | 64.0 | 73.0 | 79.3 | 74.5 | 78.3 |
| `--resnet_depth=152 --width_multiplier=1 --sk_ratio=0.0625` | 70.0 | 76.5 | 81.3 | 77.2 | 79.9 |
| `--resnet_depth=152 --width_multiplier=2` | 70.2 | 76.6 | 81.1 | 77.4 | 79.1 |
| `--resnet_depth=152 --width_multiplier=2 --sk_ratio=0.0625` | 74.2 | 79.4 | 82.9 | 79.4 | 80.4 |
| `--resnet_depth=152 --width_multiplier=3 --sk_ratio=0.0625` | 74.9 | 80.1 | 83.1 | 79.8 | 80.5 |

The linear 71.7 of the ResNet-50 used the memory (`--memory_size`); without it, its author got 71.1
(https://github.com/google-research/simclr/issues/77). A ResNet-50 that is distilled from a bigger teacher reaches 73.9
with 1 % and 77.5 with 10 % of the labels (paper).
"""

from typing import Any

from simclrv2_tf.settings.recipes.recipe import Recipe, RunInfo

SUBSETS = {0.01: "imagenet2012_subset/1pct", 0.1: "imagenet2012_subset/10pct"}  # by label_fraction

# Sections 3 and 3.1 of the paper, and the commands of the official README. For supervised training the paper gives only
# the number of epochs; the rest is as in pretraining.
LIKE_PRETRAINING = dict(train_batch_size=4096, learning_rate=0.1, learning_rate_scaling="sqrt", weight_decay=1e-4)


def pretrain(run: RunInfo) -> dict:
    return dict(LIKE_PRETRAINING, train_epochs=800, warmup_epochs=40.0, temperature=0.1)


def linear_eval(run: RunInfo) -> dict:
    return dict(
        optimizer="momentum", train_batch_size=4096, train_epochs=90, learning_rate=0.1, warmup_epochs=0.0,
        weight_decay=1e-6, zero_init_logits_layer=True,
    )  # fmt: skip


def supervised(run: RunInfo) -> dict:
    return dict(LIKE_PRETRAINING, train_epochs=90, warmup_epochs=4.5) | _few_labels(run)


def finetune(run: RunInfo) -> dict:
    settings = dict(
        train_batch_size=1024, train_epochs=30, learning_rate=0.002 if run.is_large else 0.005,
        learning_rate_scaling="sqrt", warmup_epochs=0.0, weight_decay=0.0, zero_init_logits_layer=True,
    )  # fmt: skip
    if run.label_fraction in SUBSETS:
        settings["ft_proj_selector"] = 1
    if run.label_fraction == 0.01:
        settings["train_epochs"] = 60
    return settings | _few_labels(run)


def distill(run: RunInfo) -> dict:
    temperature = 0.1 if run.is_self_distillation else 1.0
    return dict(LIKE_PRETRAINING, train_epochs=400, warmup_epochs=20.0, temperature=temperature)


def _few_labels(run: RunInfo) -> dict:
    if run.label_fraction not in SUBSETS:
        return {}
    # An evaluation takes longer than an epoch.
    settings: dict[str, Any] = dict(train_batch_size=1024, checkpoint_epochs=10)
    if run.dataset == "imagenet2012":
        settings |= dict(dataset=SUBSETS[run.label_fraction], label_fraction=1.0)
    return settings


RECIPES = {
    "imagenet": Recipe(
        dict(dataset="imagenet2012"), pretrain, linear_eval, supervised, finetune, distill, label_counts=()
    )
}
