"""One function per ``--mode``, all with one signature: from a config and a strategy to a result."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.agreement import agreement
from simclrv2_tf.distributed.devices import choose_strategy, worker_context
from simclrv2_tf.errors import SettingError, explained_errors
from simclrv2_tf.modes import (
    benchmark,
    check_devices,
    evaluate,
    export,
    predict,
    preview,
    report,
    select,
    semi_supervised,
    summary,
    train,
)
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, resolve_config
from simclrv2_tf.settings.fields import STAGES

MODES: dict[str, Callable[[Any, Strategy], Result]] = {
    **dict.fromkeys(STAGES, train.train),
    "semi_supervised": semi_supervised.semi_supervised,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "embed": evaluate.embed,
    "select": select.select,
    "export": export.export,
    "import_checkpoint": export.import_checkpoint,
    "summary": summary.summary,
    "preview": preview.preview,
    "benchmark": benchmark.benchmark,
    "check_devices": check_devices.check_devices,
    "report": report.report,
}
WITHOUT_DEVICES = ("summary", "report")  # these neither wait for workers nor touch a GPU


def run(flags: Mapping[str, Any]) -> Result:
    """Resolves the settings once, then runs the mode.

    Args:
        flags: the given settings, by name.

    Raises:
        SettingError: for a setting or an input that cannot be used, before anything is written.
    """
    with explained_errors(flags.get("model_dir", "")):
        if keras.backend.backend() != "tensorflow":
            raise SettingError(f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow")
        config = resolve_config(flags)
    mode = flags.get("mode", "pretrain")
    with explained_errors(config.run_dir):
        strategy = tf.distribute.get_strategy() if mode in WITHOUT_DEVICES else choose_strategy(config)
        with worker_context(strategy):
            if "train_batch_size" not in flags and mode in STAGES:
                with agreement(strategy):  # so that all workers stop if one of them cannot open the data
                    config = cap_batch_size(config, strategy)
            return MODES[mode](config, strategy)
