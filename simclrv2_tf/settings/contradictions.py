"""Checks for settings that exclude each other, or that a mode requires."""

from typing import TYPE_CHECKING

from simclrv2_tf.errors import SettingError, shorten
from simclrv2_tf.settings.fields import FORMATS, LOOKS
from simclrv2_tf.settings.plugins import brings_weights

if TYPE_CHECKING:
    from simclrv2_tf.settings.config import Config


def check_contradictions(config: "Config") -> None:
    """Checks constraints that involve several settings, or that bounds cannot express.

    Raises:
        SettingError: naming the flag, the value and the fix.
    """

    def refuse(flag: str, why: str) -> None:
        raise SettingError(f"--{flag}={shorten(getattr(config, flag), 200)}: {why}")

    if config.resnet_depth not in (10, 18, 34, 50, 101, 152, 200):
        refuse("resnet_depth", "must be 10, 18, 34, 50, 101, 152 or 200")
    if config.sk_ratio and config.resnet_depth < 50:
        refuse("sk_ratio", f"selective kernels need --resnet_depth of 50 or more, not {config.resnet_depth}")
    if config.sk_ratio and config.stem_kind == "cifar" and config.image_size > 32:
        refuse("stem", "selective kernels with the cifar stem are for images up to 32 px")
    if config.ft_proj_selector > config.head_layers:
        refuse("ft_proj_selector", f"the projection head has only {config.head_layers} layers")
    if 0 < config.image_bits < 8:
        refuse("image_bits", "must be 8 to 16, or 0 for all 16")
    if config.labels_per_class and config.label_fraction < 1:
        refuse("label_fraction", f"cannot be combined with --labels_per_class={config.labels_per_class}; give one")
    if config.mode == "pretrain" and config.train_batch_size == 1 and not config.memory_size:
        refuse("train_batch_size", "pretrain contrasts the images of a batch; use 2 or more, or --memory_size")
    if not config.train_epochs and not config.train_steps:
        refuse("train_epochs", "set --train_epochs or --train_steps above 0")
    if config.mode == "distill" and not config.teacher:
        refuse("teacher", "distill needs the model directory of a fine-tuned run, or a model file with logits")
    if config.mode == "supervised" and brings_weights(config.encoder):
        refuse("encoder", "supervised trains from scratch, but this encoder is trained; use --mode=finetune")
    if config.mode == "predict" and not config.checkpoint:
        refuse("checkpoint", "predict needs the model directory of a run with a classifier")
    if config.mode in (*LOOKS, "linear_eval") and not config.checkpoint and config.encoder == "resnet":
        refuse("checkpoint", f"{config.mode} needs the model directory of a trained run, or a trained --encoder")
    if config.seeds and not all(seed.isdecimal() and int(seed) < 2**32 for seed in config.seeds.split(",")):
        refuse("seeds", "must be whole numbers, separated by commas")
    if config.mode == "predict" and not config.images:
        refuse("images", "predict needs a folder, files separated by commas, or a glob")
    if config.mode == "import_checkpoint" and not config.checkpoint:
        refuse("checkpoint", "import_checkpoint needs a checkpoint of the official code")
    if "://" in config.model_dir:
        refuse("model_dir", "must be a local or mounted directory, because its files are locked and replaced")
    if config.mode in FORMATS and config.format not in ("auto", *FORMATS[config.mode]):
        refuse("format", f"{config.mode} writes {', '.join(FORMATS[config.mode])}")
