"""Selection mode: a table and a page of the images to label next."""

import csv
import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.sources import Source
from simclrv2_tf.data.unlabelled import open_images
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import replacing
from simclrv2_tf.modes.measure import EvaluatedSplit
from simclrv2_tf.modes.resolve import Result
from simclrv2_tf.modes.setup import load_trained
from simclrv2_tf.report import write_selection
from simclrv2_tf.report.console import box
from simclrv2_tf.report.pictures import images_of
from simclrv2_tf.runs.embeddings import printable_path
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.selection import SELECTIONS
from simclrv2_tf.settings.config import Config

MAX_IMAGES = 50_000  # to compare
SHOWN_IMAGES = 200  # on the page
SHOWN_SIZE = 128  # px


def select(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Writes the images to label next to ``selection.csv``, and a page with them.

    Candidates are the images of ``--images``, else the training images without a label. If all have labels, the
    labels are ignored.

    Raises:
        SettingError: if there are fewer candidates than ``--select_count``, or too many images are corrupt.
    """
    source = _open_candidates(config)
    model = load_trained(config, strategy)
    outputs = EvaluatedSplit(model, config, source).outputs("final_avg_pool")
    features, is_labelled, note = outputs["final_avg_pool"], outputs["labels"] >= 0, ""
    if is_labelled.all():
        is_labelled, note = np.zeros_like(is_labelled), "all images have labels; selected as if none had"
    num_candidates = int(np.sum(~is_labelled))
    if config.select_count > num_candidates:
        raise SettingError(f"--select_count={config.select_count}: {source.name} has only {num_candidates} candidates")
    selected = SELECTIONS[config.select_by](features, is_labelled, config.select_count)

    chosen = source.readable_subset(outputs["rows"][selected])
    names = list(map(printable_path, chosen.paths or map(str, outputs["rows"][selected])))
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    path, page = run_dir.model_dir / "selection.csv", run_dir.model_dir / "selection.html"
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("order", "image"), *enumerate(names, start=1)])
    summary = {"run": config.checkpoint or config.encoder, "images": f"{num_candidates:,} candidates of {source.name}"}
    summary |= {"selected": f"{len(names):,} by {config.select_by}"} | ({"note": note} if note else {})
    write_selection(page, summary, _cards(chosen, names[:SHOWN_IMAGES]))
    print(box(f"select: {config.checkpoint or config.encoder}", summary | {"table": str(path), "page": str(page)}))
    return {"mode": "select", "checkpoint": config.checkpoint, "path": str(path), "page": str(page), "images": names}


def _open_candidates(config: Config) -> Source:
    """Opens the candidates with the labelled images.

    Raises:
        SettingError: if there are more than can be compared.
    """
    if config.images:
        source: Source = open_images(config)
    else:
        source = open_source(config, config.train_split, with_unlabelled=True)
    if source.num_examples > MAX_IMAGES:
        raise SettingError(
            f"--mode=select: compares at most {MAX_IMAGES:,} images, not {source.num_examples:,}; name a part of them "
            "with --images"
        )
    return source


def _cards(source: Source, names: list[str]) -> list[tuple[str, np.ndarray, list[tuple[str, str]]]]:
    """Returns name, pixels and captions of the first images of a source, for the page."""
    pixels = images_of(source.subset(np.arange(len(names))), SHOWN_SIZE)
    return [(name, pixels[i], [("order", f"{i + 1:,}")]) for i, name in enumerate(names)]
