"""One function per ``--mode``, all with one signature: from a config and a strategy to a result."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.devices import choose_strategy, worker_context
from simclrv2_tf.errors import SettingError, explained_errors
from simclrv2_tf.modes import benchmark, evaluate, export, predict, preview, report, semi_supervised, summary, train
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, finished_result, resolve_config
from simclrv2_tf.settings.config import STAGES, Config

MODES: dict[str, Callable[[Config, Strategy], Result]] = {
    **dict.fromkeys(STAGES, train.train),
    "semi_supervised": semi_supervised.semi_supervised,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "embed": evaluate.embed,
    "export": export.export,
    "import_checkpoint": export.import_checkpoint,
    "summary": summary.summary,
    "preview": preview.preview,
    "benchmark": benchmark.benchmark,
    "report": report.report,
}
WITHOUT_DEVICES = ("summary", "report")  # these neither wait for workers nor touch a GPU


def run(flags: Mapping[str, Any]) -> Result:
    """Resolves the settings once, then runs the mode.

    Args:
        flags: settings that are given, by name.

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
            if "train_batch_size" not in flags:
                config = cap_batch_size(config, strategy)
            result = finished_result(config) if mode in STAGES else None
            return result or MODES[mode](config, strategy)
