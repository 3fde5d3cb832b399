"""Views by lightly (PyTorch), a contestant of ``input.py``."""

from collections.abc import Iterator

import torch
from lightly.transforms import SimCLRTransform
from PIL import Image


def lightly(paths: list[str], images: int, size: int) -> Iterator[list[torch.Tensor]]:
    """Yields two views of one image at a time, as a worker of a ``DataLoader`` does."""
    torch.set_num_threads(1)
    transform = SimCLRTransform(input_size=size)
    for index in range(images):
        with Image.open(paths[index % len(paths)]) as image:
            yield transform(image.convert("RGB"))
