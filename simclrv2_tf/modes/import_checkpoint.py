"""The mode that makes a run of what the official code trained."""

from simclrv2_tf.modes import build
from simclrv2_tf.modes.resolve import Result, Strategy, changed
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import save_network
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config


def import_checkpoint(config: Config, strategy: Strategy) -> Result:
    """A checkpoint of the official code as a model directory that every other mode takes."""
    checkpoint = official.read(config.checkpoint, config.ft_proj_selector)
    with strategy.scope():
        network = build.network(config, strategy, checkpoint.num_classes, config.ft_proj_selector)
    report = official.load(network, checkpoint)
    resolved = {"num_classes": checkpoint.num_classes, "class_names": [], "head_input": config.ft_proj_selector}
    run_dir = RunDirectory(build.output_dir(build.model_dir(config), strategy))
    with run_dir.locked():
        changed(config, run_dir.model_dir)
        run_dir.write_config(config, resolved | {"imported": report.splitlines()})
        save_network(network, run_dir.model_dir, checkpoint.step)
    print(f"{report}\n{run_dir.model_dir}: for --checkpoint, and --teacher if it has classes")
    return {"mode": config.mode, "checkpoint": checkpoint.path, "step": checkpoint.step, "report": report}
