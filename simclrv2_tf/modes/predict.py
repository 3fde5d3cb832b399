"""Prediction mode: classifies unlabelled images with a trained run."""

import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.listing import describe_skipped
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.data.unlabelled import open_images
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import replacing
from simclrv2_tf.modes.resolve import Result
from simclrv2_tf.modes.setup import load_trained
from simclrv2_tf.report import write_predictions
from simclrv2_tf.report.console import box
from simclrv2_tf.report.pictures import images_of
from simclrv2_tf.runs.embeddings import printable_path
from simclrv2_tf.runs.predictions import Predictions, predict_images, write_csv, write_jsonl, write_parquet
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.settings.config import Config

WRITERS = {"csv": write_csv, "parquet": write_parquet, "jsonl": write_jsonl}

TOP = 5  # classes per image in the table
SHOWN_IMAGES = 200  # on the page
SHOWN_SIZE = 128  # px
SHOWN_CLASSES, SHOWN_CORRUPT = 10, 20  # on the terminal


def predict(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Writes the classes of ``--images`` to ``predictions.csv``, ``.parquet`` or ``.jsonl``, and a page with them.

    Both go to the run's directory, or to ``--model_dir``.

    Raises:
        SettingError: before anything is written, if there are no such images, none of them can be read, more of them
            are corrupt than a given ``--max_corrupt_share`` allows, or the run has no classifier.
    """
    source, model = open_images(config), load_trained(config, strategy)
    if model.network.classifier is None:
        raise SettingError(
            f"--checkpoint={config.checkpoint}: has no classifier; train one first, with --mode=finetune or linear_eval"
        )
    count = min(TOP, len(model.class_names))
    predictions = predict_images(model, source, count, config.eval_batch_size)
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    path = run_dir.model_dir / f"predictions.{config.output_format}"
    with replacing(path) as unfinished:
        WRITERS[config.output_format](predictions, unfinished)
    summary = _summarize(config, source, predictions)
    page = _write_page(run_dir.model_dir / "predictions.html", source, predictions, summary)
    print(box(f"predict: {config.checkpoint}", summary | {"table": str(path), "page": str(page)}))
    result = {"mode": "predict", "checkpoint": config.checkpoint, "path": str(path), "page": str(page)}
    return result | {"images": source.num_examples, "corrupt_images": list(map(printable_path, predictions.corrupt))}


def _summarize(config: Config, source: FileSource, predictions: Predictions) -> dict[str, str]:
    """Returns the lines of the summary box and of the page."""
    counts = _counts(predictions)
    classes = [f"{name} {num_images:,}" for name, num_images, _ in counts[:SHOWN_CLASSES]]
    classes += [f"{len(counts) - SHOWN_CLASSES:,} more classes"] * (len(counts) > SHOWN_CLASSES)
    lines = {"run": config.checkpoint, "images": f"{source.num_examples:,} of {config.images}"}
    lines["classes"] = ", ".join(classes)
    if source.skipped:
        lines["left out"] = describe_skipped(source.skipped)
    if corrupt := predictions.corrupt:
        names = ", ".join(map(printable_path, corrupt[:SHOWN_CORRUPT]))
        names += ", … (the page lists all)" * (len(corrupt) > SHOWN_CORRUPT)
        lines["corrupt images"] = f"{len(corrupt):,}, without a class in the table: {names}"
    return lines


def _counts(predictions: Predictions) -> list[tuple[str, int, float]]:
    """Returns name, number of images and mean probability of each class that was predicted, most frequent first."""
    best, probabilities = (
        values[predictions.is_read, 0] for values in (predictions.classes, predictions.probabilities)
    )
    num_images, sums = np.bincount(best), np.bincount(best, probabilities)
    order = [number for number in np.argsort(-num_images, kind="stable") if num_images[number]]
    return [(predictions.class_names[i], int(num_images[i]), float(sums[i] / num_images[i])) for i in order]


def _write_page(
    path: pathlib.Path, source: FileSource, predictions: Predictions, summary: dict[str, str]
) -> pathlib.Path:
    """Writes the page, with the least confident predictions."""
    is_read, probabilities = predictions.is_read, predictions.probabilities
    least_sure = np.argsort(probabilities[:, 0], kind="stable")[: min(is_read.sum(), SHOWN_IMAGES)]  # NaN comes last
    thumbnails = images_of(source.subset(least_sure), SHOWN_SIZE)
    names = predictions.class_names
    classes = [
        [(names[number], float(share)) for number, share in zip(predictions.classes[i], probabilities[i], strict=True)]
        for i in least_sure
    ]
    paths = [printable_path(predictions.paths[i]) for i in least_sure]
    images = list(zip(paths, thumbnails, classes, strict=True))
    corrupt = list(map(printable_path, predictions.corrupt))
    return write_predictions(path, summary, _counts(predictions), images, corrupt)
