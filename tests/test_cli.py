"""Flags become settings; a user error is one line on standard error, exit status 2, and nothing is written."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf import __version__, cli, help
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings import official_flags, usage
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import MODES
from simclrv2_tf.settings.merge import resolve

ROOT = pathlib.Path(__file__).parents[1]
FIELDS = dataclasses.fields(Config)
NAMES = [field.name for field in FIELDS]

# The flags of the official code that have the same meaning here.
OFFICIAL = (
    "train_batch_size train_epochs train_steps learning_rate learning_rate_scaling warmup_epochs weight_decay "
    "momentum optimizer temperature hidden_norm proj_head_mode proj_out_dim num_proj_layers ft_proj_selector "
    "fine_tune_after_block zero_init_logits_layer lineareval_while_pretraining global_bn batch_norm_decay "
    "width_multiplier resnet_depth sk_ratio se_ratio image_size color_jitter_strength use_blur dataset data_dir "
    "train_split eval_split eval_batch_size eval_steps cache_dataset model_dir seed checkpoint checkpoint_epochs "
    "checkpoint_steps keep_checkpoint_max use_tpu tpu_name mode"
)


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(place):
    return sorted(path.name for path in place.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--learning_rat=1"], "Unknown command line flag 'learning_rat'"),
        (["--train_epochs=1.5"], "--train_epochs=1.5"),
        (["--learning_rate=fast"], "--learning_rate=fast"),
        (["--use_blur=maybe"], "--use_blur=maybe"),
        (["--mode=pretraining"], "--mode=pretraining: must be one of pretrain, finetune"),
        (["--optimizer=sgd"], "--optimizer=sgd: value should be one of"),
        (["--learning_rate=nan"], "--learning_rate=nan: must be a finite number"),
        (["--weight_decay=inf"], "--weight_decay=inf: must be a finite number"),
        (["--temperature=0"], "--temperature=0.0: must be above 0"),
        (["--seed=-1"], "--seed=-1: must be 0 or more"),
        (["--train_batch_size=0"], "--train_batch_size=0: must be 1 or more"),
        (["pretrain"], "pretrain: not a flag"),
        (["--mode", "pretrain", "digits"], "digits: not a flag"),
        (["--temperature"], "Missing value for flag --temperature"),
        (["--flagfile=nowhere.txt"], "nowhere.txt"),
        (["--recipe=nosuch"], "--recipe=nosuch: must be auto or one of official, own_images, imagenet"),
        (["--recipe=fashion_mnist_1pct"], "is now --recipe=fashion_mnist --label_fraction=0.01"),
        (["--mode=semi_supervised", "--stage=pretrain"], "--stage=pretrain: must look like finetune.learning_rate=0.1"),
        (["--mode=semi_supervised", "--stage=finetune.nosuch=1"], "nosuch: there is no such setting"),
        (["--mode=finetune", "--checkpoint=nowhere"], "--checkpoint=nowhere"),
        (["--mode=distill"], "--teacher="),
        (["--mode=evaluate"], "--checkpoint="),
        (["--labels_per_class=1", "--label_fraction=0.5"], "--label_fraction=0.5"),
        (["--train_batch_size=5000"], "--train_batch_size=5000: digits/train has only 1297 images"),
        (
            ["--train_batch_size=64", "--grad_cache_micro_batch=12"],
            "--grad_cache_micro_batch=12: does not divide the 64 images per replica",
        ),
        (["--mode=supervised", "--labels_per_class=500"], "--labels_per_class=500: class "),
        (["--train_split=valid"], "--train_split=valid: digits has only train, test"),
        (["--dataset=folder:nowhere"], "--dataset=folder:nowhere: there is no folder nowhere"),
        (["--dataset=nosuchdata"], "--dataset=nosuchdata: TFDS has no such data set"),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments, message, empty_directory, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["run.py", "--dataset=digits", "--model_dir=made", *arguments])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err and "Traceback" not in out
    assert written(empty_directory) == []


def test_a_folder_that_is_not_called_one_is_told_how(empty_directory, capsys):
    (empty_directory / "birds").mkdir()
    with pytest.raises(SystemExit):
        cli.main(["run.py", "--dataset=birds"])
    assert capsys.readouterr().err.endswith("; for a folder of images say folder:birds\n")


def test_a_flagfile_that_is_no_text_is_refused(empty_directory, capsys):
    (empty_directory / "flags").write_bytes(b"--dataset=\xff\xfe\n")
    with pytest.raises(SystemExit) as exit:
        cli.main(["run.py", "--flagfile=flags"])
    assert exit.value.code == 2 and capsys.readouterr().err.startswith("error: --flagfile: not UTF-8 text")


VALUES = st.integers().map(str) | st.floats().map(str) | st.sampled_from(["", "true", "none", "lars"]) | st.text()


@given(st.lists(st.tuples(st.sampled_from([*NAMES, "nosuch"]), VALUES), max_size=4))
def test_any_command_line_makes_a_config_or_is_refused_by_name(said):
    flags_said = [f"--{name}={value}" for name, value in said if (name, value) != ("recipe", "help")]
    try:
        Config(**cli.parse(["run.py", *flags_said]))
    except (SettingError, flags.Error) as error:
        assert any(name in str(error) for name in (*dict(said), "teacher", "checkpoint"))  # required by some modes


def test_a_refusal_is_one_line_whatever_it_quotes(empty_directory, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run.py", "--optimizer=two\nlines"])
    assert capsys.readouterr().err.count("\n") == 1


def run(*arguments, place):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)


def test_the_program_itself(empty_directory):
    bad_value = run("--dataset=digits", "--temperature=-1", place=empty_directory)
    assert (bad_value.returncode, bad_value.stdout) == (2, "")
    assert bad_value.stderr == "error: --temperature=-1.0: must be above 0\n"
    too_large = run("--dataset=digits", "--mode=pretrain", "--train_batch_size=5000", place=empty_directory)
    assert too_large.returncode == 2 and "Traceback" not in too_large.stderr
    # TensorFlow's own libraries may write before it
    assert too_large.stderr.splitlines()[-1] == "error: --train_batch_size=5000: digits/train has only 1297 images"
    assert written(empty_directory) == []
    helped = run("--help", place=empty_directory)
    assert (helped.returncode, helped.stderr) == (0, "") and helped.stdout.startswith("usage: ")


# Help


def test_full_help_lists_every_setting_in_its_group(capsys):
    cli.main(["run.py", "--helpfull"])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and max(map(len, lines)) <= 110
    group, found = None, {}
    for line in lines:
        if line.endswith(":") and not line.startswith(" "):
            group = line[:-1]
        if line.startswith("  --"):
            found[line.strip().removeprefix("--").partition("=")[0]] = group
    assert list(found) == NAMES
    assert {found[name] for name in ("mode", "seed", "compare")} == {"General"}
    assert {found[name] for name in ("checkpoint_epochs", "report")} == {"Checkpoints and report"}
    assert {found[name] for name in ("dataset", "max_corrupt_share")} == {"Data"}
    assert {found[name] for name in ("method", "image_size", "batch_norm_decay")} == {"Network"}
    assert {found[name] for name in ("train_batch_size", "momentum")} == {"Optimization"}
    assert {found[name] for name in ("temperature", "ema_decay")} == {"Pretraining objective"}
    assert {found[name] for name in ("crop_area_min", "eval_resize")} == {"Augmentation"}
    assert {found[name] for name in ("ft_proj_selector", "distill_alpha")} == {"Fine-tuning and distillation"}
    assert {found[name] for name in ("eval_batch_size", "tpu_name")} == {"Devices, speed and memory"}
    words = " ".join(out.split())
    for field in FIELDS:
        assert field.metadata["help"] in words
        assert all(choice in words for choice in field.metadata["choices"])
    assert "  --learning_rate=0.3" in lines and "  --use_blur=true" in lines and "  --model_dir=-" in lines
    assert "--flagfile=FILE" in words and "--noNAME" in words and "--config=runs/x/config.json" in words


def test_full_help_explains_exit_statuses_and_environment_variables(capsys):
    cli.main(["run.py", "--helpfull"])
    out = capsys.readouterr().out
    statuses = {int(status) for status in re.findall(r"^  (\d+) +[A-Z]", out, re.MULTILINE)}
    assert statuses == {0, 1, 2, 3, 130, 143}
    code = "".join(path.read_text() for path in (ROOT / "simclrv2_tf").rglob("*.py"))
    read = set(re.findall(r"os\.environ(?:\.get\(|\[|\.setdefault\()\"(\w+)\"", code))
    assert {"TF_CONFIG", "CUDA_VISIBLE_DEVICES", *read} - {"KERAS_HOME"} <= set(re.findall(r"\b[A-Z_]+\b", out))


@pytest.mark.parametrize(
    "arguments, listed, left_out",
    [
        (
            ["--mode=finetune", "--help"],
            "checkpoint fine_tune_after_block use_flip",
            "resnet_depth memory_size teacher",
        ),
        (["-h", "--mode", "distill"], "teacher resnet_depth temperature stage", "use_blur compare memory_size"),
        (["--mode=evaluate", "--help"], "checkpoint dataset eval_resize recipe", "learning_rate report train_steps"),
        (["--mode=report", "--help"], "compare model_dir", "dataset resnet_depth checkpoint seed"),
        (["--mode=semi_supervised", "--help"], "stage seeds resnet_depth", "compare format checkpoint teacher"),
        (["--mode=export", "--mode=pretrain", "--help"], "memory_size use_blur", "format ft_proj_selector"),
    ],
)
def test_help_for_a_mode_lists_the_flags_that_matter_for_it(arguments, listed, left_out, capsys):
    cli.main(["run.py", *arguments])
    out = capsys.readouterr().out
    assert all(f"\n  --{name}=" in out for name in listed.split())
    assert not any(f"\n  --{name}=" in out for name in left_out.split())


def test_the_examples_of_every_mode_are_valid_commands_of_that_mode():
    assert set(help.EXAMPLES) == set(help.DESCRIPTIONS) == set(MODES)
    for mode, examples in help.EXAMPLES.items():
        _, listed = help.help_text(["run.py", f"--mode={mode}", "--help"]).split("Flags, with their defaults:")
        for example in examples:
            settings = cli.parse(["run.py", f"--mode={mode}", *example.split()])
            assert settings["mode"] == mode and all(f"\n  --{name}=" in listed for name in settings)


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["-h"], ["--helpshort"], ["--help", "--mode=nosuch"], ["--mode", "-h"]]
)
def test_without_a_mode_the_help_says_how_to_start_and_nothing_runs(arguments, empty_directory, capsys):
    cli.main(["run.py", *arguments])
    out, err = capsys.readouterr()
    assert err == "" and max(map(len, out.splitlines())) <= 110 and written(empty_directory) == []
    assert all(f"\n  {mode} " in out for mode in MODES)
    commands = [line.split("run.py ")[1].split() for line in out.splitlines() if line.startswith("  python run.py")]
    assert len(commands) == 3 and all(cli.parse(["run.py", *flags])["mode"] in MODES for flags in commands)


def test_version(capsys):
    cli.main(["run.py", "--version"])
    assert capsys.readouterr().out == f"simclrv2-tf {__version__}\n"


def test_a_closed_pipe_is_no_error(empty_directory):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "simclrv2_tf", "--helpfull"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_path_that_is_not_utf8_is_refused(empty_directory):
    process = run(b"--model_dir=caf\xe9", "--dataset=digits", place=empty_directory)
    assert process.returncode == 2 and written(empty_directory) == []
    assert process.stderr == "error: --model_dir=caf\\udce9: is not UTF-8; rename the file or folder\n"


def test_the_tables_of_the_help_name_settings_and_modes():
    assert {group.first for group in usage.GROUPS} | set(usage.MODES_OF_FLAG) <= set(NAMES)
    modes = [group.modes for group in usage.GROUPS] + list(usage.MODES_OF_FLAG.values())
    assert set().union(*modes) == set(MODES)


def test_a_value_that_reads_help_is_a_value():
    assert cli.parse(["run.py", "--model_dir", "help"]) == {"model_dir": "help"}
    assert "help" not in help.REQUESTS


# Flags to settings


def test_only_what_was_said_is_a_setting():
    assert cli.parse(["run.py"]) == {}
    said = cli.parse(["run.py", "--train_epochs=7", "--learning_rate", "0.5", "--dataset=folder:/a b", "--use_flip"])
    assert said == {"train_epochs": 7, "learning_rate": 0.5, "dataset": "folder:/a b", "use_flip": True}
    assert Config(**said).train_epochs == 7


@pytest.mark.parametrize(
    ("arguments", "unread"),
    [
        ("--mode=evaluate --checkpoint=run --learning_rate=3", "--learning_rate; it is"),
        ("--mode=predict --images=x --temperature=0.2 --noreport", "--report, --temperature; they are"),
        (
            "--mode=export --checkpoint=run --dataset=digits --recipe=digits --eval_batch_size=8",
            "--eval_batch_size; it is",
        ),
        ("--labels_per_class=5 --stage=pretrain.seed=1", "--labels_per_class; it is"),
        ("--mode=linear_eval --fine_tune_after_block=2 --nozero_init_logits_layer", "--fine_tune_after_block; it is"),
        (
            "--mode=finetune --checkpoint=run --resnet_depth=18 --fine_tune_after_block=2 --teacher=t",
            "--teacher; it is",
        ),
        ("--mode=distill --teacher=run --resnet_depth=18 --temperature=1 --nouse_blur", "--use_blur; it is"),
        ("--mode=supervised --resnet_depth=18 --memory_size=9", "--memory_size; it is"),
        ("--mode=supervised --checkpoint=run", ""),  # rejected with an error instead
        ("--mode=semi_supervised --temperature=1 --teacher=t --checkpoint=run", "--checkpoint, --teacher; they are"),
        ("--mode=summary --resnet_depth=18 --mixed_precision=bfloat16 --seed=3", "--seed; it is"),
        ("--mode=report --model_dir=run --dataset=digits", "--dataset; it is"),
        (
            "--mode=import_checkpoint --checkpoint=x --image_size=160 --resnet_depth=50 --momentum=0",
            "--momentum; it is",
        ),
        ("--mode=preview --seeds=0,1 --tracker=wandb --noreport --keep_best=loss --images=x", "--images; it is"),
        ("--mode=eval --model_dir=run --learning_rate=3", ""),  # as in all commands of the official code
        ("--train_mode=finetune --fine_tune_after_block=4 --temperature=1", ""),
    ],
)
def test_flags_without_an_effect_are_named_in_one_line(arguments, unread, caplog):
    cli.parse(["run.py", *arguments.split()])
    mode = re.search("--mode=([a-z_]+)|$", arguments)[1] or "pretrain"
    warnings = [record.message for record in caplog.records if "does not read" in record.message]
    assert warnings == [f"warning: --mode={mode} does not read {unread} ignored"] * bool(unread)


def test_settings_of_a_config_file_are_not_named_as_flags_without_an_effect(empty_directory, caplog):
    (empty_directory / "config.json").write_text(Config(mode="supervised", temperature=0.5).to_json())
    cli.parse(["run.py", "--config=config.json", "--memory_size=9", "--seed=4"])
    warnings = [record.message for record in caplog.records if "does not read" in record.message]
    assert warnings == ["warning: --mode=supervised does not read --memory_size; it is ignored"]


def test_switches_and_repeated_flags():
    assert cli.parse(["run.py", "--nouse_blur", "--hidden_norm=false", "--global_bn"]) == {
        "use_blur": False,
        "hidden_norm": False,
        "global_bn": True,
    }
    assert cli.parse(["run.py", "--seed=1", "--seed=2"]) == {"seed": 2}
    stages = ["pretrain.train_epochs=2", "distill.temperature=1"]
    assert cli.parse(["run.py", *(f"--stage={stage}" for stage in stages)]) == {"stage": tuple(stages)}


def test_flags_from_a_file(empty_directory):
    (empty_directory / "more.txt").write_text("--temperature=0.5\n")
    (empty_directory / "flags.txt").write_text("# a comment\n--train_epochs=3\n\n--nouse_blur\n--flagfile=more.txt\n")
    said = cli.parse(["run.py", "--train_epochs=1", "--flagfile=flags.txt", "--seed=4"])
    assert said == {"train_epochs": 3, "use_blur": False, "temperature": 0.5, "seed": 4}
    (empty_directory / "bad.txt").write_text("--temperature=-1\n")
    with pytest.raises(SettingError, match=r"^--temperature=-1\.0: must be above 0$"):
        cli.parse(["run.py", "--flagfile=bad.txt"])


@pytest.mark.parametrize("name", OFFICIAL.split())
def test_official_flags_are_kept(name):
    field = next(field for field in FIELDS if field.name == name)
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    assert cli.parse(["run.py", f"--{name}={default}"]) == {name: field.default}


# Commands of the official code: its README of 2020-02 (TensorFlow 1) and of tf2/

PRETRAIN_CIFAR = (
    "--train_mode=pretrain --train_batch_size=512 --train_epochs=1000 --learning_rate=1.0 --weight_decay={decay} "
    "--temperature=0.5 --dataset=cifar10 --image_size=32 --eval_split=test --resnet_depth=18 --use_blur=False "
    "--color_jitter_strength=0.5 --model_dir=/tmp/simclr_test --use_tpu=False"
)
PRETRAIN_IMAGENET = (
    "--train_mode=pretrain --train_batch_size=4096 --train_epochs=100 {rate} --temperature=0.1 --dataset=imagenet2012 "
    "--image_size=224 --eval_split=validation --data_dir=/data --model_dir=/mnt/run --use_tpu=True --tpu_name=node "
    "--train_summary_steps=0"
)
LINEAR = (
    "--mode=train_then_eval --train_mode=finetune --fine_tune_after_block=4 --zero_init_logits_layer=True "
    "--variable_schema=(?!global_step|(?:.*/|^)LARSOptimizer|head) --global_bn=False --optimizer=momentum "
    "--learning_rate=0.1 --warmup_epochs=0 "
)
OFFICIAL_COMMANDS = [
    (PRETRAIN_CIFAR.format(decay="1e-6"), {"mode": "pretrain", "weight_decay": 1e-6, "use_blur": False}),
    (PRETRAIN_CIFAR.format(decay="1e-4"), {"mode": "pretrain", "weight_decay": 1e-4, "resnet_depth": 18}),
    (
        PRETRAIN_IMAGENET.format(rate="--learning_rate=0.3 --weight_decay=1e-6"),
        {"mode": "pretrain", "use_tpu": True, "learning_rate": 0.3, "learning_rate_scaling": "linear"},
    ),
    (
        PRETRAIN_IMAGENET.format(rate="--learning_rate=0.075 --learning_rate_scaling=sqrt --weight_decay=1e-4"),
        {"mode": "pretrain", "learning_rate": 0.075, "learning_rate_scaling": "sqrt", "data_dir": "/data"},
    ),
    (
        LINEAR + "--weight_decay=0.0 --train_epochs=100 --train_batch_size=512 --dataset=cifar10 --image_size=32 "
        "--eval_split=test --resnet_depth=18 --checkpoint=/tmp/simclr_test --model_dir=/tmp/ft --use_tpu=False",
        {"mode": "linear_eval", "checkpoint": "/tmp/simclr_test", "optimizer": "momentum", "global_bn": False},
    ),
    (
        LINEAR + "--weight_decay=1e-6 --train_epochs=90 --train_batch_size=4096 --dataset=imagenet2012 "
        "--image_size=224 --eval_split=validation --data_dir=/data --model_dir=/mnt/ft --checkpoint=/mnt/run "
        "--use_tpu=True --tpu_name=node --train_summary_steps=0",
        {"mode": "linear_eval", "train_epochs": 90, "zero_init_logits_layer": True, "warmup_epochs": 0},
    ),
]


@pytest.mark.parametrize("command, expected", OFFICIAL_COMMANDS)
def test_commands_of_the_official_readmes_run_unchanged(command, expected, caplog):
    settings = cli.parse(["run.py", *command.split()])
    config = Config(**settings)
    assert {name: getattr(config, name) for name in expected} == expected
    official = {name for name in official_flags.TYPES if f"--{name}=" in command}
    notes = [record.message for record in caplog.records]
    assert official and all(any(f"--{name}" in note for note in notes) for name in official)
    assert all("\n" not in note for note in notes) and settings["recipe"] == "official"


@pytest.mark.parametrize(
    "command, expected",
    [
        ("--mode=train_then_eval", {"mode": "pretrain"}),
        ("--mode=train --train_mode=finetune", {"mode": "finetune"}),
        ("--train_mode=finetune --fine_tune_after_block=2", {"mode": "finetune", "fine_tune_after_block": 2}),
        ("--mode=eval --model_dir=run", {"mode": "evaluate", "model_dir": "run", "checkpoint": "run"}),
        ("--mode=eval --model_dir=run --checkpoint=other", {"mode": "evaluate", "checkpoint": "other"}),
        ("--train_mode=pretrain --recipe=cifar10", {"mode": "pretrain", "recipe": "cifar10"}),
        ("--head_proj_mode=linear --head_proj_dim=64", {"proj_head_mode": "linear", "proj_out_dim": 64}),
        ("--num_nlh_layers=1", {"num_proj_layers": 2}),
        ("--master=grpc://10.0.0.2:8470", {"tpu_name": "grpc://10.0.0.2:8470"}),
        ("--tpu_name=node --tpu_zone=us-a --gcp_project=birds", {"tpu_name": "birds/us-a/node"}),
        ("--eval_name=x --keep_hub_module_max=3", {}),
        ("--learning_rate=0.5", {"learning_rate": 0.5}),
    ],
)
def test_flags_of_the_official_code_are_translated_with_a_note(command, expected, caplog):
    settings = cli.parse(["run.py", *command.split()])
    assert settings.items() >= expected.items() and not settings.keys() & official_flags.TYPES.keys()
    assert bool(caplog.records) == (command != "--learning_rate=0.5")


@pytest.mark.parametrize(
    "command, message",
    [
        ("--train_mode=distill", "--train_mode=distill: must be pretrain or finetune"),
        (
            "--mode=distill --train_mode=finetune",
            "--train_mode=finetune: contradicts --mode=distill",
        ),
        ("--mode=training --train_mode=finetune", "--mode=training: must be one of"),
        ("--tpu_name=node --tpu_zone=us-a", "--tpu_zone=us-a: give project, zone and name: --tpu_name"),
        ("--num_nlh_layers=-1", "--num_proj_layers=0: must be 1 or more"),
        ("--ft_proj_selector=-2", "--ft_proj_selector=-2: must be -1 or more"),
    ],
)
def test_flags_of_the_official_code_without_a_translation_are_refused(command, message):
    with pytest.raises(SettingError, match=f"^{re.escape(message)}"):
        cli.parse(["run.py", *command.split()])


def test_the_last_layer_of_the_head_is_its_number():
    assert resolve({"mode": "finetune", "ft_proj_selector": -1, "num_proj_layers": 2}).ft_proj_selector == 2
    parent = Config(num_proj_layers=4)
    assert resolve({"mode": "finetune", "ft_proj_selector": -1, "checkpoint": "x"}, parent=parent).ft_proj_selector == 4


# Round trip


def test_every_setting_is_a_flag_and_parses_back():
    config = Config(seed=3, use_blur=False, learning_rate=1e-7, dataset="npz:/x=y z", checkpoint="runs/1")
    values = {name: value for name, value in vars(config).items() if name != "stage"}
    flags = [f"--{n}={str(v).lower() if isinstance(v, bool) else v}" for n, v in values.items()]
    assert cli.parse(["run.py", *flags]) == values
