"""Imagenette, ten easy classes of ImageNet, at 128 px with a ResNet-18, as in the benchmark of Lightly.

Published: kNN 88.9 % in the best of 800 epochs of pretraining, chosen on the test set
(https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html, SimCLR). Not measured here.
"""

from simclrv2_tf.settings.recipes import cifar
from simclrv2_tf.settings.recipes.recipe import Recipe, RunInfo, Stage


def pretrain(run: RunInfo) -> dict:
    # Lightly uses learning rate 0.06 and weight decay 5e-4 for a loss that is the sum over both views, not their mean.
    return dict(
        optimizer="momentum", train_batch_size=256, train_epochs=800, checkpoint_epochs=10, learning_rate=0.03,
        warmup_epochs=0.0, weight_decay=1e-3, temperature=0.5, color_jitter_strength=0.5,
    )  # fmt: skip


def _batch_256(stage: Stage) -> Stage:
    return lambda run: stage(run) | dict(train_batch_size=256)


RECIPES = {
    "imagenette": Recipe(
        dict(dataset="imagenette/160px-v2", resnet_depth=18, image_size=128),
        pretrain,
        _batch_256(cifar.linear_eval),
        _batch_256(cifar.supervised),
        _batch_256(cifar.finetune),
        _batch_256(cifar.distill),
        label_counts=(10, 100),
    )
}
