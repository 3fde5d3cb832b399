"""Report mode: regenerates a run's report, or compares several runs."""

import pathlib

from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.report import draw_figures, write_comparison, write_report
from simclrv2_tf.settings.config import Config


def report(config: Config, strategy: Strategy) -> Result:
    """Regenerates ``report.html`` in ``--model_dir``; or, with ``--compare``, writes ``comparison.html``.

    The comparison is written to ``--model_dir`` or, without it, to the first of the runs.
    """
    compared = [path.strip() for path in config.compare.split(",") if path.strip()]
    if compared:
        runs = [_run(path, "compare") for path in dict.fromkeys(compared)]
        if len(runs) < 2:
            raise SettingError(f"--compare={config.compare}: give two model directories or more, with commas")
        folder = pathlib.Path(config.model_dir or runs[0])
        folder.mkdir(parents=True, exist_ok=True)
        path = write_comparison(runs, folder / "comparison.html")
    else:
        path = write_report(_run(config.model_dir, "model_dir"))
        draw_figures(path.parent)
    print(path)
    return {"mode": "report", "path": str(path)}


def _run(path: str, flag: str) -> pathlib.Path:
    """Returns a model directory; raises SettingError, naming the flag, if it is not one."""
    if not path or not (pathlib.Path(path) / "config.json").is_file():
        raise SettingError(f"--{flag}={path}: is not the model directory of a run (it has no config.json)")
    return pathlib.Path(path)
