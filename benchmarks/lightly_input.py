"""The views of lightly (PyTorch), to be measured by ``input.py``."""

from collections.abc import Iterator

import torch
from lightly.transforms import SimCLRTransform
from PIL import Image


def lightly(paths: list[str], images: int, size: int) -> Iterator[list[torch.Tensor]]:
    """Two views of one image at a time, as a worker of a ``DataLoader`` makes them."""
    torch.set_num_threads(1)
    transform = SimCLRTransform(input_size=size)
    for index in range(images):
        with Image.open(paths[index % len(paths)]) as image:
            yield transform(image.convert("RGB"))
