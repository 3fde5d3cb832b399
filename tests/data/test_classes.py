"""Labels of a data set are matched with the classes of a run by name; unknown names are refused with both lists."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.classes import align_labels, imagenet_classes, match_classes, numbered_classes, readable_classes
from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


def source(names, labels=(0, 1, 2, -1)):
    return ArraySource("birds/test", np.zeros([len(labels), 2, 2, 3], np.uint8), np.array(labels, np.int32), names)


RUN = ("robin", "wren", "crow")


def test_equal_classes_and_nothing_to_match_change_nothing(caplog):
    for images in (source(RUN), source((), [-1, -1]), None):
        assert align_labels(images, RUN, "--checkpoint=x") is images
    assert align_labels(source(("a", "b", "c")), (), "--checkpoint=x").class_names == ("a", "b", "c")  # no classifier
    assert not caplog.text


@pytest.mark.parametrize(
    ("names", "labels", "expected", "difference"),
    [
        (("crow", "robin", "wren"), [0, 1, 2, -1], [2, 0, 1, -1], "in another order"),
        (("Robin", "WREN", "Crow"), [0, 1, 2, -1], [0, 1, 2, -1], "spelled differently"),
        (("Wren", "robin"), [0, 1, 1], [1, 0, 0], "fewer and in another order and spelled differently"),  # no crow
    ],
)
def test_classes_are_matched_by_name(names, labels, expected, difference, caplog):
    images = align_labels(source(names, labels), RUN, "--checkpoint=x")
    assert images.labels.tolist() == expected and images.labels.dtype == np.int32 and images.class_names == RUN
    (record,) = caplog.records
    message = f"--checkpoint=x: labels of birds/test are matched by class name, as its classes are {difference}"
    assert record.getMessage() == message


@given(
    st.lists(st.text(), min_size=2, max_size=12, unique=True).flatmap(
        lambda n: st.tuples(st.just(n), st.permutations(n))
    )
)
def test_any_label_has_the_same_name_before_and_after(names):
    own, run = map(tuple, names)
    if numbered_classes(len(own)) in (own, run):
        return  # numbers are not names
    images = source(own, range(len(own)))
    aligned = align_labels(images, run, "--checkpoint=x")
    assert [aligned.class_names[label] for label in aligned.labels] == [own[label] for label in images.labels]


def test_accents_are_equal_however_they_are_encoded():
    assert match_classes(["Eisvo\u0308gel", "Ma\u0308use"], ["MÄUSE", "EISVÖGEL"]) == [1, 0]


def test_case_counts_where_it_tells_classes_apart():
    assert match_classes(["a", "A"], ["A", "b", "a"]) == [2, 0]
    assert match_classes(["a", "B"], ["A", "b", "a"]) is None
    assert match_classes(["same", "b"], ["same", "same"]) is None


def test_other_names_are_refused_with_both_lists_and_a_way_out():
    message = (
        "--checkpoint=x: has the classes robin, wren, crow; birds/test has null, eins; name the classes of the data as "
        "in the run, or train a classifier on them (--mode=finetune or linear_eval)"
    )
    with pytest.raises(SettingError) as error:
        align_labels(source(("null", "eins")), RUN, "--checkpoint=x")
    assert str(error.value) == message


def test_of_many_names_ten_are_listed_first_those_that_differ():
    run, own = [f"class {i}" for i in range(30)], [f"class {i}" for i in range(10, 29)] + ["a\nnew one"]
    with pytest.raises(SettingError) as error:
        align_labels(source(tuple(own)), run, "--teacher=x")
    first = ", ".join(f"class {i}" for i in range(10))
    assert f"--teacher=x: has the classes {first}, … (30 in all); birds/test has a new one, class 10, " in str(
        error.value
    )
    assert "class 18, … (20 in all)" in str(error.value) and "class 19" not in str(error.value)


def test_numbers_are_matched_if_there_are_as_many(caplog):
    assert align_labels(source(RUN), numbered_classes(3), "--teacher=x").class_names == RUN
    assert (
        "--teacher=x: classes of birds/test are matched by number, as only birds/test has names: 0 is robin, 2 is crow"
        in caplog.text
    )
    assert align_labels(source(numbered_classes(3)), RUN, "--teacher=x").class_names == RUN
    assert "as only the run has names" in caplog.text
    for own, run in ((RUN, numbered_classes(7)), (numbered_classes(3), numbered_classes(7))):
        with pytest.raises(SettingError, match=r"^--teacher=x: has 7 classes, but birds/test has 3$"):
            align_labels(source(own), run, "--teacher=x")


class Streamed(FileSource):
    """Files whose labels are read only when needed, like those of records."""

    def with_labels(self):
        return dataclasses.replace(self, labels=np.array([1, 0], np.int32))


def test_labels_that_are_not_read_yet_are_read():
    images = Streamed("a/train", ("x", "y"), None, ("crow", "robin"))
    assert align_labels(images, RUN, "--checkpoint=x").labels.tolist() == [0, 2]


def test_imagenet_has_1000_classes_with_different_names():
    ids, names = list(imagenet_classes()), list(imagenet_classes().values())
    assert len(ids) == 1000 and ids == sorted(ids) and ids[0] == "n01440764" and ids[-1] == "n15075141"
    assert len({name.casefold() for name in names}) == 1000
    # as in the published lists: https://gist.github.com/yrevar/942d3a0ac09ec9e5eb3a, rows 0, 1, 207, 281, 999
    assert [names[i] for i in (0, 1, 207, 281, 999)] == [
        "tench",
        "goldfish",
        "golden retriever",
        "tabby",
        "toilet tissue",
    ]


def test_synset_ids_are_names_of_imagenet():
    run = ("background", *imagenet_classes().values())
    images = align_labels(source(("n01443537", "n01440764", "n15075141")), run, "--checkpoint=x")
    assert images.labels.tolist() == [2, 1, 1000, -1]
    assert match_classes(["Goldfish"], list(imagenet_classes())) == [1]


def test_synset_ids_of_folders_are_replaced_by_names(tmp_path):
    for synset in ("n01440764", "n02123045"):
        (tmp_path / synset).mkdir()
        (tmp_path / synset / "0.jpg").write_bytes(b"")
    source = open_source(Config(dataset=f"folder:{tmp_path}"), "all")
    assert source.class_names == ("tench", "tabby") and source.labels.tolist() == [0, 1]
    assert "synset ids replaced by the class names of ImageNet" in source.notes


def test_other_names_stay():
    for names in ((), ("tench", "tabby"), ("n01440764", "n00000000")):
        images = source(names)
        assert readable_classes(images) is images
