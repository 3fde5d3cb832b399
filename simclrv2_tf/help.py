"""Help of the command line: how to start, the flags of each mode, all flags."""

import dataclasses
import itertools
import textwrap
from typing import NamedTuple

from simclrv2_tf.settings.config import MODES, STAGES, Config

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
    "export": "Write the network of a run for other programs.",
    "import_checkpoint": "Turn a checkpoint of the official code into a run.",
    "preview": "Show views, time and memory of a run before it starts.",
    "summary": "Print parameters, arithmetic and memory of a network.",
    "benchmark": "Measure the input and the step of a run, and report the bottleneck.",
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
    "semi_supervised": ("--dataset=folder:/data/birds", "--dataset=digits --labels_per_class=5"),
    "evaluate": ("--checkpoint=runs/birds-ft", "--checkpoint=runs/birds-ft --dataset=folder:/data/other_birds"),
    "predict": (
        "--checkpoint=runs/birds-ft --images=/data/photos",
        "--checkpoint=runs/birds-ft --images='/data/*.jpg' --format=parquet",
    ),
    "embed": ("--checkpoint=runs/birds --format=parquet",),
    "export": ("--checkpoint=runs/birds-small", "--checkpoint=runs/birds-small --format=onnx"),
    "import_checkpoint": ("--checkpoint=/downloads/r50_1x_sk0 --model_dir=runs/r50",),
    "preview": ("--dataset=folder:/data/birds",),
    "summary": ("--resnet_depth=152 --width_multiplier=3 --sk_ratio=0.0625", "--checkpoint=runs/birds"),
    "benchmark": ("--dataset=folder:/data/birds",),
    "report": ("--model_dir=runs/birds", "--compare=runs/birds,runs/birds-ft"),
}
FOOT = """
Also: --flagfile=FILE reads flags from a file; --noNAME is --NAME=false; --v=1 shows the log of TensorFlow;
--quiet prints only warnings and errors. Flags of the official code, such as --train_mode, are translated."""


class Group(NamedTuple):
    """Flags that ``--help`` lists together: from ``first`` on, and the modes for which they matter."""

    first: str
    title: str
    modes: tuple[str, ...]


RUNS = (*STAGES, "semi_supervised")
TRAINS = (*RUNS, "preview", "benchmark")
PRETRAINS = ("pretrain", "semi_supervised", "preview", "benchmark")
CLASSIFIES = ("linear_eval", "supervised", "finetune", "semi_supervised", "preview", "benchmark")
DISTILLS = ("distill", "semi_supervised", "preview", "benchmark")
LOOKS = ("evaluate", "predict", "embed", "export")
GROUPS = (
    Group("mode", "General", MODES),
    Group("checkpoint_epochs", "Checkpoints and report", RUNS),
    Group("dataset", "Data", (*TRAINS, "evaluate", "embed")),
    Group("method", "Network", (*PRETRAINS, "supervised", "distill", "summary")),
    Group("train_batch_size", "Optimization", TRAINS),
    Group("temperature", "Pretraining objective", PRETRAINS),
    Group("crop_area_min", "Augmentation", TRAINS),
    Group("ft_proj_selector", "Fine-tuning and distillation", (*CLASSIFIES, "distill")),
    Group("eval_batch_size", "Devices, speed and memory", (*TRAINS, *LOOKS)),
)
MODES_OF_FLAG = {  # where they are not those of the group
    "checkpoint": ("pretrain", "linear_eval", "finetune", *DISTILLS, *LOOKS, "summary", "import_checkpoint"),
    "recipe": (*TRAINS, "summary"),
    "stage": ("semi_supervised",),
    "seed": (*TRAINS, *LOOKS),
    "format": ("export", "embed", "predict"),
    "compare": ("report",),
    "override_config": (*RUNS, "import_checkpoint"),
    "images": ("predict",),
    "max_corrupt_share": (*TRAINS, "evaluate", "embed", "predict"),
    "method": PRETRAINS,
    "encoder": (*TRAINS, *LOOKS, "summary"),
    "trust_run_code": (*TRAINS, *LOOKS, "summary"),
    "image_size": (*TRAINS, *LOOKS, "summary"),
    "global_bn": TRAINS,
    "batch_norm_decay": TRAINS,
    "train_batch_size": (*TRAINS, "summary"),
    "temperature": (*PRETRAINS, "distill"),
    "memory_size": (*PRETRAINS, "summary"),
    "color_jitter_strength": PRETRAINS,
    "use_blur": PRETRAINS,
    "eval_resize": (*TRAINS, *LOOKS, "import_checkpoint"),
    "ft_proj_selector": (*CLASSIFIES, "distill", "import_checkpoint"),
    "teacher": DISTILLS,
    "distill_alpha": DISTILLS,
    "grad_cache_micro_batch": PRETRAINS,
}


def help_text(argv: list[str]) -> str:
    """Returns the requested help: of the mode that the command line names, of all flags, or how to start."""
    if any("full" in argument for argument in REQUESTS & set(argv[1:])):
        return "\n".join(["All flags, with their defaults.", *_describe_flags(""), FOOT])
    mode = _mode_of(argv)
    if not mode:
        return START.format(modes="\n".join(f"  {name:19}{text}" for name, text in DESCRIPTIONS.items()))
    examples = [f"  python run.py --mode={mode} {arguments}" for arguments in EXAMPLES[mode]]
    title = [f"--mode={mode}: {DESCRIPTIONS[mode]}", "", "Examples:", *examples, "", "Flags, with their defaults:"]
    return "\n".join([*title, *_describe_flags(mode), FOOT])


def _describe_flags(mode: str) -> list[str]:
    """Returns the lines about the flags that a mode reads ("": about all flags), in groups."""
    lines, starts, group, printed = [], {group.first: group for group in GROUPS}, GROUPS[0], ""
    for field in dataclasses.fields(Config):
        group = starts.get(field.name, group)
        if mode and mode not in MODES_OF_FLAG.get(field.name, group.modes):
            continue
        if printed != group.title:
            lines += ["", f"{group.title}:"]
            printed = group.title
        lines += _describe_flag(field)
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
