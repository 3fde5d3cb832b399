"""Listing: the image files below a folder, and how many files are left out, by reason.

The same rule applies at every depth. It skips names that start with a dot, the files that operating systems leave
behind (``SYSTEM_NAMES``), files of other types, and the directories of runs. Links are followed; a folder that a link
leads back to is listed once.
"""

import collections
import dataclasses
import importlib.util
import os
from collections.abc import Collection, Iterable, Mapping

HEIF_SUFFIXES = (".heic", ".heif")  # Pillow reads them with the package pillow-heif
HEIF_IS_READABLE = importlib.util.find_spec("pillow_heif") is not None
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"),
    *(HEIF_SUFFIXES if HEIF_IS_READABLE else ()),
)
SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found")
)
RUN_RECORDS = frozenset(("checkpoints", "metrics.csv", "result.json", "evaluation.json", "tensorboard", "figures"))
MAX_RUN_DEPTH = 3  # depth of a model directory below the folder of all runs, such as runs/NAME/finetune_10
RUN_FOLDERS = frozenset(("checkpoints", "tensorboard", "figures", "preview", "saved_model"))
NUM_NAMES = 10  # names listed in a message
LINK_BACK = "link to a folder that is already listed"
RUN_DIRECTORY = "directory of a run"
HIDDEN_FOLDER, HIDDEN_FILE = "hidden or system folder", "hidden or system file"

Skipped = collections.Counter[str]
Identity = tuple[int, int]  # device and inode of a folder


def is_run_dir(names: Collection[str]) -> bool:
    """Returns whether a folder with entries of these names is the model directory of a run."""
    return "config.json" in names and not RUN_RECORDS.isdisjoint(names)


@dataclasses.dataclass(frozen=True)
class Contents:
    """Sub-folders and images directly in one folder, sorted by name, without skipped entries.

    Attributes:
        path: the folder.
        folders: its sub-folders.
        images: paths of its images.
    """

    path: str
    folders: tuple[os.DirEntry, ...]
    images: tuple[str, ...]


def read_folder(path: str, skipped: Skipped) -> Contents:
    """Reads one folder.

    Args:
        path: the folder.
        skipped: counts what is left out, by reason.

    Raises:
        OSError: if it cannot be read.
    """
    folders, images = [], []
    with os.scandir(path) as iterator:
        entries = sorted(iterator, key=lambda entry: entry.name)
    of_run = RUN_FOLDERS if is_run_dir([entry.name for entry in entries]) else ()
    for entry in entries:
        if not is_folder(entry):
            if reason := _reason_to_skip(entry):
                skipped[reason] += 1
            else:
                images.append(entry.path)
        elif _is_hidden(entry.name):
            skipped[HIDDEN_FOLDER] += 1
        elif (num_runs := 1 if entry.name in of_run else _count_runs(entry.path)) > 0:
            skipped[RUN_DIRECTORY] += num_runs
        else:
            folders.append(entry)
    return Contents(path, tuple(folders), tuple(images))


def list_images(folder: str, skipped: Skipped, parents: Iterable[str] = ()) -> list[str]:
    """Lists the images in a folder and its sub-folders.

    Args:
        folder: the folder.
        skipped: counts what is left out, by reason.
        parents: folders that a link must not lead back to.

    Returns:
        Their paths, sorted folder by folder.
    """
    paths: list[str] = []
    seen = {_identity(parent) for parent in parents}
    pending: list[str] = [folder]
    links: collections.deque = collections.deque()  # links come last, so that a folder is listed under its own name
    while pending or links:
        path = pending.pop() if pending else links.popleft()
        try:
            if (identity := _identity(path)) in seen:
                skipped[LINK_BACK] += 1
                continue
            seen.add(identity)
            contents = read_folder(path, skipped)
        except PermissionError:
            skipped["unreadable folder"] += 1
            continue
        paths += contents.images
        for entry in reversed(contents.folders):
            (links if entry.is_symlink() else pending).append(entry.path)
    return sorted(paths, key=lambda path: path.split(os.sep))


def is_folder(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a folder or a link to one; without a system call, except for links."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def printable(name: str) -> str:
    """Returns a file name or path on one line, with bytes that are not UTF-8 replaced."""
    return " ".join(os.fsencode(name).decode(errors="replace").split())


def list_names(names: Collection[str]) -> str:
    """Lists at most ``NUM_NAMES`` names, and the number of the others."""
    text = ", ".join(map(printable, list(names)[:NUM_NAMES]))
    return text if len(names) <= NUM_NAMES else f"{text} and {len(names) - NUM_NAMES:,} more"


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Formats the number of files that were left out, by reason."""
    return ", ".join(f"{count:,} x {reason}" for reason, count in skipped.items())


def _identity(path: str) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return name[0] == "." or name.lower() in SYSTEM_NAMES


def _count_runs(path: str, depth: int = 0) -> int:
    """Returns the number of model directories in a folder, itself included; −1 if it has images outside of them.

    It stops at the first image, so that it is fast for a folder of images.
    """
    try:
        with os.scandir(path) as iterator:
            entries: Iterable[os.DirEntry] = iterator
            if os.path.isfile(os.path.join(path, "config.json")):
                entries = list(iterator)
                if is_run_dir([entry.name for entry in entries]):
                    return 1
            num_runs = 0
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if is_folder(entry):
                    below = -1 if entry.is_symlink() or depth == MAX_RUN_DEPTH else _count_runs(entry.path, depth + 1)
                else:
                    below = 0 if _reason_to_skip(entry) else -1
                if below < 0:
                    return -1
                num_runs += below
            return num_runs
    except PermissionError:
        return -1


def unsupported_format(name: str) -> str:
    """Returns why a file of this name is not read, by its suffix; "" if it is."""
    if name.lower().endswith(IMAGE_SUFFIXES):
        return ""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in HEIF_SUFFIXES:
        return f"needs the package pillow-heif ({suffix})"
    return f"not a supported image format ({printable(suffix) or 'no suffix'})"


def _reason_to_skip(entry: os.DirEntry) -> str:
    """Returns why a file is not an image to read, "" if it is one."""
    if _is_hidden(entry.name):
        return HIDDEN_FILE
    if reason := unsupported_format(entry.name):
        return reason
    if entry.is_file(follow_symlinks=False) or os.path.isfile(entry):
        return ""
    is_broken_link = entry.is_symlink() and not os.path.exists(entry)  # an image that counts as corrupt when it is read
    return "" if is_broken_link else "not a regular file"
