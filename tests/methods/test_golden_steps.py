"""Whole training steps of the real models against recorded steps of the official code, in float64.

The learning rates are the recorded ones, which the official code rounds to float32, as it does the decay of its batch
norms. So the numbers agree to many digits, and no tolerance hides a difference. Tests say where our models differ from
the official code on purpose.
"""

import functools
import importlib.util
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.methods.schedules import WarmUpCosine, peak_learning_rate
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import Network, ProjectionHead, ResNet, official_names

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("golden_values", GOLDEN / "values.py")
values = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(values)

FLOAT64, TWO_REPLICAS = np.load(GOLDEN / "train_steps_R1_float64.npz"), np.load(GOLDEN / "train_steps_R2.npz")
BATCH, SIZE, CLASSES = 16, 32, 10
DECAY, MOMENTUM_DECAY = 1e-4, 1e-3  # weight decay of the cases with LARS and with momentum
COLUMNS = ("contrastive", "accuracy", "entropy", "supervised", "top1", "decay", "total", "rate")
VIEWS = ViewSettings(SIZE)


def load_recording(case: str, archive=FLOAT64) -> dict[str, np.ndarray]:
    """Loads the arrays of a case and the columns of its history."""
    arrays = {key.removeprefix(f"{case}/"): archive[key] for key in archive.files if key.startswith(f"{case}/")}
    history = next(value for key, value in arrays.items() if key.startswith("history"))
    return arrays | dict(zip(COLUMNS, history.T, strict=True))


def recorded_batch(step: int, num_views: int, dtype: str = "float64") -> dict[str, np.ndarray]:
    first, noise = (values.image_input(f"h/step{step}/view{view}", BATCH, SIZE) for view in range(2))
    second = np.float32(0.7) * first + np.float32(0.3) * noise
    labels = np.random.RandomState(values.seed_of(f"labels/h/{step}")).randint(0, CLASSES, BATCH)
    views = np.stack([first, second][:num_views], axis=1).astype(dtype)
    return {"views": views, "labels": labels.astype("int32")}


def recorded_network(dtype: str = "float64", classes: int = CLASSES, tap: int = 0, **batch_norm) -> Network:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    batch_norm = {"momentum": 1 - float(np.float32(0.1))} | batch_norm
    encoder = ResNet(18, stem="cifar", batch_norm=batch_norm)
    network = Network(encoder, ProjectionHead(batch_norm=batch_norm), classes, tap)
    network.build()
    assign_recorded(network)
    return network


def assign_recorded(network: Network) -> None:
    """Assigns the weights that the recordings start from."""
    for name, variable in official_names(network).items():
        variable.assign(recorded_value(name, tuple(variable.shape)))


recorded_value = functools.cache(values.fill)


def compiled(model, optimizer: str = "lars", weight_decay: float = DECAY):
    model.compile(optimizer=build_optimizer(optimizer, 0.0, 0.9, weight_decay))
    return model


class Run:
    """Eager steps with the recorded batches and learning rates.

    Attributes:
        logs: for each step, a list of the replicas' logs.
        gradients: of step 0, by official name, summed over replicas.
        start: the variables before step 0, by official name.
        changed: names of the variables that step 0 changes.
    """

    def __init__(self, model, rates: np.ndarray, strategy: tf.distribute.Strategy | None = None):
        self.names = official_names(model.network)
        self.start = self.values()
        self.gradients: dict[str, np.ndarray] = {}
        self.logs = []
        self._record_gradients(model)
        strategy = strategy or tf.distribute.get_strategy()
        for step, rate in enumerate(rates):
            model.optimizer.learning_rate = rate
            logs = strategy.run(model.train_step, args=(self._batch(model, step, strategy),))
            by_name = {name: strategy.experimental_local_results(value) for name, value in logs.items()}
            replicas = range(strategy.num_replicas_in_sync)
            self.logs.append([{name: float(parts[index]) for name, parts in by_name.items()} for index in replicas])
            if step == 0:
                model.optimizer.apply = self._apply
                self.changed = {name for name, value in self.values().items() if np.any(value != self.start[name])}

    def values(self) -> dict[str, np.ndarray]:
        return {name: np.array(variable, "float64") for name, variable in self.names.items()}

    def log(self, name: str) -> list[float]:
        """Returns the mean over replicas for each step."""
        return [np.mean([logs[name] for logs in replicas]) for replicas in self.logs]

    def _batch(self, model, step: int, strategy: tf.distribute.Strategy):
        batch = recorded_batch(step, 2 if isinstance(model, SimCLR) else 1, keras.config.floatx())
        count = strategy.num_replicas_in_sync

        def share(context):
            rows = np.array_split(np.arange(BATCH), count)[context.replica_id_in_sync_group]
            return {name: tf.constant(value[rows]) for name, value in batch.items()}

        return strategy.experimental_distribute_values_from_function(share)

    def _record_gradients(self, model) -> None:
        self._apply = model.optimizer.apply
        by_path = {variable.path: name for name, variable in self.names.items()}

        def apply(gradients, variables):
            for gradient, variable in zip(gradients, variables, strict=True):
                name = by_path[variable.path]
                self.gradients[name] = self.gradients.get(name, 0) + gradient.numpy()
            self._apply(gradients, variables)

        model.optimizer.apply = apply


class Comparison:
    """Comparison of a run with a recording.

    Args:
        parity: the fixture.
        case: title on the page of deviations.
        run: our run.
        recording: of the official code.
        idle: names of the head's variables that our run does not use: they get no gradient and do not change.
        rtol: of losses, gradients and weights; that of a weight's total change, a small difference of two, is 10 times
            as large.
    """

    def __init__(self, parity, case, run, recording, idle=frozenset(), rtol=1e-10, precision="float64"):
        self.case, self.run, self.recording, self.idle, self.rtol = case, run, recording, set(idle), rtol
        self.parity = lambda what, actual, expected, tolerance=rtol, **how: parity(
            f"{case}: {what}", actual, expected, tolerance, precision, **how
        )

    def logs(self, columns: dict[str, str]) -> None:
        """Compares the logs of every step."""
        steps = len(self.run.logs)
        for name, column in columns.items():
            self.parity("losses", self.run.log(name), self.recording[column][:steps], of="each")

    def gradients(self, sampled: bool = True) -> None:
        """Compares the norms of all gradients of step 0, and the recorded samples of some."""
        names = set(self.recording["trainable_names"]) - self.idle
        norms = dict(zip(self.recording["trainable_names"], self.recording["grad_norms_step0"], strict=True))
        actual = [np.linalg.norm(self.run.gradients[name]) for name in sorted(names)]
        self.parity("gradients", actual, [norms[name] for name in sorted(names)], of="each")
        for name in names:
            if sampled and f"grad_step0/{name}" in self.recording:
                actual = self.run.gradients[name].reshape(-1)
                sample = self.recording[f"grad_step0/{name}"]
                self.parity("gradients", actual[values.sample_idx(actual.size, 128)], sample)

    def weights(self) -> None:
        """Compares which variables step 0 changes, and the norms of all variables and their changes after the run."""
        assert self.run.changed == set(self.recording["changed_after_step1_names"]) - self.idle
        assert set(self.recording["all_names"]) == set(self.run.names)
        end, used = self.run.values(), [name not in self.idle for name in self.recording["all_names"]]
        deltas = {name: np.linalg.norm(end[name] - self.run.start[name]) for name in end}
        assert not any(deltas[name] for name in self.idle)
        names = self.recording["all_names"][used]
        norms = [np.linalg.norm(end[name]) for name in names]
        self.parity("weights", norms, self.recording["final_norms"][used], of="each")
        expected = self.recording["final_delta_norms"][used]
        self.parity("weights", [deltas[name] for name in names], expected, 10 * self.rtol, of="each")


def head_layers(run: Run, above: int) -> set[str]:
    """Returns the names of the head's variables above a tap."""
    return {name for name in run.names if name.startswith(tuple(f"head_contrastive/nl_{i}" for i in range(above, 3)))}


def sum_of_squares(run: Run, names: set[str]) -> float:
    """Returns the sum over the kernels at the start."""
    return sum(np.sum(run.start[name] ** 2) for name in names if name.endswith("kernel"))


PRETRAINING_COLUMNS = {
    "contrastive_loss": "contrastive",
    "contrastive_accuracy": "accuracy",
    "contrastive_entropy": "entropy",
    "online_loss": "supervised",
    "online_train_top1": "top1",
    "loss": "total",
}


def pretraining(recording: dict, steps: int, strategy=None, dtype: str = "float64", **batch_norm) -> Run:
    """Runs the first steps of a recorded pretraining."""
    with (strategy or tf.distribute.get_strategy()).scope():
        network = recorded_network(dtype, **batch_norm)
        model = compiled(SimCLR(network, VIEWS, 0.5, weight_decay=DECAY))
    return Run(model, recording["rate"][:steps], strategy)


class TestPretraining:
    @pytest.mark.parametrize("steps", [2, pytest.param(5, marks=pytest.mark.slow)])
    def test_steps_equal_the_recording(self, steps, parity):
        recording = load_recording("pretrain_lars")
        run = pretraining(recording, steps)
        assert set(run.gradients) == set(recording["trainable_names"])
        comparison = Comparison(parity, "pretraining with LARS", run, recording)
        comparison.logs(PRETRAINING_COLUMNS)
        comparison.gradients()
        if steps == len(recording["rate"]):
            comparison.weights()
        schedule = WarmUpCosine(peak_learning_rate(0.32, BATCH, "linear"), total_steps=20)
        rates = [schedule(step) for step in range(len(recording["rate"]))]
        np.testing.assert_allclose(rates, recording["rate"], rtol=1e-7)

    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [1, 3])
    def test_low_temperature_without_classifier(self, steps, parity):
        recording = load_recording("pretrain_lars_sqrt_T0.1_nolineareval")
        model = compiled(SimCLR(recorded_network(classes=0), VIEWS, 0.1, weight_decay=DECAY))
        run = Run(model, recording["rate"][:steps])
        comparison = Comparison(parity, "pretraining at temperature 0.1, no classifier", run, recording)
        comparison.logs({"loss": "total"})
        comparison.gradients()
        if steps == len(recording["rate"]):
            comparison.weights()

    @pytest.mark.slow  # on one replica as with global batch norm; test_batch_norm tests the setting itself
    def test_local_batch_norm(self, parity):
        recording = load_recording("pretrain_localbn")
        run = pretraining(recording, len(recording["rate"]), synchronized=False)
        comparison = Comparison(parity, "pretraining with local BN", run, recording)
        comparison.logs({"loss": "total"})
        comparison.gradients()
        comparison.weights()

    @pytest.mark.parametrize("steps", [1, pytest.param(5, marks=pytest.mark.slow)])
    def test_two_replicas_equal_the_recording_of_two(self, steps, replicas, parity):
        """In float32 as recorded, whose rounding ResNet-18's batch norms amplify by up to 3e-3.

        Batch norms are not fused, so that they round as the official ones do.
        """
        recording, case = load_recording("pretrain_lars", TWO_REPLICAS), "pretraining, 2 replicas as recorded"
        run = pretraining(recording, steps, replicas(2), "float32", fused=False)
        for step in range(steps):
            self.assert_losses_of_replicas(parity, case, run, recording, step)
        comparison = Comparison(parity, case, run, recording, rtol=3e-3, precision="float32")
        comparison.gradients()
        if steps == len(recording["rate"]):
            comparison.weights()

    def test_two_replicas_on_fused_kernels(self, replicas, parity):
        """In float32; gradients are compared with those of one replica in float64, to the effect of rounding."""
        recording, case = load_recording("pretrain_lars", TWO_REPLICAS), "pretraining, 2 replicas, fused BN"
        run = pretraining(recording, 1, replicas(2), "float32", fused=True)
        self.assert_losses_of_replicas(parity, case, run, recording, step=0)
        one_replica = load_recording("pretrain_lars")
        Comparison(parity, case, run, one_replica, rtol=3e-3, precision="float32").gradients(sampled=False)

    @staticmethod
    def assert_losses_of_replicas(parity, case: str, run: Run, recording: dict, step: int) -> None:
        names = ("contrastive_loss", "online_loss", "loss")
        actual = [[replica[name] for replica in run.logs[step]] for name in names]
        which, tolerance = ("losses of step 0", 5e-6) if step == 0 else ("losses of later steps", 3e-3)
        parity(f"{case}: {which}", actual, recording[f"step{step}/per_replica_con_sup_total"], tolerance, of="each")

    @pytest.mark.parametrize(
        ("count", "steps"),
        [(2, 1), pytest.param(2, 5, marks=pytest.mark.slow), pytest.param(4, 5, marks=pytest.mark.slow)],
    )
    def test_replicas_equal_the_recording_of_one_device(self, count, steps, replicas, parity):
        """In float64; statistics and negatives are those of the whole batch."""
        recording = load_recording("pretrain_lars")
        run = pretraining(recording, steps, replicas(count))
        comparison = Comparison(parity, f"pretraining, {count} replicas against one device", run, recording)
        comparison.logs(PRETRAINING_COLUMNS)
        comparison.gradients()
        if steps == len(recording["rate"]):
            comparison.weights()


class TestFineTuning:
    @pytest.mark.parametrize(
        ("case", "tap"), [("lars_all_sel1", 1), pytest.param("lars_all", 0, marks=pytest.mark.slow)]
    )
    def test_lars(self, case, tap, parity):
        """Our head layers above the tap do not run and keep their statistics; the official ones change."""
        recording = load_recording(f"finetune_{case}")
        model = ClassificationModel(recorded_network(tap=tap), VIEWS, weight_decay=DECAY)
        run = Run(compiled(model), recording["rate"])
        idle = head_layers(run, tap)
        assert set(run.gradients) == set(recording["trainable_names"]) - idle
        comparison = Comparison(parity, f"fine-tuning with LARS from layer {tap}", run, recording, idle)
        comparison.logs({"loss": "total", "train_top1": "top1"})
        comparison.gradients()
        comparison.weights()
        moving_statistics = {f"head_contrastive/nl_2/batch_normalization/moving_{x}" for x in ("mean", "variance")}
        assert moving_statistics < set(recording["changed_after_step1_names"])

    @pytest.mark.slow  # below, the same is tested above a frozen block
    def test_momentum(self, parity):
        """The official loss also decays unused head layers; everything else is equal."""
        recording, case = load_recording("finetune_momentum_all"), "fine-tuning with momentum"
        model = ClassificationModel(recorded_network(), VIEWS, weight_decay=MOMENTUM_DECAY)
        run = Run(compiled(model, "momentum"), recording["rate"])
        idle = head_layers(run, 0)
        decay_of_idle = MOMENTUM_DECAY / 2 * sum_of_squares(run, idle)
        assert set(run.gradients) == set(recording["trainable_names"]) - idle
        loss = run.log("loss")
        parity(f"{case}: losses", loss[0], recording["total"][0] - decay_of_idle, 1e-10, "float64", of="each")
        penalty = np.array(loss) - recording["supervised"]
        # Not to more digits, as the idle weights of the official code shrink.
        np.testing.assert_allclose(penalty, recording["decay"] - decay_of_idle, rtol=1e-4)
        comparison = Comparison(parity, case, run, recording, idle)
        comparison.gradients()
        comparison.weights()


class OfficialFreezing(ClassificationModel):
    """Freezes as the official code does: frozen weights get no gradient, but batch norms stay in training mode."""

    first_trained = 3

    @property
    def trained_variables(self):
        encoder = self.network.encoder
        return [v for group in encoder.groups[self.first_trained - 1 :] for v in group.trainable_variables] + (
            self.network.classifier_variables
        )


@pytest.mark.parametrize(
    ("case", "block", "decay"),
    [
        ("momentum_after2", 2, MOMENTUM_DECAY),
        pytest.param("momentum_linear_after4", 4, 0.0, marks=pytest.mark.slow),
        pytest.param("momentum_linear_after4_wd", 4, MOMENTUM_DECAY, marks=pytest.mark.slow),
    ],
)
def test_frozen_blocks_differ_from_the_official_ones_only_in_batch_norm(case, block, decay, parity):
    """We freeze moving statistics too; the official tf2 code normalises frozen parts by the batch and updates them.

    With batch norms in training mode, our losses and gradients are the recorded ones, so there is no other difference
    (except the decay of unused head layers, see ``test_momentum``).
    """
    recording, title = load_recording(f"finetune_{case}"), f"frozen up to block {block}, BN as there, decay {decay:g}"
    network = recorded_network()
    official = OfficialFreezing(network, VIEWS, weight_decay=decay)
    official.first_trained = block + 1
    run = Run(compiled(official, "momentum"), recording["rate"])
    idle = head_layers(run, 0)
    expected = recording["total"][0] - decay / 2 * sum_of_squares(run, idle)
    parity(f"{title}: losses", run.log("loss")[0], expected, 1e-10, "float64", of="each")
    comparison = Comparison(parity, title, run, recording, idle)
    comparison.gradients()
    comparison.weights()

    assign_recorded(network)
    ours = ClassificationModel(network, VIEWS)
    ours.freeze(block)
    frozen = [v for part in [network.encoder.stem, *network.encoder.groups[:block]] for v in part.variables]
    before = [variable.numpy() for variable in frozen]
    (loss,) = Run(compiled(ours, "momentum"), recording["rate"][:1]).log("loss")
    assert abs(loss - recording["supervised"][0]) > 0.01
    for variable, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable, value)
