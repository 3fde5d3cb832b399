"""Image files without labels, as given by ``--images``."""

import collections
import glob
import os

from simclrv2_tf.data.listing import IMAGE_SUFFIXES, describe_skipped, list_images, unsupported_format
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config


def open_images(config: Config) -> FileSource:
    """Opens the image files of ``--images``, each once.

    A place is a file, a folder (its images at any depth) or a glob, with ``**`` for folders at any depth; commas
    separate several. A path that exists is taken as it is, whatever characters it has.

    Args:
        config: the settings; ``images``, and those of ``FileSource.from_settings`` without the cache are used.

    Returns:
        The files; those of a folder or a glob are sorted. ``skipped`` counts what these have besides images.

    Raises:
        SettingError: if there is no such file or folder, or no image among them.
    """
    images, whole = config.images, os.path.expanduser(config.images)
    places = [whole] if os.path.lexists(whole) else [os.path.expanduser(part.strip()) for part in images.split(",")]
    skipped: collections.Counter[str] = collections.Counter()
    paths: list[str] = []
    for place in filter(None, places):
        if os.path.isdir(place):
            paths += list_images(place, skipped)
        elif os.path.lexists(place):
            paths.append(place)  # whatever its suffix: it counts as corrupt if it is not an image
        else:
            paths += _matches(place, skipped)
    if not paths:
        others = describe_skipped(skipped) or "nothing"
        raise SettingError(f"--images={images}: no {', '.join(IMAGE_SUFFIXES)} images there, but {others}")
    paths = list(dict.fromkeys(map(os.path.normpath, paths)))
    return FileSource.from_settings(config.replace(cache_dataset=False), images, paths, skipped=dict(skipped))


def _matches(pattern: str, skipped: collections.Counter[str]) -> list[str]:
    """Returns the images that match a glob, with those in matching folders; counts other files."""
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise SettingError(f"--images={pattern}: there is no such file or folder")
    paths = []
    for match in matches:
        if os.path.isdir(match):
            if "**" not in pattern:  # "**" also matches the content of folders
                paths += list_images(match, skipped)
        elif reason := unsupported_format(match):
            skipped[reason] += 1
        else:
            paths.append(match)
    return paths
