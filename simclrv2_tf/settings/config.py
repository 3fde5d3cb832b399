"""All settings in one place: flag, default, bounds, unit and meaning.

``Config`` is frozen and flat. Every field is a flag of the same name (``cli.py`` defines them). Names and defaults are
those of the official code, so an official command line works here once its ``--mode`` / ``--train_mode`` is changed.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import ConfigVersionError, DamagedError, SettingError
from simclrv2_tf.schemas import JSON_OBJECT, RESOLVED, parse_json
from simclrv2_tf.settings import fields
from simclrv2_tf.settings.contradictions import check_contradictions
from simclrv2_tf.settings.fields import (
    CONV_INITS,
    CROP_SAMPLERS,
    FORMATS,
    MODES,
    RESIZE_METHODS,
    SELECTIONS,
    UNNAMED_RECIPES,
    setting,
)

CONFIG_VERSION = 1  # version of config.json; incremented when a setting is renamed, removed or changes its meaning


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of one run, checked on construction.

    Raises:
        SettingError: naming the flag and the value, if a value is outside its bounds or two values contradict.
    """

    mode: str = setting("pretrain", "What to do.", choices=MODES, tags="not_inherited")
    model_dir: str = setting(
        "", "Directory of the run. Default: runs/RECIPE-MODE or runs/DATASET-MODE.", tags="not_inherited resume_ok"
    )
    checkpoint: str = setting(
        "",
        "Run to start from: a model directory (its newest checkpoint) or one checkpoint. For import_checkpoint: a "
        "checkpoint of the official code, local or on gs://.",
        tags="not_inherited",
    )
    recipe: str = setting(
        "auto",
        "Named set of settings; flags override it. help: print all recipes; auto: the recipe named as the data set, if "
        "there is one; official (or none): the defaults of the official code.",
        tags="not_inherited resume_ok",
    )
    stage: tuple[str, ...] = setting(
        (), "Setting of one stage, such as finetune.learning_rate=0.1; repeatable.", tags="not_inherited resume_ok"
    )
    seed: int = setting(0, "Random seed of data order, augmentation and weights.", minimum=0, maximum=2**32 - 1)
    seeds: str = setting("", "For semi_supervised: one draw of labels per seed: 0,1,2.", tags="not_inherited resume_ok")
    format: str = setting(
        "auto",
        "For export: saved_model, litert (TFLite), onnx (needs the extra onnx) or tf1_checkpoint, with the "
        "official names. For embed: npz or parquet. For predict: csv, parquet or jsonl. auto: the first of these.",
        choices=("auto", *dict.fromkeys(name for names in FORMATS.values() for name in names)),
        tags="not_inherited resume_ok",
    )
    compare: str = setting(
        "", "Model directories to compare in a report, separated by commas. Default: --model_dir.", tags="resume_ok"
    )

    checkpoint_epochs: int = setting(1, "Epochs between checkpoints and evaluations.", minimum=1, tags="resume_ok")
    checkpoint_steps: int = setting(
        0, "Steps between checkpoints and evaluations. 0: use --checkpoint_epochs.", minimum=0, tags="resume_ok"
    )
    keep_checkpoint_max: int = setting(5, "Number of newest checkpoints to keep. 0: all.", minimum=0, tags="resume_ok")
    keep_best: str = setting(
        "none",
        "Also keep, in checkpoints/best, the checkpoint of the lowest loss or the highest top-1.",
        choices=("none", "loss", "top1"),
        tags="resume_ok",
    )
    on_checkpoint_error: str = setting(
        "stop", "If a checkpoint cannot be written, as on a full disk.", choices=("stop", "continue"), tags="resume_ok"
    )
    override_config: bool = setting(False, "Resume even if settings or training images have changed.", tags="resume_ok")
    report: bool = setting(True, "Write figures and report.html at each evaluation and at the end.", tags="resume_ok")
    callbacks: str = setting(
        "", "Keras callbacks, as package.module:factory; several separated by commas.", tags="not_inherited resume_ok"
    )
    tracker: str = setting(
        "",
        "Experiment trackers: mlflow, wandb or tensorboard; several separated by commas. Also for the export of a run.",
        tags="resume_ok",
    )

    dataset: str = setting(
        "imagenet2012",
        "digits, any TFDS name, folder:/path (one sub-folder of images per class, or train, test and unlabelled with "
        "such sub-folders; no sub-folders: unlabelled) or npz:/path (x_train, y_train, x_test, y_test, x_unlabelled).",
        tags="images",
    )
    data_dir: str = setting("", "Directory of the TFDS data. Default: that of TFDS.", tags="images resume_ok")
    train_split: str = setting("train", "Split to train on; all: every split but unlabelled.")
    eval_split: str = setting("", "Split to evaluate on. Default: validation or test, whichever exists.")
    labels_per_class: int = setting(0, "Labelled images per class to train on. 0: all.", minimum=0)
    label_fraction: float = setting(
        1.0, "Fraction of the labelled images of each class to train on.", above=0, maximum=1
    )
    cache_dataset: bool = setting(False, "Keep the encoded images in memory.", tags="resume_ok")
    images: str = setting(
        "",
        "Images to predict, or to select from: a folder, a file or a glob; several separated by commas.",
        tags="not_inherited resume_ok",
    )
    select_count: int = setting(50, "Number of images to select.", minimum=1, tags="not_inherited resume_ok")
    select_by: str = setting(
        "typicality",
        "typicality: typical images of clusters without a label (TypiClust); k_center: the farthest from those "
        "that are labelled or selected.",
        choices=SELECTIONS,
        tags="not_inherited resume_ok",
    )
    max_corrupt_share: float = setting(
        0.05, "Corrupt images are skipped up to this share; with --images, all.", minimum=0, maximum=1, tags="resume_ok"
    )
    max_file_mb: int = setting(200, "A larger image file counts as corrupt, in MB.", minimum=1, tags="resume_ok")
    image_bits: int = setting(
        0,
        "Bits in use of images with 16 bits per channel: 12 if 4095 is white, 10 if 1023 is. 0: all 16.",
        minimum=0,
        maximum=16,
        tags="images",
    )

    method: str = setting(
        "simclr", "Pretraining method: simclr, or package.module:Class of your own.", tags="not_inherited"
    )
    encoder: str = setting(
        "resnet",
        "Encoder: resnet, keras.applications:NAME, keras_hub:PRESET, a .keras file, a SavedModel directory, or "
        "package.module:function of your own.",
        tags="network encoder",
    )
    input_range: str = setting(
        "auto",
        "Input range of the --encoder, or of a --teacher that is a file: 0..1, -1..1, imagenet (mean and "
        "standard deviation), 0..255 or caffe (BGR minus the mean). auto: read from the model.",
        choices=("auto", "0..1", "-1..1", "imagenet", "0..255", "caffe"),
        tags="network",
    )
    trust_run_code: bool = setting(
        False,
        "Load the encoder, a function or a file, that the config.json of a run names. Only for runs that you trust.",
        tags="not_inherited resume_ok",
    )
    resnet_depth: int = setting(50, "10, 18, 34, 50, 101, 152 or 200.", tags="network encoder")
    width_multiplier: float = setting(
        1.0, "Multiplies every channel count; may be a fraction.", above=0, maximum=64, tags="network encoder"
    )
    sk_ratio: float = setting(
        0.0,
        "Selective kernels: squeeze ratio, 0.0625 in the paper; 0: off. Adds the stem and the shortcuts of ResNet-D, "
        "as in the released models. Needs depth 50 or more.",
        minimum=0,
        maximum=1,
        tags="network encoder",
    )
    se_ratio: float = setting(
        0.0, "Squeeze-and-excite: squeeze ratio. 0: off.", minimum=0, maximum=1, tags="network encoder"
    )
    stem: str = setting(
        "auto",
        "imagenet: 7x7 stride 2, max-pool; cifar: 3x3 stride 1; auto: cifar up to 32 px.",
        choices=("auto", "imagenet", "cifar"),
        tags="network",
    )
    conv_init: str = setting(
        "lecun_normal",
        "Initial convolutions of the ResNet. lecun_normal: variance 1 / fan-in, as the official code; he_fan_out: 2 / "
        "fan-out, as torchvision.",
        choices=CONV_INITS,
    )
    image_size: int = setting(224, "Size of the views in px.", minimum=8, maximum=4096, tags="images")
    proj_head_mode: str = setting(
        "nonlinear", "Projection head.", choices=("none", "linear", "nonlinear"), tags="network"
    )
    num_proj_layers: int = setting(3, "Layers of a nonlinear projection head.", minimum=1, maximum=100, tags="network")
    proj_out_dim: int = setting(
        128, "Output dimension of the projection head.", minimum=1, maximum=2**16, tags="network"
    )
    global_bn: bool = setting(True, "Batch-norm statistics over all replicas instead of per replica.")
    batch_norm_decay: float = setting(0.9, "Momentum of the moving batch-norm statistics.", minimum=0, below=1)

    train_batch_size: int = setting(512, "Images per step, over all replicas.", minimum=1, maximum=2**20)
    train_epochs: int = setting(100, "Epochs to train.", minimum=0, maximum=10**6)
    train_steps: int = setting(0, "Steps to train. 0: use --train_epochs.", minimum=0, maximum=10**9)
    optimizer: str = setting(
        "lars", "lars, momentum (Nesterov), adam or adamw.", choices=("lars", "momentum", "adam", "adamw")
    )
    on_nan: str = setting(
        "stop",
        "What to do if the loss or a gradient is NaN or infinite: stop, or skip the update.",
        choices=("stop", "skip"),
        tags="resume_ok",
    )
    learning_rate: float = setting(0.3, "Base learning rate, before scaling.", minimum=0)
    learning_rate_scaling: str = setting(
        "linear", "linear: x batch/256; sqrt: x sqrt(batch).", choices=("linear", "sqrt")
    )
    warmup_epochs: float = setting(10.0, "Epochs of linear warm-up before the cosine decay.", minimum=0, maximum=10**6)
    weight_decay: float = setting(1e-6, "L2 weight decay; for adamw decoupled, not of vectors.", minimum=0)
    momentum: float = setting(0.9, "Momentum of the lars and momentum optimizers.", minimum=0, below=1)

    temperature: float = setting(
        0.1, "NT-Xent temperature; for distill, the softmax temperature of teacher and student.", above=0
    )
    hidden_norm: bool = setting(True, "L2-normalize the projections before NT-Xent.")
    lineareval_while_pretraining: bool = setting(
        True, "Train a linear classifier on the detached features during pretraining."
    )
    memory_size: int = setting(
        0,
        "Queue of negatives from a moving-average encoder (MoCo); 65536 in the paper. 0: none.",
        minimum=0,
        maximum=10**7,
    )
    ema_decay: float = setting(0.999, "Decay of the moving-average encoder of --memory_size.", minimum=0, maximum=1)

    crop_area_min: float = setting(
        0.08, "Smallest random crop, as a fraction of the image area.", above=0, maximum=1, tags="images"
    )
    use_flip: bool = setting(True, "Random horizontal flip; turn it off for digits and text.", tags="images")
    color_jitter_strength: float = setting(1.0, "1 for ImageNet, 0.5 for CIFAR, 0: no colour changes.", minimum=0)
    use_blur: bool = setting(True, "Gaussian blur on half of the pretraining views.")
    crop_sampler: str = setting(
        "tensorflow",
        "Random crops. tensorflow: as the official code; torchvision: uniform areas, log-uniform aspects.",
        choices=CROP_SAMPLERS,
        tags="images",
    )
    resize_method: str = setting(
        "bicubic",
        "Interpolation for the crops of training; with _antialiased as in Pillow and torchvision.",
        choices=RESIZE_METHODS,
        tags="images",
    )
    jpeg_scaling: bool = setting(
        False,
        "Decode JPEGs at 1/2, 1/4 or 1/8 of their size where no crop falls below image_size: faster for photographs of "
        "several megapixels, but smoother views than the paper's.",
        tags="images",
    )
    eval_resize: str = setting(
        "bicubic",
        "Interpolation for evaluation and export; tf1: bicubic of TensorFlow 1, for the published weights.",
        choices=(*RESIZE_METHODS, "tf1"),
        tags="images",
    )

    ft_proj_selector: int = setting(
        0,
        "Layer of the projection head that the classifier reads. 0: the head's input; -1: its last layer.",
        minimum=-1,
    )
    fine_tune_after_block: int = setting(
        -1, "Freeze the stem (0) and the block groups up to this one. -1: nothing.", minimum=-1, maximum=4
    )
    fine_tune_proj_head: bool = setting(
        True, "Also fine-tune the projection head below the classifier, as in the paper; the TF1 code did not."
    )
    zero_init_logits_layer: bool = setting(False, "Initialize the classifier with zeros.")
    teacher: str = setting(
        "", "Teacher for distill: a model directory or checkpoint, or a .keras file or SavedModel with logits."
    )
    distill_alpha: float = setting(
        1.0, "Weight of the distillation loss; the rest is supervised, on the labelled images.", minimum=0, maximum=1
    )

    eval_batch_size: int = setting(256, "Images per evaluation step, over all replicas.", minimum=1, maximum=2**20)
    eval_steps: int = setting(0, "Evaluation steps. 0: the whole split.", minimum=0)
    mixed_precision: str = setting(
        "auto",
        "auto: bfloat16 on TPUs and GPUs that support it; float64: to compare runs digit by digit.",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
    )
    jit_compile: str = setting(
        "auto", "Compile the step with XLA; auto: on a single GPU and on TPUs.", choices=("auto", "true", "false")
    )
    steps_per_execution: int = setting(
        0,
        "Training steps per host call. 0 = auto: 1 on CPU, 10 on GPU/TPU, 100 for images up to 32 px.",
        minimum=0,
        tags="resume_ok",
    )
    resident_mb: int = setting(
        4000,
        "Keep images of equal size in device memory if they take at most this many MB; larger data sets, and those of "
        "several workers, are copied batch by batch.",
        minimum=0,
        tags="resume_ok",
    )
    grad_cache_micro_batch: int = setting(
        0,
        "GradCache, to pretrain with less memory: images per replica whose activations are in memory at a time. Each "
        "is embedded twice; the loss sees the whole batch, batch norm the micro-batches of all replicas. 0: off.",
        minimum=0,
    )
    deterministic: bool = setting(
        False, "Slower, deterministic kernels: a resumed run equals an uninterrupted one bit by bit.", tags="resume_ok"
    )
    remat: bool = setting(
        False, "Recompute activations inside residual blocks (gradient checkpointing): less memory.", tags="resume_ok"
    )
    cpu_replicas: int = setting(
        0, "Split the CPU into this many logical devices, to test replicas.", minimum=0, maximum=1024, tags="resume_ok"
    )
    worker_timeout: int = setting(
        600, "Seconds to wait at the start for other workers and data services.", minimum=1, tags="resume_ok"
    )
    data_service: str = setting(
        "",
        "Machines that decode the training images, grpc://HOST:PORT, several separated by commas. Each runs python -m "
        "simclrv2_tf.data.service --address=HOST:PORT.",
        tags="resume_ok",
    )
    use_tpu: bool = setting(False, "Train on a TPU.", tags="resume_ok")
    tpu_name: str = setting("", "TPU: NAME, PROJECT/ZONE/NAME or a grpc address; local on a TPU VM.", tags="resume_ok")

    def __post_init__(self) -> None:
        check_bounds(vars(self))
        check_contradictions(self)

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
            SettingError: if it is damaged.
        """
        try:
            return Config.from_content(parse_json(text, JSON_OBJECT))
        except DamagedError as error:
            raise SettingError(
                f"config.json is damaged ({error}); restore the file or delete the model directory"
            ) from None

    @staticmethod
    def from_content(content: Mapping[str, Any]) -> "Config":
        """Returns the settings in the content of a ``config.json``.

        Raises:
            ConfigVersionError: if it was written by a version with another ``CONFIG_VERSION``.
            DamagedError: with the reason, if a value has another type or is refused.
        """
        if content.get("config_version") != CONFIG_VERSION:
            raise ConfigVersionError(
                f"config.json has config_version {content.get('config_version')}, but this version of simclrv2_tf "
                f"reads {CONFIG_VERSION}; train again, or use the version that wrote it"
            )
        RESOLVED(content.get("resolved", {}), "resolved")
        try:
            return Config(**fields.parse_fields(content, dataclasses.fields(Config)))
        except SettingError as error:
            raise DamagedError(str(error)) from None


def tagged(tag: str) -> tuple[str, ...]:
    """Returns the names of the settings with a tag; ``fields.setting`` explains the tags."""
    return tuple(field.name for field in dataclasses.fields(Config) if tag in field.metadata["tags"])


def unknown_setting_error(name: str) -> SettingError:
    """Returns the error for a name that is not a setting."""
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
        return kind(text)  # type: ignore[misc]
    except (ValueError, KeyError):
        raise SettingError(f"--{name}={text}: not a value of type {kind.__name__}") from None


def check_bounds(values: Mapping[str, Any]) -> None:
    """Raises SettingError, naming the flag and the value, if one of the named settings is outside its bounds."""
    fields.check_bounds(values, dataclasses.fields(Config), "--")


def check_arguments(**values: Any) -> None:
    """Checks arguments of the library that are settings too, by the types, bounds and messages of the command line.

    Tensors are not checked.

    Raises:
        SettingError: a ValueError, naming the argument and the value.
    """
    fields.check_arguments(values, dataclasses.fields(Config))
