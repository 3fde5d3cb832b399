"""Command-line help: how to start, the flags of each mode, all flags."""

import dataclasses
import itertools
import textwrap

from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import MODES
from simclrv2_tf.settings.usage import GROUP_OF, is_read

REQUESTS = {dashes + name for dashes in ("-", "--") for name in ("help", "helpshort", "helpfull", "h")}
START = """usage: python run.py --mode=MODE [--flag=value ...]   (installed: simclrv2-tf --mode=MODE ...)

SimCLRv2: pretrain without labels, fine-tune on a few labels, distill into a small network.

To start, without a download (3 minutes on two CPU cores):
  python run.py --mode=semi_supervised --dataset=digits

With your own images, one sub-folder per class (unlabelled images are enough to pretrain):
  python run.py --mode=preview --dataset=folder:/data/birds
  python run.py --mode=semi_supervised --dataset=folder:/data/birds

Modes:
{modes}

python run.py --mode=MODE --help    the flags of a mode, with examples
python run.py --helpfull            all flags
python run.py --recipe=help         settings for well-known data sets"""
DESCRIPTIONS = {
    "pretrain": "Learn features from images without labels.",
    "finetune": "Train a pretrained network on a few labels.",
    "distill": "Train a small network on the predictions of a teacher, with the unlabelled images.",
    "linear_eval": "Train a linear classifier on frozen features.",
    "supervised": "Train the same network from scratch on labels, for comparison.",
    "semi_supervised": "Run all of the above and compare them in a table.",
    "evaluate": "Compute top-1, top-5 and kNN accuracy of a run.",
    "predict": "Write the classes of images without labels to a table and a page.",
    "embed": "Write the features of all images to a file.",
    "select": "List the images to label next.",
    "export": "Write the network of a run for other programs.",
    "import_checkpoint": "Turn a checkpoint of the official code into a run.",
    "preview": "Show views, time and memory of a run before it starts.",
    "summary": "Print parameters, arithmetic and memory of a network.",
    "benchmark": "Measure the input and the step of a run, and report the bottleneck.",
    "check_devices": "Check that a training step on all devices matches one device.",
    "report": "Rewrite report.html, or compare several runs.",
}
EXAMPLES = {
    "pretrain": ("--dataset=folder:/data/birds --model_dir=runs/birds", "--recipe=cifar10"),
    "finetune": (
        "--checkpoint=runs/birds --model_dir=runs/birds-ft",
        "--checkpoint=runs/birds --labels_per_class=10 --model_dir=runs/birds-ft10",
    ),
    "distill": ("--teacher=runs/birds-ft --model_dir=runs/birds-small",),
    "linear_eval": ("--checkpoint=runs/birds --model_dir=runs/birds-linear",),
    "supervised": ("--dataset=folder:/data/birds --labels_per_class=10",),
    "semi_supervised": ("--dataset=folder:/data/birds", "--dataset=digits --labels_per_class=5 --seeds=0,1,2"),
    "evaluate": ("--checkpoint=runs/birds-ft", "--checkpoint=runs/birds-ft --dataset=folder:/data/other_birds"),
    "predict": (
        "--checkpoint=runs/birds-ft --images=/data/photos",
        "--checkpoint=runs/birds-ft --images='/data/*.jpg' --format=parquet",
    ),
    "embed": ("--checkpoint=runs/birds --format=parquet",),
    "select": ("--checkpoint=runs/birds --select_count=50", "--checkpoint=runs/birds --images=/data/photos"),
    "export": ("--checkpoint=runs/birds-small", "--checkpoint=runs/birds-small --format=onnx"),
    "import_checkpoint": ("--checkpoint=/downloads/r50_1x_sk0 --model_dir=runs/r50",),
    "preview": ("--dataset=folder:/data/birds",),
    "summary": ("--resnet_depth=152 --width_multiplier=3 --sk_ratio=0.0625", "--checkpoint=runs/birds"),
    "benchmark": ("--dataset=folder:/data/birds",),
    "check_devices": ("--dataset=folder:/data/birds", "--recipe=cifar10 --cpu_replicas=2"),
    "report": ("--model_dir=runs/birds", "--compare=runs/birds,runs/birds-ft"),
}
FOOT = """
Also: --config=runs/x/config.json starts with the settings of that run, which flags override; --flagfile=FILE
reads flags from a file; --noNAME is --NAME=false; --v=1 shows the log of TensorFlow; --quiet prints only
warnings and errors. Flags of the official code, such as --train_mode, are translated. --completion=bash or
--completion=zsh prints a script for the installed command: source <(simclrv2-tf --completion=bash)."""
ENDS = {
    0: "Done.",
    1: "A bug; a traceback is printed, and written to run.log of a training run.",
    2: "A setting, an input or a disk that cannot be used; one line says why.",
    3: "Lost the connection to another worker or to a data service; the same command resumes.",
    130: "Ctrl-C, after a checkpoint; the same command resumes.",
    143: "SIGTERM, after a checkpoint; the same command resumes.",
}
VARIABLES = {
    "TF_CONFIG": "Workers of a run on several machines and this worker's task, as JSON.",
    "SLURM_STEP_NUM_TASKS, ...": "The same from a Slurm step with several tasks; TF_CONFIG overrides it.",
    "CUDA_VISIBLE_DEVICES": "GPUs to use; empty: none.",
    "MLFLOW_TRACKING_URI, ...": "For --tracker=mlflow; also MLFLOW_EXPERIMENT_NAME, default: simclrv2-tf.",
    "WANDB_PROJECT, ...": "For --tracker=wandb, default: simclrv2-tf. WANDB_MODE=offline needs no account.",
    "TF_CPP_MIN_LOG_LEVEL": "Log of TensorFlow: 0 shows everything. Default: 2; with --v=1: 0.",
    "TFDS_DATA_DIR": "Directory of the TFDS data, unless --data_dir names one.",
    "XLA_FLAGS": "Flags of XLA; with one for autotuning, its results are not cached.",
    "XDG_CACHE_HOME": "Where XLA's autotuning is cached. Default: ~/.cache.",
    "OMP_WAIT_POLICY": "Default: PASSIVE, so that waiting threads yield their core.",
    "KERAS_BACKEND": "Ignored by the command line; as a library it must be tensorflow.",
}


def help_text(argv: list[str]) -> str:
    """Returns the requested help: for the mode that the command line names, for all flags, or how to start."""
    if any("full" in argument for argument in REQUESTS & set(argv[1:])):
        ends = [f"  {status:<5}{text}" for status, text in ENDS.items()]
        variables = [f"  {name:27}{text}" for name, text in VARIABLES.items()]
        end = ["", "Exit statuses:", *ends, "", "Environment variables:", *variables]
        return "\n".join(["All flags, with their defaults.", *_describe_flags(""), FOOT, *end])
    mode = _mode_of(argv)
    if not mode:
        return START.format(modes="\n".join(f"  {name:19}{text}" for name, text in DESCRIPTIONS.items()))
    examples = [f"  python run.py --mode={mode} {arguments}" for arguments in EXAMPLES[mode]]
    title = [f"--mode={mode}: {DESCRIPTIONS[mode]}", "", "Examples:", *examples, "", "Flags, with their defaults:"]
    return "\n".join([*title, *_describe_flags(mode), FOOT])


def _describe_flags(mode: str) -> list[str]:
    """Returns the lines about the flags that a mode reads ("": all flags), in groups."""
    fields = [field for field in dataclasses.fields(Config) if not mode or is_read(field.name, mode)]
    lines = []
    for title, of_group in itertools.groupby(fields, key=lambda field: GROUP_OF[field.name].title):
        lines += ["", f"{title}:", *itertools.chain.from_iterable(map(_describe_flag, of_group))]
    return lines


def _describe_flag(field: dataclasses.Field) -> list[str]:
    default = field.default if field.default not in ("", ()) else "-"
    choices = f" [{'|'.join(field.metadata['choices'])}]" if field.metadata["choices"] else ""
    text = textwrap.fill(field.metadata["help"] + choices, 92, break_on_hyphens=False)
    default = str(default).lower() if isinstance(default, bool) else default
    return [f"  --{field.name}={default}", textwrap.indent(text, " " * 8)]


def _mode_of(argv: list[str]) -> str:
    """Returns the mode that a command line names; "" if it names none, or one that does not exist."""
    words = " ".join(argv[1:]).replace("=", " ").split()
    named = [word for flag, word in itertools.pairwise(words) if flag in ("--mode", "-mode")]
    return named[-1] if named and named[-1] in MODES else ""
