"""Every setting in one place: its flag, default, bounds, unit and meaning.

``Config`` is frozen and flat. A field is a flag of the same name (``cli.py`` makes them). The official names are kept,
so an official command line needs only its ``--mode`` / ``--train_mode`` changed.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import SettingError

MODES = (
    "pretrain",
    "finetune",
    "linear_eval",
    "supervised",
    "distill",
    "evaluate",
    "embed",
    "export",
    "summary",
    "preview",
    "benchmark",
    "tpu_preflight",
    "report",
    "import_checkpoint",
    "semi_supervised",
)
STAGES = ("pretrain", "linear_eval", "supervised", "finetune", "distill")
FORMATS = {"export": ("saved_model", "onnx", "tf1_checkpoint"), "embed": ("npz", "parquet")}


def _setting(
    default: Any,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> Any:
    metadata = dict(group=group, help=help, choices=choices, minimum=minimum, above=above, maximum=maximum)
    return dataclasses.field(default=default, metadata=metadata)


RUN, DATA, NETWORK, OPTIMISATION, OBJECTIVE, AUGMENTATION, FINE_TUNING, DEVICES = (
    "What to do, and where",
    "Data",
    "Network",
    "Optimisation",
    "Objective",
    "Augmentation",
    "Fine-tuning and distillation",
    "Devices, speed and memory",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """The resolved settings of one run. Checked when made.

    Raises:
        SettingError: naming the flag and the value, if a value is outside its bounds or two values contradict.
    """

    mode: str = _setting("pretrain", RUN, "What to do.", choices=MODES)
    model_dir: str = _setting(
        "",
        RUN,
        "Directory of the run: checkpoints, logs, results, report. Default: runs/RECIPE-MODE; runs/DATASET-MODE if no "
        "recipe is named.",
    )
    checkpoint: str = _setting(
        "",
        RUN,
        "Where to start from: the model directory of another run (its newest checkpoint) or one checkpoint; for "
        "import_checkpoint one of the official code, local or gs://.",
    )
    recipe: str = _setting(
        "auto",
        RUN,
        "A named set of settings; flags win over it. help: list them; auto: the one named as the data set, if there "
        "is one; none: the official defaults.",
    )
    stage: tuple[str, ...] = _setting(
        (), RUN, "For semi_supervised, a setting of one stage, such as finetune.learning_rate=0.1; may be repeated."
    )
    seed: int = _setting(
        0, RUN, "Seed of everything random: data order, augmentation, weights.", minimum=0, maximum=2**32 - 1
    )
    checkpoint_epochs: int = _setting(1, RUN, "Epochs between checkpoints and evaluations.", minimum=1)
    checkpoint_steps: int = _setting(0, RUN, "Steps between checkpoints; 0: use checkpoint_epochs.", minimum=0)
    keep_checkpoint_max: int = _setting(5, RUN, "Newest checkpoints to keep; 0: all.", minimum=0)
    keep_best: str = _setting(
        "none",
        RUN,
        "Also keep, in checkpoints/best, that of the lowest training loss or the highest top-1 on --eval_split.",
        choices=("none", "loss", "top1"),
    )
    on_checkpoint_error: str = _setting(
        "stop", RUN, "If a checkpoint cannot be written, as on a full disk.", choices=("stop", "continue")
    )
    override_config: bool = _setting(
        False, RUN, "Go on in a model directory although settings or images have changed since."
    )
    format: str = _setting(
        "auto",
        RUN,
        "For export: saved_model, onnx (needs the packages of requirements-onnx.txt) or tf1_checkpoint, with the "
        "official names. For embed: npz or parquet. auto: the first of these.",
        choices=("auto", *(name for names in FORMATS.values() for name in names)),
    )
    report: bool = _setting(True, RUN, "Draw the figures and report.html at each evaluation and at the end.")
    compare: str = _setting(
        "", RUN, "For report: model directories to show side by side, with commas; none: --model_dir alone again."
    )
    embedding: str = _setting(
        "pca",
        RUN,
        "How the report shows features in two dimensions; umap needs the package umap-learn.",
        choices=("pca", "tsne", "umap"),
    )
    profile_steps: str = _setting(
        "",
        RUN,
        "First and last step to profile, as 10,20; the trace is for TensorBoard's profiler (pip install xprof).",
    )
    histograms: bool = _setting(False, RUN, "Histograms of all weights for TensorBoard, at each evaluation.")

    dataset: str = _setting(
        "imagenet2012",
        DATA,
        "digits, any TFDS name, folder:/path (class sub-folders of images; none: unlabelled) or npz:/path "
        "(x_train, y_train, x_test, y_test).",
    )
    data_dir: str = _setting("", DATA, "Where TFDS finds or puts its data. Default: its own.")
    train_split: str = _setting("train", DATA, "Split to train on.")
    eval_split: str = _setting("", DATA, "Split to evaluate on. Default: validation or test, whichever there is.")
    labels_per_class: int = _setting(0, DATA, "Labelled images a class to train on; 0: all.", minimum=0)
    label_fraction: float = _setting(
        1.0, DATA, "Share of each class's labelled images to train on.", above=0, maximum=1
    )
    cache_dataset: bool = _setting(False, DATA, "Keep the encoded images in memory.")
    max_corrupt_share: float = _setting(
        0.05, DATA, "Corrupt images are skipped and counted; stop above this share of the data.", minimum=0, maximum=1
    )

    method: str = _setting("simclr", NETWORK, "Pretraining method: simclr, or package.module:Class of your own.")
    encoder: str = _setting("resnet", NETWORK, "Encoder: resnet, or package.module:function of your own.")
    callbacks: str = _setting("", RUN, "Keras callbacks: package.module:factory, several with commas.")
    resnet_depth: int = _setting(50, NETWORK, "18, 34, 50, 101, 152 or 200.")
    width_multiplier: float = _setting(1.0, NETWORK, "Multiplies every channel count; may be a fraction.", above=0)
    sk_ratio: float = _setting(
        0.0,
        NETWORK,
        "Selective kernels: the squeeze's share of channels; the paper's is 0.0625; 0: off. Also brings ResNet-D's "
        "stem and shortcuts, as in the released models. Needs depth 50 or more.",
        minimum=0,
    )
    se_ratio: float = _setting(0.0, NETWORK, "Squeeze-and-excite: the squeeze's share of channels; 0: off.", minimum=0)
    stem: str = _setting(
        "auto",
        NETWORK,
        "imagenet: 7x7 stride 2 and a max-pool; cifar: 3x3 stride 1; auto: cifar up to 32 px.",
        choices=("auto", "imagenet", "cifar"),
    )
    image_size: int = _setting(224, NETWORK, "Pixels a side of the views the network sees.", minimum=8, maximum=4096)
    proj_head_mode: str = _setting("nonlinear", NETWORK, "Projection head.", choices=("none", "linear", "nonlinear"))
    num_proj_layers: int = _setting(3, NETWORK, "Layers of a nonlinear projection head.", minimum=1)
    proj_out_dim: int = _setting(128, NETWORK, "Outputs of the projection head.", minimum=1)
    global_bn: bool = _setting(True, NETWORK, "Batch-norm statistics over all replicas, not each its own.")
    batch_norm_decay: float = _setting(0.9, NETWORK, "Momentum of the moving statistics.", minimum=0, maximum=1)

    train_batch_size: int = _setting(512, OPTIMISATION, "Images a step, over all replicas.", minimum=1)
    train_epochs: int = _setting(100, OPTIMISATION, "Epochs to train.", minimum=0, maximum=10**6)
    train_steps: int = _setting(0, OPTIMISATION, "Steps to train; 0: use train_epochs.", minimum=0, maximum=10**9)
    optimizer: str = _setting(
        "lars", OPTIMISATION, "lars, momentum (Nesterov) or adam.", choices=("lars", "momentum", "adam")
    )
    on_nan: str = _setting(
        "stop",
        OPTIMISATION,
        "If the loss or a gradient is not a finite number: stop at that step, or skip its update.",
        choices=("stop", "skip"),
    )
    learning_rate: float = _setting(0.3, OPTIMISATION, "Base learning rate, before scaling.", minimum=0)
    learning_rate_scaling: str = _setting(
        "linear", OPTIMISATION, "linear: x batch/256; sqrt: x sqrt(batch).", choices=("linear", "sqrt")
    )
    warmup_epochs: float = _setting(10.0, OPTIMISATION, "Epochs of linear warm-up, before the cosine.", minimum=0)
    weight_decay: float = _setting(1e-6, OPTIMISATION, "L2 weight decay.", minimum=0)
    momentum: float = _setting(0.9, OPTIMISATION, "Momentum of lars and momentum.", minimum=0, maximum=1)

    temperature: float = _setting(0.1, OBJECTIVE, "Of NT-Xent; in distill, of teacher and student.", above=0)
    hidden_norm: bool = _setting(True, OBJECTIVE, "L2-normalise the projections before NT-Xent.")
    lineareval_while_pretraining: bool = _setting(
        True, OBJECTIVE, "Train a linear classifier beside the encoder (it does not touch the encoder)."
    )
    memory_size: int = _setting(
        0,
        OBJECTIVE,
        "Queue of further negatives from a moving-average encoder (MoCo); the paper's is 65536.",
        minimum=0,
    )
    ema_decay: float = _setting(
        0.999, OBJECTIVE, "Decay of the moving-average encoder of --memory_size.", minimum=0, maximum=1
    )

    crop_area_min: float = _setting(
        0.08, AUGMENTATION, "Smallest random crop, as a share of the image's area.", above=0, maximum=1
    )
    use_flip: bool = _setting(True, AUGMENTATION, "Flip half of the views (wrong for digits and text).")
    color_jitter_strength: float = _setting(
        1.0, AUGMENTATION, "1 for ImageNet, 0.5 for CIFAR, 0: no colour changes.", minimum=0
    )
    use_blur: bool = _setting(True, AUGMENTATION, "Gaussian blur on half of the pretraining views.")
    resize_method: str = _setting(
        "bicubic", AUGMENTATION, "How the crops to train on are resized.", choices=("bicubic", "bilinear")
    )
    jpeg_scaling: bool = _setting(
        False,
        AUGMENTATION,
        "Decode JPEGs at a half, a quarter or an eighth of their size where no crop falls below image_size: faster for "
        "photographs of several megapixels, but smoother views than the paper's.",
    )
    eval_resize: str = _setting(
        "bicubic",
        AUGMENTATION,
        "How evaluation and the exported model resize; tf1: TensorFlow 1's bicubic, for the published weights.",
        choices=("bicubic", "bilinear", "tf1"),
    )
    augment_on: str = _setting(
        "device",
        AUGMENTATION,
        "Where crops of small images, flip, colour and blur are computed; both give the same views.",
        choices=("device", "host"),
    )

    ft_proj_selector: int = _setting(
        0, FINE_TUNING, "Layer of the projection head that the classifier reads; 0: the head's input.", minimum=0
    )
    fine_tune_after_block: int = _setting(
        -1, FINE_TUNING, "Freeze the stem (0) and the block groups up to this one; -1: nothing.", minimum=-1, maximum=4
    )
    fine_tune_proj_head: bool = _setting(
        True,
        FINE_TUNING,
        "Fine-tune the kept head layers too, as the paper says (the TF1 code left them as they were).",
    )
    zero_init_logits_layer: bool = _setting(False, FINE_TUNING, "Start the classifier at zero.")
    teacher: str = _setting("", FINE_TUNING, "For distill: the model directory or checkpoint of the teacher.")
    distill_alpha: float = _setting(
        1.0,
        FINE_TUNING,
        "Weight of distillation; the rest is supervised, on the labelled images.",
        minimum=0,
        maximum=1,
    )

    eval_batch_size: int = _setting(256, DEVICES, "Images an evaluation step, over all replicas.", minimum=1)
    eval_steps: int = _setting(0, DEVICES, "Evaluation steps; 0: the whole split.", minimum=0)
    mixed_precision: str = _setting(
        "auto",
        DEVICES,
        "auto: bfloat16 on TPUs and on GPUs that have it; float64: to compare two runs to the last digit.",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    jit_compile: str = _setting(
        "auto", DEVICES, "XLA for the step; auto: on one GPU and on TPUs.", choices=("auto", "true", "false")
    )
    steps_per_execution: int = _setting(
        0,
        DEVICES,
        "Steps a call of the devices, which stand idle in between; 0: one on CPUs, else 10, up to 32 px 100.",
        minimum=0,
    )
    resident_mb: int = _setting(
        4000,
        DEVICES,
        "Megabytes that images of one size may take in the memory of each device: then all lie there, and the step "
        "picks its own. Larger sets are copied batch by batch, and so are those of several workers.",
        minimum=0,
    )
    device_prefetch: int = _setting(
        2, DEVICES, "Batches that are copied to a GPU while it computes; 0: each when its step begins.", minimum=0
    )
    loss_tile: int = _setting(
        0,
        DEVICES,
        "Rows of NT-Xent's similarity matrix that are in memory at a time; it changes no result. 0: at most 2^21 "
        "similarities, but 128 rows.",
        minimum=0,
    )
    grad_cache_micro_batch: int = _setting(
        0,
        DEVICES,
        "In pretraining, images of a replica whose activations are in memory at a time: each is embedded twice "
        "(GradCache); the loss sees the whole batch, batch norm the micro-batches of all replicas. 0: the whole batch.",
        minimum=0,
    )
    deterministic: bool = _setting(
        False,
        DEVICES,
        "Slower kernels that give the same bits each time: a resumed run then equals a whole one exactly.",
    )
    remat: bool = _setting(
        False,
        DEVICES,
        "Keep for the gradient only what goes from residual block to residual block, and run the blocks a second time; "
        "it changes no result.",
    )
    cpu_replicas: int = _setting(
        0, DEVICES, "Split the CPU into this many logical devices, to try out replicas.", minimum=0
    )
    worker_timeout: int = _setting(
        600, DEVICES, "Seconds to wait at the start for the other workers and the data services.", minimum=1
    )
    data_service: str = _setting(
        "",
        DEVICES,
        "Machines that decode the training images, grpc://HOST:PORT, several with commas; each has run "
        "python -m simclrv2_tf.data.service --address=HOST:PORT.",
    )
    use_tpu: bool = _setting(False, DEVICES, "Train on a TPU.")
    tpu_name: str = _setting("", DEVICES, "Name or grpc address of the TPU; local on a TPU VM.")
    tpu_zone: str = _setting("", DEVICES, "Zone of the TPU.")
    gcp_project: str = _setting("", DEVICES, "Project of the TPU.")
    tpu_topology: str = _setting(
        "v4:2x2x1",
        DEVICES,
        "For tpu_preflight, the chips to compile for: v4:2x2x4 is a v4-32; also v5e:4x4, v5p:2x2x2, v6e:2x4 …",
    )
    master: str = _setting("", DEVICES, "Address of the TPU, instead of its name.")

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        def refuse(flag: str, why: str) -> None:
            raise SettingError(f"--{flag}={getattr(self, flag)}: {why}")

        if self.resnet_depth not in (18, 34, 50, 101, 152, 200):
            refuse("resnet_depth", "must be 18, 34, 50, 101, 152 or 200")
        if self.sk_ratio and self.resnet_depth < 50:
            refuse("sk_ratio", f"selective kernels need --resnet_depth of 50 or more, not {self.resnet_depth}")
        if self.sk_ratio and self.stem_kind == "cifar" and self.image_size > 32:
            refuse("stem", "selective kernels with the cifar stem are for images up to 32 px")
        if self.ft_proj_selector > self.head_layers:
            refuse("ft_proj_selector", f"the projection head has only {self.head_layers} layers")
        if self.labels_per_class and self.label_fraction < 1:
            refuse("label_fraction", f"give either this or --labels_per_class={self.labels_per_class}, not both")
        if self.mode == "pretrain" and self.train_batch_size == 1 and not self.memory_size:
            refuse("train_batch_size", "pretrain compares images with each other: give 2 or more, or --memory_size")
        if not self.train_epochs and not self.train_steps:
            refuse("train_epochs", "give --train_epochs or --train_steps above 0")
        if self.mode == "distill" and not self.teacher:
            refuse("teacher", "distill needs the model directory of a fine-tuned run")
        if self.mode in ("evaluate", "embed", "export", "linear_eval") and not self.checkpoint:
            refuse("checkpoint", f"{self.mode} needs the model directory of a trained run")
        if "://" in self.model_dir:
            refuse("model_dir", "must be a local or mounted directory, as its files are locked and replaced")
        if self.mode == "import_checkpoint" and not self.checkpoint:
            refuse("checkpoint", "import_checkpoint needs a checkpoint of the official code")
        if self.profile_steps and not re.fullmatch(r"\d+,\d+", self.profile_steps):
            refuse("profile_steps", "must look like 10,20")
        if self.profile_steps and not 0 < self.profiled[0] <= self.profiled[1]:
            refuse("profile_steps", "must be two steps from 1 on, the first one first")
        formats = FORMATS.get(self.mode, ())
        if formats and self.format not in ("auto", *formats):
            refuse("format", f"{self.mode} writes {', '.join(formats)}")

    @property
    def output_format(self) -> str:
        """``format``, with ``auto`` resolved."""
        return FORMATS[self.mode][0] if self.format == "auto" else self.format

    @property
    def profiled(self) -> tuple[int, int]:
        """First and last step to profile, counted from 1; (0, 0) for none."""
        first, _, last = self.profile_steps.partition(",")
        return int(first or 0), int(last or 0)

    @property
    def head_layers(self) -> int:
        """Layers of the projection head: 0 without one, 1 for a linear one."""
        return {"none": 0, "linear": 1, "nonlinear": self.num_proj_layers}[self.proj_head_mode]

    @property
    def stem_kind(self) -> str:
        """``imagenet`` or ``cifar``, with ``auto`` resolved."""
        if self.stem != "auto":
            return self.stem
        return "cifar" if self.image_size <= 32 else "imagenet"

    @property
    def run_dir(self) -> str:
        """``model_dir``, or its default."""
        name = self.dataset if self.recipe in ("auto", "none") else self.recipe
        return self.model_dir or f"runs/{name.replace(':', '_').replace('/', '_')}-{self.mode}"

    def replace(self, **settings: Any) -> "Config":
        """A copy with some settings changed, checked again."""
        return dataclasses.replace(self, **settings)

    def to_json(self) -> str:
        """Every setting, one a line."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The inverse of ``to_json``; settings of later versions that this one does not know are ignored."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        try:
            values = {name: value for name, value in json.loads(text).items() if name in known}
            values["stage"] = tuple(values.get("stage", ()))
            for name, value in values.items():
                if type(value) is not type(known[name].default) and (type(value), known[name].type) != (int, float):
                    raise ValueError(name)
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise SettingError("config.json: is damaged; delete the model directory or restore the file") from None
        return cls(**values)


# Settings that say what the network is: a run that starts from another's checkpoint takes them from there.
NETWORK_SETTINGS = (
    "resnet_depth",
    "width_multiplier",
    "sk_ratio",
    "se_ratio",
    "stem",
    "proj_head_mode",
    "num_proj_layers",
    "proj_out_dim",
)


def unknown_setting_error(name: str) -> SettingError:
    """What is said of a name that is no setting's."""
    return SettingError(f"{name}: there is no such setting (see python run.py --help)")


def parse_value(name: str, text: str) -> Any:
    """A setting's value from its text on the command line.

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
        if field.name in values:
            _check_bounds(field, values[field.name])


def _check_bounds(field: dataclasses.Field, value: Any) -> None:
    bounds = field.metadata
    if bounds["choices"] and value not in bounds["choices"]:
        raise SettingError(f"--{field.name}={value}: must be one of {', '.join(bounds['choices'])}")
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise SettingError(f"--{field.name}={value!r}: must be UTF-8")  # as names of files must, and what they hold
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"--{field.name}={value}: must be a finite number")
    if bounds["minimum"] is not None and value < bounds["minimum"]:
        raise SettingError(f"--{field.name}={value}: must be {bounds['minimum']} or more")
    if bounds["above"] is not None and value <= bounds["above"]:
        raise SettingError(f"--{field.name}={value}: must be above {bounds['above']}")
    if bounds["maximum"] is not None and value > bounds["maximum"]:
        raise SettingError(f"--{field.name}={value}: must be {bounds['maximum']} or less")
