"""``--config`` starts a run with the settings of another run; flags override them."""

import pytest

from simclrv2_tf import cli, modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.config_file import with_config_file

SETTINGS = {"dataset": "digits", "train_steps": 7, "temperature": 0.3, "label_fraction": 0.5, "recipe": "digits"}


def write(path, **settings):
    path.write_text(Config(**settings).to_json())
    return str(path)


def test_a_run_starts_with_the_settings_of_another_whatever_its_recipe(tmp_path, caplog):
    earlier = resolve_config({"recipe": "digits", "mode": "supervised", "seed": 3, "labels_per_class": 5})
    RunDirectory(tmp_path).write_config(earlier, {"recipe": "digits"})
    flags = cli.parse(["run.py", f"--config={tmp_path}/config.json", "--seed=4", "--model_dir=other"])
    config = resolve_config(flags)
    differences = {name for name, value in vars(config).items() if getattr(earlier, name) != value}
    assert differences == {"seed", "model_dir", "recipe"} and config.seed == 4
    assert caplog.messages == [f"note: the settings of {tmp_path}/config.json, but --model_dir=other --seed=4"]


def test_a_flag_replaces_the_setting_that_excludes_it(tmp_path):
    path = write(tmp_path / "config.json", **SETTINGS)
    epochs = with_config_file(path, {"train_epochs": 3})
    assert (epochs["train_epochs"], "train_steps" in epochs) == (3, False)
    labels = Config(**with_config_file(path, {"labels_per_class": 2}))
    assert (labels.labels_per_class, labels.label_fraction) == (2, 1.0)
    assert with_config_file(path, {})["train_steps"] == 7


def test_the_directory_of_the_other_run_is_not_taken(tmp_path):
    path = write(tmp_path / "config.json", model_dir=str(tmp_path), override_config=True, **SETTINGS)
    assert not {"model_dir", "override_config"} & with_config_file(path, {}).keys()
    assert Config(**with_config_file(path, {})).run_dir == "runs/digits-pretrain"


@pytest.mark.parametrize("setting", ["encoder", "method", "callbacks"])
def test_code_that_the_file_names_is_imported_only_if_trusted(setting, tmp_path):
    path = write(tmp_path / "config.json", **{setting: "my.module:name"}, trust_run_code=True)
    with pytest.raises(SettingError, match=rf"^--config=.*: has --{setting}=my.module:name; pass --trust_run_code"):
        with_config_file(path, {})
    for flags in ({"trust_run_code": True}, {setting: "my.module:name"}):
        assert with_config_file(path, flags)[setting] == "my.module:name"


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, {}, r"^--config=.*: cannot be read \(No such file or directory\)"),
        ("{", {}, r"^--config=.*: config.json is damaged"),
        ('{"config_version": 0}', {}, r"^--config=.*: config.json has config_version 0"),
        (Config(mode="semi_supervised").to_json(), {}, r"^--config=.*: is that of a semi-supervised run"),
        (Config().to_json(), {"recipe": "cifar10"}, r"^--recipe=cifar10: cannot be combined with --config"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(content, flags, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SettingError, match=message):
        with_config_file(str(tmp_path / "config.json"), flags)


def test_a_whole_run_from_the_settings_of_another(tmp_path):
    toy = ["resnet_depth=10", "width_multiplier=0.0625", "image_size=8", "train_batch_size=50", "train_steps=2"]
    toy += ["mode=supervised", "dataset=digits", "report=false", "eval_batch_size=250", "labels_per_class=5"]
    first = modes.run(cli.parse(["run.py", *(f"--{flag}" for flag in toy), f"--model_dir={tmp_path}/a"]))
    again = cli.parse(["run.py", f"--config={tmp_path}/a/config.json", f"--model_dir={tmp_path}/b"])
    assert modes.run(again)["supervised_top1"] == first["supervised_top1"]
