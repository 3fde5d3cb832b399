"""Layouts of folders: splits and classes, reports, and errors that suggest a next step."""

import os
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.data import layouts
from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.layouts import NoSuchSplitError, canonical_split, choose_split, choose_splits
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


@pytest.fixture
def folder(tmp_path):
    """Returns a function that writes empty files, ``name*3`` is three of them, and returns the folder."""
    root = tmp_path / "birds"

    def write(*names):
        for name, _, count in (name.partition("*") for name in names):
            for number in range(int(count or 1)):
                path = root / name.replace("#", str(number))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("")
        return root

    return write


def open_split(folder, split="train", *, with_unlabelled=False, **settings):
    config = Config(dataset=f"folder:{folder}", **settings)
    return open_source(config, split, with_unlabelled=with_unlabelled)


def refusal(folder, split="train", **options):
    """Returns the message of the one-line error that opening a split raises, without the flag and the folder."""
    with pytest.raises(SettingError) as caught:
        open_split(folder, split, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"--dataset=folder:{folder}: ").replace(str(folder), "…")


def relative(source, folder):
    return [os.path.relpath(path, folder) for path in source.paths]


def counts(source):
    return np.bincount(source.labels + 1, minlength=len(source.class_names) + 1).tolist()


# Names of splits


@pytest.mark.parametrize(
    ("names", "canonical"),
    [
        ("train Train TRAINING training_set Training-Set train_set", "train"),
        ("test Testing test_set TEST_SET", "test"),
        ("val valid Validation VAL val_set validation_set", "validation"),
        ("unlabeled unlabelled Unlabelled", "unlabelled"),
        ("all All", "all"),
        ("cat trains tests evaluation testset set", ""),
    ],
)
def test_usual_names_of_splits(names, canonical):
    assert [canonical_split(name) for name in names.split()] == [canonical] * len(names.split())
    assert canonical_split("training set") == "train" and canonical_split("") == ""


@pytest.mark.parametrize(
    ("split", "available", "chosen"),
    [
        ("", ["train", "test", "val"], "val"),
        ("", ["test", "validation"], "validation"),
        ("", ["train", "Testing"], "Testing"),
        ("validation", ["train", "val"], "val"),
        ("val", ["validation", "val"], "val"),
        ("odd", ["odd"], "odd"),
    ],
)
def test_a_split_is_chosen_by_its_own_or_another_usual_name(split, available, chosen):
    assert choose_split(Config(), split, available) == chosen


def test_a_split_that_does_not_exist_is_refused_with_the_next_step():
    config = Config(dataset="x")
    messages = {
        ("", "train"): "--eval_split=validation: x has only train; --eval_split=train evaluates on the training images",
        ("", "odd"): "--eval_split=validation: x has only odd; give one as --eval_split",
        ("train", "odd"): "--train_split=train: x has only odd",
        ("odd", "train"): "--eval_split=odd: x has only train",
    }
    for (split, available), message in messages.items():
        with pytest.raises(NoSuchSplitError) as caught:
            choose_split(config, split, [available])
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("split", "with_unlabelled", "chosen"),
    [
        ("train", False, ("train",)),
        ("train", True, ("train", "unlabeled")),
        ("all", False, ("train", "val")),
        ("all", True, ("train", "val", "unlabeled")),
        ("val", True, ("val",)),
        ("unlabelled", True, ("unlabeled",)),
        ("unlabelled", False, ("unlabeled",)),
    ],
)
def test_the_unlabelled_split_joins_the_images_to_train_on(split, with_unlabelled, chosen):
    assert choose_splits(Config(), split, ["train", "val", "unlabeled"], with_unlabelled=with_unlabelled) == chosen


# Folders of splits


@pytest.mark.parametrize(
    ("train", "evaluation", "canonical"),
    [
        ("Train", "Test", "test"),
        ("training", "testing", "test"),
        ("training_set", "test_set", "test"),
        ("TRAIN", "val", "validation"),
        ("train", "valid", "validation"),
        ("Training Set", "Validation", "validation"),
    ],
)
def test_splits_have_their_usual_names_in_any_case(train, evaluation, canonical, folder):
    root = folder(f"{train}/cat/#.png*3", f"{train}/dog/#.png*3", f"{evaluation}/cat/a.png", f"{evaluation}/dog/a.png")
    source, test = open_split(root), open_split(root, "")
    assert source.class_names == test.class_names == ("cat", "dog")
    assert counts(source) == [0, 3, 3] and counts(test) == [0, 1, 1]
    assert (source.name, test.name) == ("birds/train", f"birds/{canonical}")
    assert test.paths == open_split(root, evaluation).paths == open_split(root, canonical).paths
    pairs = (("train", train), (canonical, evaluation))
    assert source.notes == ("splits: " + ", ".join(a if a == b else f"{a} = {b}" for a, b in pairs),)


def test_all_is_every_split_but_the_unlabelled_one(folder):
    root = folder("train/a/1.png", "train/b/2.png", "test/b/3.png", "val/b/4.png", "unlabelled/5.png")
    source = open_split(root, "all")
    assert relative(source, root) == ["train/a/1.png", "train/b/2.png", "val/b/4.png", "test/b/3.png"]
    assert source.labels.tolist() == [0, 1, 1, 1] and source.name == "birds/train+validation+test"
    assert "train and validation and test together" in source.notes


def test_a_class_without_images_in_a_split_keeps_the_numbers_of_the_others(folder):
    root = folder("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/#.png*2")
    test = open_split(root, "test")
    assert test.class_names == ("a", "b", "c") and counts(test) == [0, 1, 0, 2]


class TestUnlabelledSplit:
    NAMES = ("train/a/#.png*2", "train/b/1.png", "test/a/1.png", "Unlabeled/#.png*4", "Unlabeled/any/5.png")

    def test_pretraining_and_distillation_use_it_with_train(self, folder):
        root = folder(*self.NAMES)
        source = open_split(root, with_unlabelled=True)
        assert counts(source) == [5, 2, 1] and source.class_names == ("a", "b")
        assert [path for path in relative(source, root) if path.startswith("Un")] == relative(source, root)[3:]
        assert source.name == "birds/train+unlabelled" and "train and unlabelled together" in source.notes

    def test_it_may_lie_beside_class_folders(self, folder):
        root = folder("a/#.png*10", "b/#.png*5", "Unlabeled/x/#.png*3")
        source = open_split(root, with_unlabelled=True)
        assert counts(source) == [3, 8, 4] and source.class_names == ("a", "b")
        assert source.name == "birds/train+unlabelled" and "train and unlabelled together" in source.notes
        assert counts(open_split(root)) == [0, 8, 4] and counts(open_split(root, "")) == [0, 2, 1]
        assert counts(open_split(root, "all", with_unlabelled=True)) == [3, 10, 5]
        unlabelled = open_split(root, "unlabeled")
        assert unlabelled.num_examples == 3 and unlabelled.labels is None

    def test_other_stages_do_not(self, folder):
        root = folder(*self.NAMES)
        assert counts(open_split(root)) == [0, 2, 1] == counts(open_labelled(Config(dataset=f"folder:{root}")))

    def test_distillation_with_labels_keeps_its_images_without_theirs(self, folder):
        config = Config(dataset=f"folder:{folder(*self.NAMES)}", labels_per_class=1)
        assert counts(open_labelled(config, keep_unlabelled=True)) == [6, 1, 1]
        assert counts(open_labelled(config)) == [0, 1, 1]

    def test_it_is_used_alone_if_there_is_no_train(self, folder):
        root = folder("unlabelled/x/#.png*3", "unlabelled/y/1.png")
        source = open_split(root, with_unlabelled=True)
        assert source.num_examples == 4 and source.labels is None and source.class_names == ()
        assert "unlabelled alone, as there is no train" in source.notes
        assert refusal(root) == "--train_split=train: folder:… has only unlabelled"
        assert open_split(root, "unlabelled").paths == source.paths

    def test_it_may_be_a_link(self, folder, tmp_path):
        root = folder("train/a/1.png", "train/b/1.png")
        (tmp_path / "many").mkdir()
        (tmp_path / "many/1.png").write_text("")
        (root / "unlabelled").symlink_to("../many")
        assert counts(open_split(root, with_unlabelled=True)) == [1, 1, 1]

    def test_beside_images_without_labels_there_are_no_labels(self, folder):
        source = open_split(folder("train/#.png*2", "unlabelled/1.png"), with_unlabelled=True)
        assert source.num_examples == 3 and source.labels is None


def test_what_is_not_a_split_is_never_taken_for_a_class(folder):
    root = folder("train/a/1.png", "test/a/1.png", "labels/a.txt", "loose.png", "notes.txt")
    source = open_split(root)
    assert source.class_names == ("a",)
    assert source.skipped == {
        "folder without images": 1,
        "image beside the split folders": 1,
        "not a supported image format (.txt)": 1,
    }


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["val/a/1.png", "test/a/1.png"], "train", "has val and test, but no folder named train; rename the one"),
        (
            ["cat/1.png", "Test/1.png"],
            "train",
            "beside the split Test there are folders of images, cat; move them into",
        ),
        (["cat/1.png", "unlabelled/1.txt"], "unlabelled", "…/unlabelled has no .jpg, .jpeg, "),
        (["train/a/1.png", "more/a/1.png"], "train", "beside the split train there are folders of images, more; move"),
        (
            ["Train/a/1.png", "training/a/1.png"],
            "train",
            "Train and training are both names of the split train; rename",
        ),
        (
            ["train/a/1.png", "test/1.png"],
            "test",
            "test has no class folders, but train has a; sort its images into them",
        ),
        (["train/1.png", "test/a/1.png"], "test", "test has the class folders a, but train has none; sort its images"),
        (["train/a/1.png", "test/b/1.png"], "test", "test and train have different class folders: train has no b (its"),
        (
            ["A/x/1.png", "A/y/1.png", "B/x/1.png", "B/y/1.png"],
            "train",
            "A, B have the same sub-folders, x, y; name them",
        ),
        (
            ["a/1.png", "b/1.txt"],
            "train",
            "class b has no images (left out: 1 x not a supported image format (.txt)); re",
        ),
        (
            ["a/train/1.png", "b/train/1.png"],
            "train",
            "a, b have the same sub-folders, train; put the classes into the",
        ),
        (["unlabelled/1.txt"], "unlabelled", "…/unlabelled has no .jpg, .jpeg, "),
        (["train/1.txt"], "train", "…/train has no .jpg, .jpeg, "),
        (
            ["#.png*3", "thumbs/1.png"],
            "train",
            "3 images lie loose in …, beside 1 in thumbs; move the loose images into",
        ),
        (["#.png*4", "a/#.png*2", "b/#.png*2"], "train", "4 images lie loose in …, beside 4 in a, b; move the loose"),
    ],
)
def test_unclear_folders_are_refused_with_the_next_step(names, split, message, folder):
    assert refusal(folder(*names), split, with_unlabelled=True).startswith(message)


def test_a_split_without_train_can_be_evaluated_on_as_the_message_says(folder):
    root = folder("val/a/#.png*2", "val/b/1.png", "test/a/1.png")
    assert refusal(root, "test").endswith("or evaluate on one alone: --dataset=folder:…/val --eval_split=all")
    assert counts(open_split(root / "val", "all")) == [0, 2, 1]


# Folders of classes


def test_sub_folders_are_classes_and_every_fifth_image_is_held_out(folder):
    root = folder("a/#.png*10", "b/deep/er/#.png*5")
    source, test, whole = open_split(root), open_split(root, ""), open_split(root, "all")
    assert relative(test, root) == ["a/4.png", "a/9.png", "b/deep/er/4.png"]
    assert counts(source) == [0, 8, 4] and counts(whole) == [0, 10, 5]
    assert source.notes == ("sub-folders are classes", "every fifth image of each class is held out for test")
    assert whole.notes == ("sub-folders are classes",)


def test_the_ways_out_of_too_few_images_work(folder):
    root = folder("a/#.png*4", "b/#.png*3")
    message = refusal(root, "")
    assert message.startswith("too few images to hold some out for test (a class needs five); --eval_split=train ")
    assert "--eval_split=all on all; or put images into folders named train and test" in message
    assert counts(open_split(root, "train")) == counts(open_split(root, "all")) == [0, 4, 3]
    (root / "train").mkdir()
    for name in ("a", "b"):
        (root / name).rename(root / "train" / name)
    folder("test/a/1.png")
    assert counts(open_split(root, "")) == [0, 1, 0]


def test_images_beside_classes_are_left_out_if_they_are_fewer(folder):
    source = open_split(folder("#.png*3", "a/#.png*2", "b/#.png*2"))
    assert counts(source) == [0, 2, 2] and source.skipped == {"image beside the class folders": 3}


def test_images_beside_folders_without_images_are_unlabelled(folder):
    source = open_split(folder("#.png*3", "empty/notes.txt"))
    assert source.num_examples == 3 and source.labels is None
    assert source.notes == ("no class folders: no labels",)
    assert source.skipped["folder without images"] == 1


def test_images_directly_in_folders_with_equal_sub_folders_make_them_classes(folder):
    assert open_split(folder("a/x/1.png", "b/x/1.png", "a/1.png")).class_names == ("a", "b")


def test_the_hint_without_labels_says_why(folder):
    config = Config(dataset=f"folder:{folder('1.png')}", mode="supervised")
    with pytest.raises(SettingError, match=r"has no labels, which supervised needs \(no class folders: no labels\)$"):
        open_labelled(config)


def test_the_directories_of_runs_are_no_data(folder):
    photos = ("#.png*5", "runs/a/config.json", "runs/a/metrics.csv", "runs/a/tensorboard/sprite.png")
    source = open_split(folder(*photos))
    assert source.num_examples == 5 and source.skipped["directory of a run"] == 1
    root = folder("train/x/1.png", "train/runs/b/config.json", "train/runs/b/checkpoints/1.png", "test/x/1.png")
    assert open_split(root, "test").class_names == ("x",)


# Wrapper folders


@pytest.mark.parametrize("wrapper", ["birds", "a/b/c", "archive.zip"])
def test_a_wrapper_is_entered(wrapper, folder):
    root = folder(f"{wrapper}/train/a/1.png", f"{wrapper}/train/b/1.png", f"{wrapper}/test/a/1.png", "__MACOSX/x.png")
    source = open_split(root)
    assert source.class_names == ("a", "b") and source.num_examples == 2
    assert source.notes == (f"entered the only folder, {wrapper}", "splits: train, test")
    assert source.name == "birds/train" and source.skipped == {"hidden or system folder": 1}


def test_a_wrapper_of_classes_is_entered(folder):
    root = folder("birds/a/#.png*5", "birds/b/#.png*5", "birds/README")
    source = open_split(root)
    assert source.class_names == ("a", "b") and "entered the only folder, birds" in source.notes
    assert source.skipped == {"not a supported image format (no suffix)": 1}


def test_a_wrapper_beside_runs_is_entered(folder):
    root = folder("birds/a/1.png", "birds/b/1.png", "runs/x/config.json", "runs/x/metrics.csv")
    assert open_split(root).class_names == ("a", "b")


def test_wrappers_inside_splits_are_entered(folder):
    root = folder("training_set/training_set/a/1.png", "training_set/training_set/b/1.png", "test_set/test_set/a/1.png")
    source, test = open_split(root), open_split(root, "")
    assert source.class_names == test.class_names == ("a", "b")
    assert "entered the only folder, test_set/test_set" in test.notes


def test_a_single_folder_of_images_is_a_class(folder):
    source = open_split(folder("cat/#.png*3", "cat/young/1.png"))
    assert source.class_names == ("cat",) and not any("entered" in note for note in source.notes)


def test_a_single_split_folder_is_no_wrapper(folder):
    root = folder("train/a/1.png", "train/b/1.png")
    assert open_split(root).class_names == ("a", "b")
    message = "--eval_split=validation: folder:… has only train; --eval_split=train evaluates on the training images"
    assert refusal(root, "") == message
    assert counts(open_split(root, "train")) == [0, 1, 1]


def test_links_that_lead_back_are_no_classes(folder):
    root = folder("a/#.png*5", "b/#.png*5")
    (root / "loop").symlink_to(".")
    (root / "a" / "up").symlink_to("..")
    source = open_split(root, "all")
    assert source.class_names == ("a", "b") and counts(source) == [0, 5, 5]
    assert source.skipped == {"link to a folder that is already listed": 2}
    alone = folder("only/x.txt").parent / "alone"
    alone.mkdir()
    (alone / "self").symlink_to(".")
    assert "has no .jpg" in refusal(alone)


@given(
    classes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 11), min_size=2),
    wrapper=st.sampled_from(["", "w", "w/w/w"]),
    depth=st.sampled_from(["", "deep/er"]),
    rubbish=st.sets(st.sampled_from(["__MACOSX/1.png", ".x/1.png", "notes.txt", "Thumbs.db"])),
)
def test_any_wrapped_folder_of_classes_is_split_alike(classes, wrapper, depth, rubbish):
    with tempfile.TemporaryDirectory() as name:
        top = pathlib.Path(name, wrapper)
        files = [f"{label}/{depth}/{number}.png" for label, count in classes.items() for number in range(count)]
        if depth:
            files += [f"{label}/0.png" for label in classes]
        for file in [*files, *rubbish]:
            (top / file).parent.mkdir(parents=True, exist_ok=True)
            (top / file).write_text("")
        whole, train = open_split(name, "all"), open_split(name)
        held_out = [(count + bool(depth)) // 5 for _, count in sorted(classes.items())]
        test = open_split(name, "") if any(held_out) else whole.subset(np.zeros(0, int))
    assert whole.class_names == tuple(sorted(classes)) and sum(whole.skipped.values()) == len(rubbish)
    assert {path.removeprefix(f"{top}/").replace("//", "/") for path in whole.paths} == {
        f.replace("//", "/") for f in files
    }
    assert counts(test)[1:] == held_out
    assert sorted(train.paths + test.paths) == sorted(whole.paths)


# TFDS


@pytest.mark.parametrize(
    ("place", "given", "hint"),
    [
        ("digits/1.0.0", "digits/1.0.0", "--dataset=digits:1.0.0"),
        ("digits/1.0.0", "digits", "--dataset=digits:1.0.0"),
        ("digits/1.0.0", "", "--dataset=digits:1.0.0"),
        ("digits/small/1.0.0", "digits", "--dataset=digits/small:1.0.0"),
        ("renamed/1.0.0", "renamed", ""),
    ],
)
def test_folders_that_tfds_prepared_are_named_as_tfds_does(place, given, hint, tmp_path):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "dataset_info.json").write_text('{"name": "digits"}')
    expected = f"{hint} --data_dir={tmp_path}" if hint else ""
    assert layouts.prepared_by_tfds(tmp_path / given) == expected
    message = refusal(tmp_path / given)
    assert (f"; TFDS prepared it: say {hint} --data_dir=" in message) == bool(hint)
