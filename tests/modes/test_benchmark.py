"""``--mode=benchmark``: three rates of a run, and its bottleneck."""

import types

import pytest

from simclrv2_tf import modes
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.modes import benchmark
from simclrv2_tf.settings.config import Config

TOY = {"dataset": "digits", "image_size": 16, "resnet_depth": 10, "width_multiplier": 0.0625, "train_batch_size": 32}


def test_three_rates_and_the_limit_are_printed_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SECONDS", 0.1)
    result = modes.run(TOY | {"mode": "benchmark", "model_dir": str(tmp_path / "run")})
    assert result["input"] > 0 and result["step"] > 0 and result["both"] > 0
    printed = capsys.readouterr().out
    assert "32 images per step" in printed and "To go faster: " in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rates", "limit", "flags"),
    [
        ((900, 100, 97), "the step: the step runs at 97% of its own rate", ("--resnet_depth",)),
        ((50, 100, 49), "the input: the step runs at 49%", ("--jpeg_scaling", "--cache_dataset")),
        ((150, 100, 70), "neither alone: the step runs at 70%", ("--steps_per_execution", "--image_size")),
    ],
)
def test_advice_names_flags(rates, limit, flags):
    method = types.SimpleNamespace(
        steps_per_execution=1, jit_compile=False, network=types.SimpleNamespace(compute_dtype="float32")
    )
    data = types.SimpleNamespace(source=FileSource("files", (), None, ()), resident=None)
    run = types.SimpleNamespace(method=method, data=data)
    advice = benchmark.describe_limit(Config(resize_method="bilinear"), run, *rates)
    assert advice.startswith(limit) and all(flag in advice for flag in flags)
    assert "--resize_method" not in advice  # it is bilinear already
