"""STL-10 at 96 px with a ResNet-18.

Pretraining and distillation use the 100,000 unlabelled images, the other stages the 5,000 labelled ones. The images
take 3 GB of memory. Not measured here.

Published, top-1 in per cent: 76.5 in linear evaluation (https://github.com/Spijkervet/SimCLR, ResNet-18, batch 256, 100
epochs of Adam), with a projection head of 64 outputs and views of another size.
"""

from simclrv2_tf.settings.recipes import cifar
from simclrv2_tf.settings.recipes.recipe import Recipe, RunInfo


def pretrain(run: RunInfo) -> dict:
    return dict(
        train_split="unlabelled", train_batch_size=512, train_epochs=100, checkpoint_epochs=10, learning_rate=1.0,
        warmup_epochs=10.0, weight_decay=1e-4, temperature=0.5,
    )  # fmt: skip


def distill(run: RunInfo) -> dict:
    return cifar.distill(run) | dict(train_split="unlabelled", train_epochs=100)


RECIPES = {
    "stl10": Recipe(
        dict(dataset="stl10", resnet_depth=18, image_size=96),
        pretrain, cifar.linear_eval, cifar.supervised, cifar.finetune, distill, label_counts=(10, 100),
    )
}  # fmt: skip
