"""Makes a folder of photographs of 500×375 px, the usual size in ImageNet, from those of scikit-image.

    python benchmarks/make_jpegs.py FOLDER [--count=200] [--width=500] [--height=375]

A photograph of a camera is not smooth: each one is a random part of a picture, scaled, with a little noise on top, so
that its entropy, about 70 kB at quality 90, and so the time to decode it, is like that of a real one.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image
from skimage import data

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket")
PORTRAITS = 0.25  # share of images that stand upright
QUALITY = 90


def make_jpegs(folder: pathlib.Path, count: int = 200, width: int = 500, height: int = 375) -> None:
    """Writes ``count`` JPEGs of ``width`` × ``height`` pixels, a quarter of them turned to portraits."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [Image.fromarray(getattr(data, name)()[..., :3]) for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for index in range(count):
        size = (height, width) if rng.random() < PORTRAITS else (width, height)
        pixels = np.asarray(_part(sources[index % len(sources)], size, rng), np.float32)
        pixels = pixels + rng.normal(0, 6, (*pixels.shape[:2], 1)) + rng.normal(0, 3, pixels.shape)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        image.save(folder / f"{index:05}.jpg", quality=QUALITY)


def _part(source: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Crops a random part of a picture with the aspect of ``size``, and scales it to that size."""
    scale = min(source.width / size[0], source.height / size[1]) * rng.uniform(0.7, 1)
    part = [int(scale * side) for side in size]
    left, top = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(source.size, part, strict=True))
    return source.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + part[0], top + part[1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    for name, default in (("count", 200), ("width", 500), ("height", 375)):
        parser.add_argument(f"--{name}", type=int, default=default)
    make_jpegs(**vars(parser.parse_args()))
