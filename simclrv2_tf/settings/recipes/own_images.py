"""Any data set without a recipe of its own: settings from the number and the size of the images, and the device.

Cost: on a CPU, minutes to an hour on two cores; on a GPU it chooses larger images and a larger network. The rules start
from the official CIFAR-10 settings and from the recipes of the digits and of Fashion-MNIST. A GPU has not been tried.

| | CPU | GPU or TPU |
|---|---|---|
| size of the views | 16, 32 or 64 px | 32 to 224 px |
| network | ResNet-18, a quarter or half as wide | ResNet-18; ResNet-50 from 5,000 images on |
| images seen in pretraining | about 15 minutes' worth on two cores, 10 to 300 epochs | 4 million, 100 to 1,000 epochs |
"""

import dataclasses
import math

from simclrv2_tf.settings.recipes.recipe import TORCHVISION, Recipe, RunInfo

CPU_SECONDS = 900  # budget for pretraining on two cores
CPU_RATE = 1000  # images/s of two cores for ResNet-18 x0.25 at 16 px
GPU_IMAGES = 4_000_000
MANY_IMAGES = 5000
MANY_LABELS = 60  # per class


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """Facts about the data and the device that the recipe depends on.

    Attributes:
        num_images: images to train on.
        num_classes: 0 without labels.
        images_per_class: labelled images of the smallest class; 0 without labels.
        side: median of the smaller side of the images, px.
        is_gray: whether the images have no colors.
        has_accelerator: whether there is a GPU or a TPU.
    """

    num_images: int
    num_classes: int
    images_per_class: int
    side: int
    is_gray: bool
    has_accelerator: bool

    @property
    def is_drawing(self) -> bool:
        """True for small gray images, such as digits: they are not flipped, and crops keep more of them."""
        return self.is_gray and self.side <= 40

    def __str__(self) -> str:
        device = "a GPU or TPU" if self.has_accelerator else "a CPU"
        classes = f"{self.num_classes:,} classes" if self.num_classes else "no labels"
        return f"{self.num_images:,} images of {self.side} px, {classes}, {device}"


def build_recipe(data: DataFacts) -> Recipe:
    """Builds the recipe for a data set."""
    counts = tuple(count for count in (5, 20) if 2 * count <= data.images_per_class)
    rules = _Rules(data)
    return Recipe(
        rules.common(), rules.pretrain, rules.linear_eval, rules.supervised, rules.finetune, rules.distill, counts
    )


@dataclasses.dataclass(frozen=True)
class _Rules:
    """Settings as functions of the data, and of the flags and the parent run."""

    data: DataFacts

    def common(self) -> dict:
        data = self.data
        if data.has_accelerator:
            size = 32 if data.side <= 40 else min(224, 32 * math.ceil(data.side / 32))
            network = dict(resnet_depth=50 if data.num_images >= MANY_IMAGES else 18, width_multiplier=1.0)
        else:
            size = 16 if data.side <= 20 else 32 if data.side <= 40 else 64
            # At 64 px the stem reduces the images to 16 px: half the width takes as long as 32 px at a quarter of it.
            network = dict(resnet_depth=18, width_multiplier=0.5 if size == 64 else 0.25)
        return dict(
            network, image_size=size, crop_area_min=0.4 if data.is_drawing else 0.2, use_flip=not data.is_drawing,
            eval_batch_size=256, **TORCHVISION,
        )  # fmt: skip

    def pretrain(self, run: RunInfo) -> dict:
        epochs = self._epochs(run)
        return dict(
            train_batch_size=self._batch_size(), train_epochs=epochs, checkpoint_epochs=max(1, epochs // 10),
            learning_rate=1.0, warmup_epochs=min(10.0, 0.1 * epochs), weight_decay=1e-4, temperature=0.5,
            color_jitter_strength=0.5, use_blur=run.image_size >= 64,
        )  # fmt: skip

    def linear_eval(self, run: RunInfo) -> dict:
        steps = min(max(100, 10 * self.data.num_images // 256), 2000)
        return dict(
            optimizer="momentum", learning_rate=0.3, weight_decay=0.0, warmup_epochs=0.0,
            train_batch_size=self._batch_size(256), train_steps=steps, checkpoint_steps=steps,
        )  # fmt: skip

    def supervised(self, run: RunInfo) -> dict:
        return self._labelled(run) | dict(learning_rate=0.04 if self._has_few_labels(run) else 0.013)

    def finetune(self, run: RunInfo) -> dict:
        few = self._has_few_labels(run)
        return self._labelled(run) | dict(learning_rate=0.003 if few else 0.0126, ft_proj_selector=1 if few else 0)

    def distill(self, run: RunInfo) -> dict:
        epochs = max(5, self._epochs(run) // 5)
        return dict(
            optimizer="momentum", learning_rate=0.1, weight_decay=5e-4, train_batch_size=self._batch_size(),
            train_epochs=epochs, checkpoint_epochs=max(1, epochs // 4), warmup_epochs=0.05 * epochs, temperature=1.0,
        )  # fmt: skip

    def _labelled(self, run: RunInfo) -> dict:
        """Returns the settings for training on labels: 200 to 2,000 steps, evaluated four times.

        The crops keep most of the image: for fine-tuning on five of the digits per class, 0.7 instead of 0.4
        raised top-1 on the other training images from 93.5 to 95.1 (mean of two seeds).
        """
        labels = self._labels_per_class(run) * max(self.data.num_classes, 1)
        batch_size = 50 if self._has_few_labels(run) else 128
        steps = min(max(200, 4 * labels // batch_size * 5), 2000)
        return dict(
            optimizer="momentum", weight_decay=5e-4, warmup_epochs=0.0, learning_rate_scaling="sqrt",
            train_batch_size=batch_size, train_steps=steps, checkpoint_steps=math.ceil(steps / 4), crop_area_min=0.7,
        )  # fmt: skip

    def _labels_per_class(self, run: RunInfo) -> int:
        return run.labels_per_class or round(self.data.images_per_class * run.label_fraction)

    def _has_few_labels(self, run: RunInfo) -> bool:
        return self._labels_per_class(run) < MANY_LABELS

    def _batch_size(self, largest: int = 0) -> int:
        """Returns a power of two that gives two steps per epoch: at most 128 on a CPU and 256 on an accelerator."""
        largest = largest or (256 if self.data.has_accelerator else 128)
        return min(largest, 2 ** max(1, int(math.log2(max(self.data.num_images, 4))) - 1))

    def _epochs(self, run: RunInfo) -> int:
        """Returns the epochs of pretraining that fit into the budget of the device."""
        if self.data.has_accelerator:
            return min(max(100, GPU_IMAGES // self.data.num_images), 1000)
        side = run.image_size if run.image_size <= 32 else run.image_size / 4  # after the stem
        cost = (side / 16) ** 2 * (run.width_multiplier / 0.25) ** 2 * (1 if run.resnet_depth <= 18 else 3)
        return min(max(10, int(CPU_SECONDS * CPU_RATE / cost / self.data.num_images)), 300)
