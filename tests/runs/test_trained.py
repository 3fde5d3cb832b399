"""A trained model on replicas and among workers: no image is lost, and corrupt ones count wherever they were read."""

import numpy as np
import pytest
import saved_runs
import tiny

from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs.predictions import predict_images
from simclrv2_tf.runs.trained import TrainedModel

NAMES = ("crow", "robin", "wren")


def test_a_batch_of_all_images_is_a_multiple_of_the_replicas(replicas):
    pixels = np.random.default_rng(0).integers(0, 256, [5, 8, 8, 3], np.uint8)
    source = ArraySource("noise", pixels, None, ())
    expected = TrainedModel(tiny.network(), tiny.VIEWS, NAMES).image_outputs(source, "logits_sup", 256)
    with replicas(2).scope():
        model = TrainedModel(tiny.network(), tiny.VIEWS, NAMES)
    np.testing.assert_allclose(model.image_outputs(source, "logits_sup", 256), expected, rtol=1e-4, atol=1e-6)


class ReadByAnotherWorker(TrainedModel):
    """Returns NaN for the second image, as if another worker had found it corrupt."""

    def image_outputs(self, source, endpoint, batch_size):
        outputs = super().image_outputs(source, endpoint, batch_size)
        outputs[1] = np.nan
        return outputs


def test_corrupt_images_of_other_workers_count(tmp_path):
    paths = tuple(map(str, saved_runs.save_images(tmp_path, [f"{i}.png" for i in range(4)])))
    model, source = ReadByAnotherWorker(tiny.network(), tiny.VIEWS, NAMES), FileSource("photos", paths, None, ())
    assert predict_images(model, source, 1, 4).corrupt == [paths[1]] and source.corrupt == {paths[1]}
    with pytest.raises(SettingError, match=r"^--max_corrupt_share=0.2: 1 of 4 images of photos are corrupt"):
        predict_images(model, FileSource("photos", paths, None, (), max_corrupt_share=0.2), 1, 4)
