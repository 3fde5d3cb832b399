"""SimCLR as a careful user of PyTorch and lightly would write it: the peer that ``peer.py`` trains beside this package.

The loss, the augmentation and LARS are lightly's; crops, color jitter and resizing are torchvision's. The network has
the layers of the package's ResNet-18, initialized as torchvision's. Reads the images from an npz file and writes the
features of the pretrained encoder, and the accuracies of fine-tuned networks, to another. Run by a Python with ``pip
install torch torchvision lightly numpy``.
"""

import argparse
import copy
import json
import math
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.transforms import SimCLRTransform
from lightly.utils.lars import LARS
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch_step import Block, Network
from torchvision import transforms

IMAGENET = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def build_network(width: float) -> Network:
    """Builds a ResNet-18 for small images with torchvision's initialization, residual branches starting at 0."""
    network = Network(18, small_images=True, width=width)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, Block):
            nn.init.zeros_(module.convs[-1][1].weight)
    return network.to(memory_format=torch.channels_last)


def encode(network: Network, images: torch.Tensor) -> torch.Tensor:
    """Returns the features ``[n, channels]``."""
    return network.encoder(images).mean((2, 3))


def batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields batches of the rows without end, in a new order each time."""
    order = np.empty(0, int)
    while True:
        while len(order) < batch_size:
            order = np.concatenate([order, np.random.permutation(rows)])
        yield order[:batch_size]
        order = order[batch_size:]


def parameter_groups(module: nn.Module, decay: float) -> list[dict]:
    """Splits the parameters: kernels are decayed, biases and batch norms are not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    kernels, vectors = ([p for p in parameters if (p.ndim > 1) == is_kernel] for is_kernel in (True, False))
    return [dict(params=kernels, weight_decay=decay), dict(params=vectors, weight_decay=0.0)]


def set_rate(optimizer: torch.optim.Optimizer, peak: float, step: int, steps: int, warmup: int = 0) -> None:
    """Sets the learning rate of a step: linear warm-up, then cosine decay."""
    decayed = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = peak * (step / warmup if step < warmup else decayed)


def pretrain(network: Network, pictures: list[Image.Image], flags: argparse.Namespace) -> None:
    """Trains the network on pairs of views."""
    transform = SimCLRTransform(
        input_size=flags.size, cj_strength=0.5, min_scale=flags.crop_min, hf_prob=0.5 * flags.flip, gaussian_blur=0.0,
        normalize=IMAGENET,
    )  # fmt: skip
    criterion = NTXentLoss(temperature=flags.temperature)
    peak = flags.rate * flags.batch_size / 256
    if flags.optimizer == "lars":
        optimizer = LARS(parameter_groups(network, 1e-4), lr=peak, momentum=0.9)
    else:
        optimizer = torch.optim.SGD(parameter_groups(network, 5e-4), lr=peak, momentum=0.9)
    steps = len(pictures) * flags.epochs // flags.batch_size
    warmup = len(pictures) * flags.warmup_epochs // flags.batch_size
    network.train()
    for step, rows in zip(range(steps), batches(np.arange(len(pictures)), flags.batch_size), strict=False):
        set_rate(optimizer, peak, step, steps, warmup)
        first, second = zip(*(transform(pictures[row]) for row in rows), strict=True)
        views = torch.stack([*first, *second]).contiguous(memory_format=torch.channels_last)
        hidden = network(views)
        # twice lightly's mean over the views, as the loss of the paper's code, for whose scale its rates are tuned
        loss = 2 * criterion(hidden[: len(rows)], hidden[len(rows) :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def evaluation_images(images: np.ndarray, size: int) -> torch.Tensor:
    """Resizes images as torchvision does, and normalizes them."""
    resized = [np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC)) for image in images]
    pixels = torch.tensor(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    return transforms.functional.normalize(pixels, **IMAGENET).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def outputs(model: Callable, images: torch.Tensor) -> torch.Tensor:
    """Applies a model in batches."""
    return torch.cat([model(part) for part in images.split(256)])


class Classifier(nn.Module):
    """A linear layer on the encoder and the first ``head_layers`` layers of the projection head."""

    def __init__(self, network: Network, num_classes: int, head_layers: int):
        super().__init__()
        self.encoder = network.encoder
        self.head = network.head[: 3 * head_layers]  # linear, batch norm, ReLU
        self.linear = nn.Linear(network.head[0].in_features, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(self.head(self.encoder(images).mean((2, 3))))


def finetune(network: Network, data: dict, rows: np.ndarray, settings: dict, flags: argparse.Namespace) -> float:
    """Trains a copy of the network on the labels of some rows; returns top-1 on the test images."""
    crop = transforms.Compose([
        transforms.RandomResizedCrop(
            flags.size, scale=(settings["crop_min"], 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        *([transforms.RandomHorizontalFlip()] if flags.flip else []),
        transforms.ToTensor(), transforms.Normalize(**IMAGENET),
    ])  # fmt: skip
    labels = torch.tensor(data["train_labels"]).long()
    model = Classifier(copy.deepcopy(network), int(labels.max()) + 1, settings["head_layers"])
    batch_size = min(settings["batch_size"], len(rows))
    peak, steps = settings["rate"] * math.sqrt(batch_size), settings["steps"]
    optimizer = torch.optim.SGD(parameter_groups(model, 5e-4), lr=peak, momentum=0.9, nesterov=True)
    model.train()
    for step, chosen in zip(range(steps), batches(rows, batch_size), strict=False):
        set_rate(optimizer, peak, step, steps)
        images = torch.stack([crop(data["pictures"][row]) for row in chosen])
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    predicted = outputs(model, data["test"]).argmax(1).numpy()
    return float((predicted == data["test_labels"]).mean())


def cpu_seconds() -> float:
    """Returns the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Pretrains, fine-tunes, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="npz with images, labels and the label subsets rows_K of each seed")
    parser.add_argument("--out", help="npz for features and accuracies")
    parser.add_argument("--settings", help="JSON of the other flags")
    parser.add_argument("--finetune", default="[]", help="JSON: a list of settings, each with the number of labels")
    flags = parser.parse_args()
    vars(flags).update(json.loads(flags.settings))
    torch.manual_seed(flags.seed)
    np.random.seed(flags.seed)
    with np.load(flags.data) as arrays:
        data = dict(arrays)
    data["pictures"] = [Image.fromarray(image) for image in data["train_images"]]
    data["test"] = evaluation_images(data["test_images"], flags.size)
    network, began, used = build_network(flags.width), time.time(), cpu_seconds()
    pretrain(network, data["pictures"], flags)
    seconds = {"wall": time.time() - began, "cpu": cpu_seconds() - used}
    network.eval()
    train = evaluation_images(data["train_images"], flags.size)
    features = {
        name: outputs(lambda x: encode(network, x), x) for name, x in (("train", train), ("test", data["test"]))
    }
    accuracies = []
    for settings in json.loads(flags.finetune):
        rows = data[f"rows_{settings['labels']}"]
        accuracies.append(settings | {"top1": finetune(network, data, rows, settings, flags)})
    arrays = {name: values.numpy() for name, values in features.items()}
    np.savez(flags.out, **arrays, seconds=json.dumps(seconds), accuracies=json.dumps(accuracies))


if __name__ == "__main__":
    main()
