"""Named settings: the paper's, the official README's, and small ones. ``--recipe=NAME`` loads one, flags win over it.

``merge.py`` says what wins over what; ``--recipe=help`` prints ``format_recipes()``, which is ``docs/recipes.md``.
"""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.settings.config import STAGES

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """Top-1 accuracies, per cent.

    Attributes:
        source: where they come from.
        top1: by mode.
    """

    source: str
    top1: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of the five stages of a semi-supervised run.

    Attributes:
        summary: what it is for and what it costs.
        common: settings of every stage.
        stages: what a stage changes.
        large: what a stage changes for networks that are wider than 1 or have selective kernels.
        self_distill: what distillation into the teacher's own network changes.
        label_counts: labels a class that ``semi_supervised`` compares; none: all labels.
        published: what others report.
        measured: what this code reached.
    """

    summary: str
    common: Settings
    stages: Mapping[str, Settings]
    large: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    self_distill: Settings = dataclasses.field(default_factory=dict)
    label_counts: tuple[int, ...] = (10,)
    published: Results = Results("", {})
    measured: Results = Results("", {})

    def of_stage(self, mode: str) -> dict[str, Any]:
        """Its settings of one stage."""
        return {**self.common, **self.stages.get(mode, {})}


# The paper (arXiv 2006.10029), sections 3 and 3.1, and the official README's commands. Of supervised training the paper
# says only how long it is; the rest is taken from pretraining.
LIKE_PRETRAINING = dict(
    train_batch_size=4096, learning_rate=0.1, learning_rate_scaling="sqrt", weight_decay=1e-4,
)  # fmt: skip
IMAGENET_STAGES: dict[str, Settings] = {
    "pretrain": dict(LIKE_PRETRAINING, train_epochs=800, warmup_epochs=40.0, temperature=0.1),
    "linear_eval": dict(
        optimizer="momentum", train_batch_size=4096, train_epochs=90, learning_rate=0.1, warmup_epochs=0.0,
        weight_decay=1e-6, zero_init_logits_layer=True,
    ),
    "supervised": dict(LIKE_PRETRAINING, train_epochs=90, warmup_epochs=4.5),
    "finetune": dict(
        train_batch_size=1024, train_epochs=30, learning_rate=0.005, learning_rate_scaling="sqrt", warmup_epochs=0.0,
        weight_decay=0.0, zero_init_logits_layer=True,
    ),
    "distill": dict(LIKE_PRETRAINING, train_epochs=400, warmup_epochs=20.0, temperature=1.0),
}  # fmt: skip
# Depth, width, selective kernels: top-1 % fine-tuned on 1 %, 10 % and all labels, linear, supervised (paper, Table 1).
PAPER_NETWORKS: dict[tuple[int, int, bool], tuple[float, ...]] = {
    (50, 1, False): (57.9, 68.4, 76.3, 71.7, 76.6),
    (50, 1, True): (64.5, 72.1, 78.7, 74.6, 78.5),
    (50, 2, False): (66.3, 73.9, 79.1, 75.6, 77.8),
    (50, 2, True): (70.6, 77.0, 81.3, 77.7, 79.3),
    (101, 1, False): (62.1, 71.4, 78.2, 73.6, 78.0),
    (101, 1, True): (68.3, 75.1, 80.6, 76.3, 79.6),
    (101, 2, False): (69.1, 75.8, 80.7, 77.0, 78.9),
    (101, 2, True): (73.2, 78.8, 82.4, 79.0, 80.1),
    (152, 1, False): (64.0, 73.0, 79.3, 74.5, 78.3),
    (152, 1, True): (70.0, 76.5, 81.3, 77.2, 79.9),
    (152, 2, False): (70.2, 76.6, 81.1, 77.4, 79.1),
    (152, 2, True): (74.2, 79.4, 82.9, 79.4, 80.4),
    (152, 3, True): (74.9, 80.1, 83.1, 79.8, 80.5),
}
PAPER = "https://arxiv.org/abs/2006.10029 (ResNet-50)"
OFFICIAL = "https://github.com/google-research/simclr"


def _imagenet(summary: str, top1: Mapping[str, str], subset: str = "", **finetune: Any) -> Recipe:
    """The paper's recipe, whose labels are all of ImageNet's or those of a subset."""
    stages = IMAGENET_STAGES | {"finetune": dict(IMAGENET_STAGES["finetune"], **finetune)}
    if subset:
        # an evaluation of 50,000 images takes longer than an epoch of so few
        labelled = {"dataset": f"imagenet2012_subset/{subset}", "train_batch_size": 1024, "checkpoint_epochs": 10}
        stages |= {mode: dict(stages[mode], **labelled) for mode in ("finetune", "supervised")}
    return Recipe(
        summary=summary,
        common=dict(dataset="imagenet2012"),
        stages=stages,
        large={"finetune": dict(learning_rate=0.002)},
        self_distill=dict(temperature=0.1),
        label_counts=(),
        published=Results(PAPER, top1),
    )


# Pretraining and linear evaluation as in the official README, fine-tuning and distillation as in the paper.
CIFAR_STAGES: dict[str, Settings] = {
    "pretrain": dict(
        train_batch_size=512, train_epochs=1000, checkpoint_epochs=10, learning_rate=1.0, warmup_epochs=10.0,
        weight_decay=1e-4, temperature=0.5, color_jitter_strength=0.5, use_blur=False,
    ),
    "linear_eval": dict(
        optimizer="momentum", train_batch_size=512, train_epochs=100, checkpoint_epochs=10, learning_rate=0.1,
        warmup_epochs=0.0, weight_decay=0.0, zero_init_logits_layer=True,
    ),
    "supervised": dict(
        optimizer="momentum", train_batch_size=512, train_epochs=200, checkpoint_epochs=10, learning_rate=0.1,
        warmup_epochs=5.0, weight_decay=5e-4,
    ),
    "finetune": dict(
        train_batch_size=512, train_epochs=60, checkpoint_epochs=10, learning_rate=0.005, learning_rate_scaling="sqrt",
        warmup_epochs=0.0, weight_decay=0.0, zero_init_logits_layer=True, ft_proj_selector=1,
    ),
    "distill": dict(
        train_batch_size=512, train_epochs=400, checkpoint_epochs=10, learning_rate=1.0, warmup_epochs=10.0,
        weight_decay=1e-4, temperature=1.0,
    ),
}  # fmt: skip

# Stages of a small run, in which few labels mean few images: the batch is cut to them, the rates are not scaled up.
LABELLED = dict(
    optimizer="momentum", train_batch_size=50, warmup_epochs=0.0, learning_rate_scaling="sqrt", checkpoint_steps=1000
)
SMALL_STAGES: dict[str, Settings] = {
    "pretrain": dict(
        train_batch_size=128, train_epochs=60, checkpoint_epochs=6, learning_rate=1.0, warmup_epochs=5.0,
        weight_decay=1e-4, temperature=0.5, color_jitter_strength=0.5, use_blur=False,
    ),
    "linear_eval": dict(
        optimizer="momentum", learning_rate=0.3, weight_decay=0.0, warmup_epochs=0.0, train_batch_size=256,
        train_steps=100, checkpoint_steps=100,
    ),
    "supervised": dict(LABELLED, learning_rate=0.04, weight_decay=5e-4, train_steps=200),
    "finetune": dict(LABELLED, learning_rate=0.0014, weight_decay=5e-4, train_steps=100, ft_proj_selector=1),
    "distill": dict(
        optimizer="momentum", learning_rate=0.1, weight_decay=5e-4, train_batch_size=128, train_steps=80,
        checkpoint_steps=80, warmup_epochs=0.5, temperature=1.0,
    ),
}  # fmt: skip

STUDY = "`benchmarks/paper_claims.py` on two CPU cores (AMD EPYC), 2026-11-26, three seeds"
MANY = dict(train_batch_size=128, checkpoint_steps=5000, crop_area_min=0.6)  # labels, where they are more than a few

# Fashion-MNIST at 16 px for a CPU and at 32 px, with whole networks, for a GPU.
FASHION_16PX = SMALL_STAGES | {
    "pretrain": dict(
        optimizer="momentum", train_batch_size=128, train_epochs=15, checkpoint_epochs=3, learning_rate=0.25,
        warmup_epochs=1.0, weight_decay=1e-4, temperature=0.2, crop_area_min=0.2, use_blur=False,
    ),
    "linear_eval": dict(
        SMALL_STAGES["linear_eval"], learning_rate=1.0, train_steps=2350, checkpoint_steps=2350, crop_area_min=1.0,
    ),
    "supervised": dict(SMALL_STAGES["supervised"], train_steps=800, crop_area_min=0.9),
    "finetune": dict(SMALL_STAGES["finetune"], train_steps=400),
    "distill": dict(
        SMALL_STAGES["distill"], train_steps=0, train_epochs=10, checkpoint_steps=0, checkpoint_epochs=5,
        warmup_epochs=0.2,
    ),
}  # fmt: skip
FASHION_32PX = FASHION_16PX | {
    "pretrain": dict(
        FASHION_16PX["pretrain"], train_batch_size=512, train_epochs=100, checkpoint_epochs=20, warmup_epochs=5.0,
        weight_decay=5e-4,
    ),
}  # fmt: skip


def _fashion_mnist(
    summary: str, image_size: int, counts: tuple[int, ...], measured: Results = Recipe.measured, **changed: Settings
) -> Recipe:
    """Fashion-MNIST with so many labels a class (none: all), and what they change in each stage that sees them."""
    stages, width = (FASHION_16PX, 0.25) if image_size == 16 else (FASHION_32PX, 1.0)
    labels = {"labels_per_class": counts[0] if counts else 0}
    return Recipe(
        summary=summary,
        common=dict(
            dataset="fashion_mnist", resnet_depth=18, width_multiplier=width, image_size=image_size, crop_area_min=0.6,
            eval_batch_size=512,
        ),
        stages=stages | {mode: stages[mode] | labels | settings for mode, settings in changed.items()},
        self_distill=dict(temperature=0.1),
        label_counts=counts,
        measured=measured,
    )  # fmt: skip


RECIPES: dict[str, Recipe] = {
    "imagenet": _imagenet(
        "ImageNet as in the paper: a ResNet-50 (the table at the end has the other networks), fine-tuned on all labels "
        "from the head's input. By the official README 100 epochs of pretraining take 6 hours on 32 TPU v3.",
        {
            "linear_eval": f"71.7 with the memory, 71.1 without ({OFFICIAL}/issues/77)",
            "supervised": "76.6",
            "finetune": "76.3",
        },
    ),
    "imagenet_1pct": _imagenet(
        "The same with 1 % of the labels, fine-tuned from the head's first layer.",
        {"finetune": "57.9", "distill": "73.9 from a bigger teacher"},
        subset="1pct", train_epochs=60, ft_proj_selector=1,
    ),
    "imagenet_10pct": _imagenet(
        "The same with 10 % of the labels, fine-tuned from the head's first layer.",
        {"finetune": "68.4", "distill": "77.5 from a bigger teacher"},
        subset="10pct", ft_proj_selector=1,
    ),
    "cifar10": Recipe(
        summary="CIFAR-10 as in the official README, a ResNet-18.",
        common=dict(dataset="cifar10", resnet_depth=18, image_size=32),
        stages=CIFAR_STAGES,
        self_distill=dict(temperature=0.1),
        label_counts=(4, 25, 400),
        published=Results(OFFICIAL, {"linear_eval": "about 91"}),
    ),
    "cifar10_sgd": Recipe(
        summary="The same in a tenth of the time: 100 epochs of SGD.",
        common=dict(dataset="cifar10", resnet_depth=18, image_size=32, crop_area_min=0.2),
        stages=CIFAR_STAGES | {
            "pretrain": dict(
                CIFAR_STAGES["pretrain"], train_epochs=100, optimizer="momentum", learning_rate=0.06,
                warmup_epochs=0.0, weight_decay=5e-4,
            ),
            "distill": dict(CIFAR_STAGES["distill"], train_epochs=100),
        },
        self_distill=dict(temperature=0.1),
        label_counts=(4, 25, 400),
    ),
    "cifar100": Recipe(
        summary="CIFAR-100, as CIFAR-10.",
        common=dict(dataset="cifar100", resnet_depth=18, image_size=32),
        stages=CIFAR_STAGES,
        self_distill=dict(temperature=0.1),
        label_counts=(4, 25, 100),
        published=Results(
            "https://github.com/vturrisi/solo-learn (SimCLR, ResNet-18, 1,000 epochs)",
            {"pretrain": "online classifier 65.8"},
        ),
    ),
    "stl10": Recipe(
        summary="STL-10, a ResNet-18: its 100,000 unlabelled images to pretrain on and to distil with, its 5,000 "
        "labelled ones for the rest. They take 3 GB of memory.",
        common=dict(dataset="stl10", resnet_depth=18, image_size=96),
        stages=CIFAR_STAGES | {
            "pretrain": dict(
                train_split="unlabelled", train_batch_size=512, train_epochs=100, checkpoint_epochs=10,
                learning_rate=1.0, warmup_epochs=10.0, weight_decay=1e-4, temperature=0.5,
            ),
            "distill": dict(CIFAR_STAGES["distill"], train_split="unlabelled", train_epochs=100),
        },
        self_distill=dict(temperature=0.1),
        label_counts=(10, 100),
        published=Results(
            "https://github.com/Spijkervet/SimCLR (ResNet-18, batch 256, 100 epochs of Adam)", {"linear_eval": "76.5"}
        ),
    ),
    "imagenette": Recipe(
        summary="Imagenette, ten easy classes of ImageNet, at 128 pixels as in Lightly's benchmark; a ResNet-18.",
        common=dict(dataset="imagenette/160px-v2", resnet_depth=18, image_size=128),
        stages={mode: dict(CIFAR_STAGES[mode], train_batch_size=256) for mode in CIFAR_STAGES} | {
            # Lightly's rate 0.06 and decay 5e-4, for a loss that is the sum over both views and not their mean.
            "pretrain": dict(
                optimizer="momentum", train_batch_size=256, train_epochs=800, checkpoint_epochs=10, learning_rate=0.03,
                warmup_epochs=0.0, weight_decay=1e-3, temperature=0.5, color_jitter_strength=0.5,
            ),
        },
        self_distill=dict(temperature=0.1),
        label_counts=(10, 100),
        published=Results(
            "https://docs.lightly.ai/getting_started/benchmarks.html (SimCLR, 800 epochs)", {"pretrain": "kNN 88.9"}
        ),
    ),
    "digits": Recipe(
        summary="scikit-learn's 1,797 digits, a narrow ResNet-18 at 16 px: minutes on two CPU cores.",
        common=dict(
            dataset="digits", resnet_depth=18, width_multiplier=0.25, image_size=16, crop_area_min=0.6, use_flip=False,
            eval_batch_size=256,
        ),
        stages=SMALL_STAGES,
        label_counts=(1, 2, 5, 10),
        measured=Results(
            f"{STUDY}; at 5 labels a class",
            {
                "pretrain": "kNN 95.1 ± 1.2",
                "linear_eval": "94.4 ± 0.9 (all labels)",
                "supervised": "89.1 ± 1.5",
                "finetune": "93.4 ± 1.9",
                "distill": "94.4 ± 1.0",
            },
        ),
    ),
    "fashion_mnist": _fashion_mnist(
        "60,000 images of clothes, the same narrow network, 1 and 10 labels a class. Rates and steps, the baseline's "
        "too, were chosen on 5,000 training images.",
        16, (1, 10),
        Results(
            f"{STUDY}; at 1 and 10 labels a class",
            {
                "pretrain": "kNN 85.5 ± 0.0",
                "linear_eval": "86.6 ± 0.1 (all labels)",
                "supervised": "34.1 ± 5.3, 69.4 ± 3.4",
                "finetune": "58.4 ± 1.4, 75.8 ± 1.5",
                "distill": "58.8 ± 1.5, 76.1 ± 1.5",
            },
        ),
    ),
    "fashion_mnist_1pct": _fashion_mnist(
        "The same with 60 labels a class.", 16, (60,),
        Results(STUDY, {"supervised": "80.4 ± 0.3", "finetune": "83.0 ± 0.6", "distill": "83.2 ± 0.9"}),
        supervised={}, finetune=dict(learning_rate=0.0378),
    ),
    "fashion_mnist_10pct": _fashion_mnist(
        "The same with 600 labels a class.", 16, (600,),
        Results(STUDY, {"supervised": "88.0 ± 0.2", "finetune": "89.1 ± 0.5", "distill": "89.2 ± 0.2"}),
        supervised=MANY | dict(learning_rate=0.013, train_steps=1200),
        finetune=MANY | dict(learning_rate=0.0126, train_steps=1200),
    ),
    "fashion_mnist_100pct": _fashion_mnist(
        "The same with all labels.", 16, (),
        Results(STUDY, {"supervised": "90.2 ± 0.1", "finetune": "91.1 ± 0.2", "distill": "90.7 ± 0.2"}),
        supervised=MANY | dict(learning_rate=0.013, train_steps=3000),
        finetune=MANY | dict(learning_rate=0.0126, train_steps=3000),
    ),
    "fashion_mnist_32px": _fashion_mnist(
        "At 32 px with a whole ResNet-18, for a GPU. Not tuned.", 32, (1, 10),
    ),
    "fashion_mnist_32px_1pct": _fashion_mnist(
        "The same with 60 labels a class.", 32, (60,), supervised={}, finetune=dict(learning_rate=0.0378),
    ),
    "fashion_mnist_32px_10pct": _fashion_mnist(
        "The same with 600 labels a class.", 32, (600,),
        supervised=MANY | dict(learning_rate=0.013, train_steps=2400),
        finetune=MANY | dict(learning_rate=0.0126, train_steps=1200),
    ),
    "fashion_mnist_32px_100pct": _fashion_mnist(
        "The same with all labels.", 32, (),
        supervised=MANY | dict(learning_rate=0.013, train_steps=9400),
        finetune=MANY | dict(learning_rate=0.0126, train_steps=4700),
    ),
}  # fmt: skip

HEADER = """# Recipes

A recipe is a named set of settings for each step of a run; `simclrv2_tf/settings/recipes.py` holds the values. Flags
win over it. It wins over what a run takes from the one that it starts from, but for the network.
`--mode=semi_supervised` runs all steps of a recipe. `python run.py --recipe=help` prints this page.

Some come with the data set of their name, unless there is `--recipe=none`: {auto}.

Accuracies are top-1 in per cent."""
NETWORKS = """## The networks of the paper

These flags beside `--recipe=imagenet` choose the network. What starts from a checkpoint takes the network from there.
One that is wider than 1 or has selective kernels is fine-tuned at the paper's lower rate; a student is distilled at
temperature 0.1 if its network is its teacher's, else at 1. Published (paper, Table 1): fine-tuned on 1 %, 10 % and all
labels, linear, supervised. Not measured here.

| flags | 1 % | 10 % | 100 % | linear | supervised |
|---|---|---|---|---|---|"""


def format_recipes() -> str:
    """Every recipe with its commands and its published and measured accuracies, as Markdown."""
    auto = ", ".join(f"`{name}`" for name, recipe in RECIPES.items() if recipe.common["dataset"] == name)
    return "\n\n".join([HEADER.format(auto=auto), *map(_section, RECIPES), _networks()])


def _section(name: str) -> str:
    """A recipe; of the steps that another recipe before it has, only those with a result of their own."""
    recipe = RECIPES[name]
    first = next(name for name in RECIPES if RECIPES[name].of_stage("pretrain") == recipe.of_stage("pretrain"))
    lines = [f"## {name}", "", textwrap.fill(recipe.summary, 120)]
    for results, what in ((recipe.published, "Published"), (recipe.measured, "Measured here")):
        if results.top1:
            lines += ["", f"{what}: {results.source}."]
    lines += ["", "| command | published | measured here |", "|---|---|---|"]
    start = {
        "linear_eval": f" --checkpoint=runs/{first}-pretrain",
        "finetune": f" --checkpoint=runs/{first}-pretrain",
        "distill": f" --teacher=runs/{name}-finetune",
    }
    for mode in STAGES:
        published, measured = recipe.published.top1.get(mode, ""), recipe.measured.top1.get(mode, "not measured here")
        own = published or mode in recipe.measured.top1
        if first == name or own or RECIPES[first].of_stage(mode) != recipe.of_stage(mode):
            lines.append(
                f"| `python run.py --recipe={name} --mode={mode}{start.get(mode, '')}` | {published} | {measured} |"
            )
    return "\n".join(lines)


def _networks() -> str:
    rows = []
    for (depth, width, selective_kernels), top1 in PAPER_NETWORKS.items():
        flags = f"--resnet_depth={depth} --width_multiplier={width}" + " --sk_ratio=0.0625" * selective_kernels
        rows.append(f"| `{flags}` | " + " | ".join(map(str, top1)) + " |")
    return "\n".join([NETWORKS, *rows])
