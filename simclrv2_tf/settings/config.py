"""All settings in one place: flag, default, bounds, unit and meaning.

``Config`` is frozen and flat. Every field is a flag of the same name (``cli.py`` defines them). Names and defaults are
those of the official code, so an official command line works here once its ``--mode`` / ``--train_mode`` is changed.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import ConfigVersionError, SettingError

CONFIG_VERSION = 1  # of config.json; raised when a setting is renamed, removed or given another meaning

UNNAMED_RECIPES = ("auto", "official", "own_images", "none")  # values of --recipe that name no recipe
STAGES = ("pretrain", "linear_eval", "supervised", "finetune", "distill")
FORMATS = {"export": ("saved_model", "litert", "onnx", "tf1_checkpoint"), "embed": ("npz", "parquet"),
           "predict": ("csv", "parquet", "jsonl")}  # fmt: skip
MODES = (
    *("pretrain", "finetune", "distill", "linear_eval", "supervised", "semi_supervised", "evaluate", "predict"),
    *("embed", "export", "import_checkpoint", "preview", "summary", "benchmark", "report"),
)


def _setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    tags: str = "",
) -> Any:
    """Defines a field of ``Config``.

    Args:
        choices, minimum, above, maximum: the allowed values; ``above`` excludes its bound.
        tags: separated by spaces:
            ``network``: part of the network; taken from the checkpoint that a run starts from, and fixed by it.
            ``encoder``: of these, the ones that make a student's encoder that of its teacher.
            ``images``: which images are used, and how; by default as in the run that a run starts from.
            ``not_inherited``: all settings but these are taken from the run that a mode looks at.
            ``resume_ok``: may change when a run is resumed.
    """
    bounds = dict(choices=choices, minimum=minimum, above=above, maximum=maximum)
    return dataclasses.field(default=default, metadata=dict(help=help, tags=frozenset(tags.split()), **bounds))


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one run, checked on construction.

    Raises:
        SettingError: naming the flag and the value, if a value is outside its bounds or two values contradict.
    """

    mode: str = _setting("pretrain", "What to do.", choices=MODES, tags="not_inherited")
    model_dir: str = _setting(
        "", "Directory of the run. Default: runs/RECIPE-MODE or runs/DATASET-MODE.", tags="not_inherited resume_ok"
    )
    checkpoint: str = _setting(
        "",
        "Run to start from: a model directory (its newest checkpoint) or one checkpoint. For import_checkpoint: a "
        "checkpoint of the official code, local or on gs://.",
        tags="not_inherited",
    )
    recipe: str = _setting(
        "auto",
        "Named set of settings; flags override it. help: print all recipes; auto: the recipe named as the data set, if "
        "there is one; official (or none): the defaults of the official code.",
        tags="not_inherited resume_ok",
    )
    stage: tuple[str, ...] = _setting(
        (), "A setting of one stage only, as finetune.learning_rate=0.1; repeatable.", tags="not_inherited resume_ok"
    )
    seed: int = _setting(0, "Random seed of data order, augmentation and weights.", minimum=0, maximum=2**32 - 1)
    format: str = _setting(
        "auto",
        "For export: saved_model, litert (TFLite), onnx (needs requirements-onnx.txt) or tf1_checkpoint, with the "
        "official names. For embed: npz or parquet. For predict: csv, parquet or jsonl. auto: the first of these.",
        choices=("auto", *dict.fromkeys(name for names in FORMATS.values() for name in names)),
        tags="not_inherited resume_ok",
    )
    compare: str = _setting(
        "", "Model directories to compare in a report, separated by commas. Default: --model_dir.", tags="resume_ok"
    )

    checkpoint_epochs: int = _setting(1, "Epochs between checkpoints and evaluations.", minimum=1, tags="resume_ok")
    checkpoint_steps: int = _setting(
        0, "Steps between checkpoints and evaluations. 0: use --checkpoint_epochs.", minimum=0, tags="resume_ok"
    )
    keep_checkpoint_max: int = _setting(5, "Number of newest checkpoints to keep. 0: all.", minimum=0, tags="resume_ok")
    keep_best: str = _setting(
        "none",
        "Also keep, in checkpoints/best, the checkpoint of the lowest loss or the highest top-1.",
        choices=("none", "loss", "top1"),
        tags="resume_ok",
    )
    on_checkpoint_error: str = _setting(
        "stop", "If a checkpoint cannot be written, as on a full disk.", choices=("stop", "continue"), tags="resume_ok"
    )
    override_config: bool = _setting(
        False, "Resume even if settings or training images have changed.", tags="resume_ok"
    )
    report: bool = _setting(True, "Write figures and report.html at each evaluation and at the end.", tags="resume_ok")
    callbacks: str = _setting(
        "", "Keras callbacks, as package.module:factory; several separated by commas.", tags="not_inherited resume_ok"
    )

    dataset: str = _setting(
        "imagenet2012",
        "digits, any TFDS name, folder:/path (one sub-folder of images per class, or train, test and unlabelled with "
        "such sub-folders; no sub-folders: unlabelled) or npz:/path (x_train, y_train, x_test, y_test, x_unlabelled).",
        tags="images",
    )
    data_dir: str = _setting("", "Directory of the TFDS data. Default: that of TFDS.", tags="images resume_ok")
    train_split: str = _setting("train", "Split to train on; all: every split but unlabelled.")
    eval_split: str = _setting("", "Split to evaluate on. Default: validation or test, whichever exists.")
    labels_per_class: int = _setting(0, "Labelled images per class to train on. 0: all.", minimum=0)
    label_fraction: float = _setting(
        1.0, "Fraction of the labelled images of each class to train on.", above=0, maximum=1
    )
    cache_dataset: bool = _setting(False, "Keep the encoded images in memory.", tags="resume_ok")
    images: str = _setting(
        "",
        "Images to predict: a folder, a file or a glob; several separated by commas.",
        tags="not_inherited resume_ok",
    )
    max_corrupt_share: float = _setting(
        0.05, "Corrupt images are skipped up to this fraction.", minimum=0, maximum=1, tags="resume_ok"
    )
    max_file_mb: int = _setting(200, "A larger image file counts as corrupt, in MB.", minimum=1, tags="resume_ok")
    image_bits: int = _setting(
        0,
        "Bits in use of images with 16 bits per channel: 12 if 4095 is white, 10 if 1023 is. 0: all 16.",
        minimum=0,
        maximum=16,
        tags="images",
    )

    method: str = _setting(
        "simclr", "Pretraining method: simclr, or package.module:Class of your own.", tags="not_inherited"
    )
    encoder: str = _setting(
        "resnet", "Encoder: resnet, or package.module:function of your own.", tags="network encoder"
    )
    trust_run_code: bool = _setting(
        False,
        "Import the encoder function that the config.json of a run names; use it for runs you trust.",
        tags="not_inherited resume_ok",
    )
    resnet_depth: int = _setting(50, "10, 18, 34, 50, 101, 152 or 200.", tags="network encoder")
    width_multiplier: float = _setting(
        1.0, "Multiplies every channel count; may be a fraction.", above=0, tags="network encoder"
    )
    sk_ratio: float = _setting(
        0.0,
        "Selective kernels: squeeze ratio, 0.0625 in the paper; 0: off. Brings the stem and the shortcuts of ResNet-D, "
        "as in the released models. Needs depth 50 or more.",
        minimum=0,
        tags="network encoder",
    )
    se_ratio: float = _setting(0.0, "Squeeze-and-excite: squeeze ratio. 0: off.", minimum=0, tags="network encoder")
    stem: str = _setting(
        "auto",
        "imagenet: 7x7 stride 2, max-pool; cifar: 3x3 stride 1; auto: cifar up to 32 px.",
        choices=("auto", "imagenet", "cifar"),
        tags="network",
    )
    image_size: int = _setting(224, "Size of the views in px.", minimum=8, maximum=4096, tags="images")
    proj_head_mode: str = _setting(
        "nonlinear", "Projection head.", choices=("none", "linear", "nonlinear"), tags="network"
    )
    num_proj_layers: int = _setting(3, "Layers of a nonlinear projection head.", minimum=1, tags="network")
    proj_out_dim: int = _setting(128, "Output dimension of the projection head.", minimum=1, tags="network")
    global_bn: bool = _setting(True, "Batch-norm statistics over all replicas instead of per replica.")
    batch_norm_decay: float = _setting(0.9, "Momentum of the moving batch-norm statistics.", minimum=0, maximum=1)

    train_batch_size: int = _setting(512, "Images per step, over all replicas.", minimum=1)
    train_epochs: int = _setting(100, "Epochs to train.", minimum=0, maximum=10**6)
    train_steps: int = _setting(0, "Steps to train. 0: use --train_epochs.", minimum=0, maximum=10**9)
    optimizer: str = _setting("lars", "lars, momentum (Nesterov) or adam.", choices=("lars", "momentum", "adam"))
    on_nan: str = _setting(
        "stop",
        "What to do if the loss or a gradient is NaN or infinite: stop, or skip the update.",
        choices=("stop", "skip"),
        tags="resume_ok",
    )
    learning_rate: float = _setting(0.3, "Base learning rate, before scaling.", minimum=0)
    learning_rate_scaling: str = _setting(
        "linear", "linear: x batch/256; sqrt: x sqrt(batch).", choices=("linear", "sqrt")
    )
    warmup_epochs: float = _setting(10.0, "Epochs of linear warm-up before the cosine decay.", minimum=0)
    weight_decay: float = _setting(1e-6, "L2 weight decay.", minimum=0)
    momentum: float = _setting(0.9, "Momentum of the lars and momentum optimizers.", minimum=0, maximum=1)

    temperature: float = _setting(
        0.1, "NT-Xent temperature; for distill, the softmax temperature of teacher and student.", above=0
    )
    hidden_norm: bool = _setting(True, "L2-normalize the projections before NT-Xent.")
    lineareval_while_pretraining: bool = _setting(
        True, "Train a linear classifier on the detached features during pretraining."
    )
    memory_size: int = _setting(
        0, "Queue of negatives from a moving-average encoder (MoCo); 65536 in the paper. 0: none.", minimum=0
    )
    ema_decay: float = _setting(0.999, "Decay of the moving-average encoder of --memory_size.", minimum=0, maximum=1)

    crop_area_min: float = _setting(
        0.08, "Smallest random crop, as a fraction of the image area.", above=0, maximum=1, tags="images"
    )
    use_flip: bool = _setting(True, "Random horizontal flip; turn it off for digits and text.", tags="images")
    color_jitter_strength: float = _setting(1.0, "1 for ImageNet, 0.5 for CIFAR, 0: no colour changes.", minimum=0)
    use_blur: bool = _setting(True, "Gaussian blur on half of the pretraining views.")
    resize_method: str = _setting(
        "bicubic", "Interpolation for the crops of training.", choices=("bicubic", "bilinear"), tags="images"
    )
    jpeg_scaling: bool = _setting(
        False,
        "Decode JPEGs at 1/2, 1/4 or 1/8 of their size where no crop falls below image_size: faster for photographs of "
        "several megapixels, but smoother views than the paper's.",
        tags="images",
    )
    eval_resize: str = _setting(
        "bicubic",
        "Interpolation for evaluation and export; tf1: bicubic of TensorFlow 1, for the published weights.",
        choices=("bicubic", "bilinear", "tf1"),
        tags="images",
    )

    ft_proj_selector: int = _setting(
        0,
        "Layer of the projection head that the classifier reads. 0: the head's input; -1: its last layer.",
        minimum=-1,
    )
    fine_tune_after_block: int = _setting(
        -1, "Freeze the stem (0) and the block groups up to this one. -1: nothing.", minimum=-1, maximum=4
    )
    fine_tune_proj_head: bool = _setting(
        True, "Also fine-tune the projection head below the classifier, as in the paper; the TF1 code did not."
    )
    zero_init_logits_layer: bool = _setting(False, "Initialize the classifier with zeros.")
    teacher: str = _setting("", "Model directory or checkpoint of the teacher for distill.")
    distill_alpha: float = _setting(
        1.0, "Weight of the distillation loss; the rest is supervised, on the labelled images.", minimum=0, maximum=1
    )

    eval_batch_size: int = _setting(256, "Images per evaluation step, over all replicas.", minimum=1)
    eval_steps: int = _setting(0, "Evaluation steps. 0: the whole split.", minimum=0)
    mixed_precision: str = _setting(
        "auto",
        "auto: bfloat16 on TPUs and GPUs that support it; float64: to compare runs digit by digit.",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    jit_compile: str = _setting(
        "auto", "Compile the step with XLA; auto: on a single GPU and on TPUs.", choices=("auto", "true", "false")
    )
    steps_per_execution: int = _setting(
        0,
        "Training steps per host call. 0 = auto: 1 on CPU, 10 on GPU/TPU, 100 for images up to 32 px.",
        minimum=0,
        tags="resume_ok",
    )
    resident_mb: int = _setting(
        4000,
        "Keep images of equal size in device memory if they take at most this many MB; larger data sets, and those of "
        "several workers, are copied batch by batch.",
        minimum=0,
        tags="resume_ok",
    )
    grad_cache_micro_batch: int = _setting(
        0,
        "GradCache, to pretrain with less memory: images per replica whose activations are in memory at a time. Each "
        "is embedded twice; the loss sees the whole batch, batch norm the micro-batches of all replicas. 0: off.",
        minimum=0,
    )
    deterministic: bool = _setting(
        False, "Slower, deterministic kernels: a resumed run equals an uninterrupted one bit by bit.", tags="resume_ok"
    )
    remat: bool = _setting(
        False, "Recompute activations inside residual blocks (gradient checkpointing): less memory.", tags="resume_ok"
    )
    cpu_replicas: int = _setting(
        0, "Split the CPU into this many logical devices, to test replicas.", minimum=0, tags="resume_ok"
    )
    worker_timeout: int = _setting(
        600, "Seconds to wait at the start for other workers and data services.", minimum=1, tags="resume_ok"
    )
    data_service: str = _setting(
        "",
        "Machines that decode the training images, grpc://HOST:PORT, several separated by commas. Each runs python -m "
        "simclrv2_tf.data.service --address=HOST:PORT.",
        tags="resume_ok",
    )
    use_tpu: bool = _setting(False, "Train on a TPU.", tags="resume_ok")
    tpu_name: str = _setting("", "TPU: NAME, PROJECT/ZONE/NAME or a grpc address; local on a TPU VM.", tags="resume_ok")

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        def refuse(flag: str, why: str) -> None:
            raise SettingError(f"--{flag}={getattr(self, flag)}: {why}")

        if self.resnet_depth not in (10, 18, 34, 50, 101, 152, 200):
            refuse("resnet_depth", "must be 10, 18, 34, 50, 101, 152 or 200")
        if self.sk_ratio and self.resnet_depth < 50:
            refuse("sk_ratio", f"selective kernels need --resnet_depth of 50 or more, not {self.resnet_depth}")
        if self.sk_ratio and self.stem_kind == "cifar" and self.image_size > 32:
            refuse("stem", "selective kernels with the cifar stem are for images up to 32 px")
        if self.ft_proj_selector > self.head_layers:
            refuse("ft_proj_selector", f"the projection head has only {self.head_layers} layers")
        if 0 < self.image_bits < 8:
            refuse("image_bits", "must be 8 to 16, or 0 for all 16")
        if self.labels_per_class and self.label_fraction < 1:
            refuse("label_fraction", f"cannot be combined with --labels_per_class={self.labels_per_class}; give one")
        if self.mode == "pretrain" and self.train_batch_size == 1 and not self.memory_size:
            refuse("train_batch_size", "pretrain contrasts the images of a batch; use 2 or more, or --memory_size")
        if not self.train_epochs and not self.train_steps:
            refuse("train_epochs", "set --train_epochs or --train_steps above 0")
        if self.mode == "distill" and not self.teacher:
            refuse("teacher", "distill needs the model directory of a fine-tuned run")
        if self.mode in ("evaluate", "predict", "embed", "export", "linear_eval") and not self.checkpoint:
            refuse("checkpoint", f"{self.mode} needs the model directory of a trained run")
        if self.mode == "predict" and not self.images:
            refuse("images", "predict needs a folder, files separated by commas, or a glob")
        if self.mode == "import_checkpoint" and not self.checkpoint:
            refuse("checkpoint", "import_checkpoint needs a checkpoint of the official code")
        if "://" in self.model_dir:
            refuse("model_dir", "must be a local or mounted directory, because its files are locked and replaced")
        if self.mode in FORMATS and self.format not in ("auto", *FORMATS[self.mode]):
            refuse("format", f"{self.mode} writes {', '.join(FORMATS[self.mode])}")

    @property
    def output_format(self) -> str:
        """``format``, with ``auto`` resolved."""
        return FORMATS[self.mode][0] if self.format == "auto" else self.format

    @property
    def head_layers(self) -> int:
        """Number of layers of the projection head: 0 without one, 1 for a linear one."""
        return {"none": 0, "linear": 1, "nonlinear": self.num_proj_layers}[self.proj_head_mode]

    @property
    def stem_kind(self) -> str:
        """``imagenet`` or ``cifar``, with ``auto`` resolved."""
        if self.stem != "auto":
            return self.stem
        return "cifar" if self.image_size <= 32 else "imagenet"

    @property
    def run_dir(self) -> str:
        """``model_dir``, or its default, which has the name of the recipe, the folder, the file or the data set."""
        if self.recipe not in UNNAMED_RECIPES:
            name = self.recipe
        else:
            kind, _, place = self.dataset.rpartition(":")
            name = pathlib.PurePath(place).stem if kind == "npz" else pathlib.PurePath(place).name if kind else place
        return self.model_dir or f"runs/{name.replace('/', '_') or 'images'}-{self.mode}"

    def replace(self, **settings: Any) -> "Config":
        """Returns a copy with some settings changed, checked again."""
        return dataclasses.replace(self, **settings)

    def to_json(self) -> str:
        """Serializes ``config_version`` and every setting, one per line."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(Config)}
        return json.dumps({"config_version": CONFIG_VERSION, **settings}, indent=1)

    @staticmethod
    def from_json(text: str) -> "Config":
        """Parses the text of ``to_json``. Unknown names are ignored, missing ones take their defaults.

        Raises:
            ConfigVersionError: if it was written by a version with another ``CONFIG_VERSION``.
            SettingError: if it is damaged, or a value is outside its bounds.
        """
        damaged = SettingError("config.json is damaged; restore the file or delete the model directory")
        try:
            content = dict(json.loads(text).items())
        except (ValueError, AttributeError, RecursionError):
            raise damaged from None
        if content.get("config_version") != CONFIG_VERSION:
            raise ConfigVersionError(
                f"config.json has config_version {content.get('config_version')}, but this version of simclrv2_tf "
                f"reads {CONFIG_VERSION}; train again, or use the version that wrote it"
            )
        values = {}
        for field in (field for field in dataclasses.fields(Config) if field.name in content):
            value, kind = content[field.name], type(field.default)
            value = tuple(value) if kind is tuple and isinstance(value, list) else value
            if type(value) is not kind and (type(value), kind) != (int, float):
                raise damaged
            values[field.name] = value
        return Config(**values)


def tagged(tag: str) -> tuple[str, ...]:
    """Names of the settings with a tag; ``_setting`` explains the tags."""
    return tuple(field.name for field in dataclasses.fields(Config) if tag in field.metadata["tags"])


def unknown_setting_error(name: str) -> SettingError:
    """Error for a name that is not a setting."""
    return SettingError(f"{name}: there is no such setting (see python run.py --help)")


def parse_value(name: str, text: str) -> Any:
    """Parses the text of a setting as the command line would.

    Raises:
        SettingError: if there is no such setting or the text is not of its type.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields or name == "stage":
        raise unknown_setting_error(name)
    kind = type(fields[name].default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise SettingError(f"--{name}={text}: not a value of type {kind.__name__}") from None


def check_bounds(values: Mapping[str, Any]) -> None:
    """Raises SettingError, naming the flag and the value, if one of the named settings is outside its bounds."""
    for field in dataclasses.fields(Config):
        if field.name not in values:
            continue
        value, bounds, why = values[field.name], field.metadata, ""
        if bounds["choices"] and value not in bounds["choices"]:
            why = f"must be one of {', '.join(bounds['choices'])}"
        elif isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
            value, why = repr(value), "must be UTF-8"  # as file names and file contents must be
        elif isinstance(value, float) and not math.isfinite(value):
            why = "must be a finite number"
        elif bounds["minimum"] is not None and value < bounds["minimum"]:
            why = f"must be {bounds['minimum']} or more"
        elif bounds["above"] is not None and value <= bounds["above"]:
            why = f"must be above {bounds['above']}"
        elif bounds["maximum"] is not None and value > bounds["maximum"]:
            why = f"must be {bounds['maximum']} or less"
        if why:
            raise SettingError(f"--{field.name}={value}: {why}")
