"""Parts of a training run that need no training."""

import itertools
import types

import keras

from simclrv2_tf.modes.train import ClassifierEvaluation


class Counted(ClassifierEvaluation):
    """Measures the number of its own measurements."""

    def __init__(self):
        method = types.SimpleNamespace(optimizer=keras.optimizers.SGD())
        super().__init__(types.SimpleNamespace(method=method, config=types.SimpleNamespace(mode="finetune")), None)
        self.counter = itertools.count(1)

    def measure(self):
        return {"top1": next(self.counter), "top5": 0}


def test_the_evaluation_of_the_last_interval_serves_the_result_unless_the_weights_have_changed():
    evaluation = Counted()
    assert evaluation.metrics() == {"eval_top1": 1}
    assert evaluation.result(None) == {"finetune_top1": 1, "finetune_top5": 0}
    evaluation.run.method.optimizer.iterations.assign_add(1)  # a callback has stopped training within an interval
    assert evaluation.result(None) == {"finetune_top1": 2, "finetune_top5": 0}
    assert evaluation.metrics() == {"eval_top1": 2}
