"""The images below a folder: listed and skipped files with the reasons, at every depth."""

import collections
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.data import listing
from simclrv2_tf.data.listing import is_run_dir, list_images, list_names, printable


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def list_below(folder, **options):
    """Returns the listed images relative to the folder, and the counts of skipped files."""
    skipped = collections.Counter()
    return [os.path.relpath(path, folder) for path in list_images(str(folder), skipped, **options)], dict(skipped)


def test_images_are_listed_folder_by_folder_in_order(tmp_path):
    write(tmp_path, "b.png", "a/2.JPG", "a-b.png", "a/1/x.jfif", "c.tiff", "d.AVIF", "e.tif")
    expected = ["a/1/x.jfif", "a/2.JPG", "a-b.png", "b.png", "c.tiff", "d.AVIF", "e.tif"]
    assert list_below(tmp_path) == (expected, {})


@pytest.mark.parametrize("place", ["", "deep/er/"])
@pytest.mark.parametrize("name", [".cache", ".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN"])
def test_hidden_and_system_folders_are_left_out_at_every_depth(place, name, tmp_path):
    write(tmp_path, f"{place}{name}/a.png", f"{place}{name}/below/b.png", f"{place}c.png")
    assert list_below(tmp_path) == ([f"{place}c.png"], {"hidden or system folder": 1})


@pytest.mark.parametrize("name", [".a.png", "._a.jpg", "Thumbs.db", "desktop.ini"])
def test_hidden_and_system_files_are_left_out(name, tmp_path):
    write(tmp_path, f"deep/{name}", "b.png")
    assert list_below(tmp_path) == (["b.png"], {"hidden or system file": 1})


def test_other_types_are_counted_by_suffix(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "IMAGE_SUFFIXES", (".png",))  # as without pillow-heif
    write(tmp_path, "a.png", "a.svg", "b.SVG", "README", "photo.HEIC")
    skipped = {
        "not a supported image format (.svg)": 2,
        "not a supported image format (no suffix)": 1,
        "needs the package pillow-heif (.heic)": 1,
    }
    assert list_below(tmp_path) == (["a.png"], skipped)


class TestLinks:
    def test_links_to_files_and_folders_are_followed(self, tmp_path):
        write(tmp_path, "elsewhere/sub/a.png", "here/b.png")
        (tmp_path / "here/folder").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "here/c.png").symlink_to("b.png")
        assert list_below(tmp_path / "here") == (["b.png", "c.png", "folder/sub/a.png"], {})

    def test_circles_end(self, tmp_path):
        write(tmp_path, "a/b/1.png", "a/2.png")
        (tmp_path / "a/b/up").symlink_to("..")
        (tmp_path / "a/self").symlink_to(".")
        (tmp_path / "a/top").symlink_to(tmp_path)
        expected = ["2.png", "b/1.png"], {"link to a folder that is already listed": 3}
        assert list_below(tmp_path / "a", parents=[str(tmp_path)]) == expected

    def test_a_folder_is_listed_once_and_under_its_own_name(self, tmp_path):
        write(tmp_path, "z/1.png")
        (tmp_path / "a").symlink_to("z")
        assert list_below(tmp_path) == (["z/1.png"], {"link to a folder that is already listed": 1})

    def test_a_ladder_of_links_is_not_walked_along_each_path(self, tmp_path):
        for level in range(40):  # 2 ** 40 paths lead to the last folder
            (tmp_path / str(level)).mkdir()
            for name in ("left", "right"):
                (tmp_path / str(level) / name).symlink_to(f"../{level + 1}")
        write(tmp_path, "40/a.png")
        paths, skipped = list_below(tmp_path / "0")
        assert len(paths) == 1 and skipped == {"link to a folder that is already listed": 40}

    def test_a_broken_link_is_an_image_that_counts_as_corrupt_later(self, tmp_path):
        (tmp_path / "a.png").symlink_to("nowhere")
        assert list_below(tmp_path) == (["a.png"], {})


class TestRunDirectories:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ({"config.json", "checkpoints"}, True),
            ({"config.json", "metrics.csv", "a.png"}, True),
            ({"config.json", "evaluation.json"}, True),
            ({"config.json", "a.png"}, False),
            ({"metrics.csv", "checkpoints"}, False),
            (set(), False),
        ],
    )
    def test_a_config_and_a_record_make_one(self, names, expected):
        assert is_run_dir(names) is expected

    def test_they_are_left_out_with_the_folders_that_hold_nothing_else(self, tmp_path):
        write(tmp_path, "a.png", "runs/x/config.json", "runs/x/metrics.csv", "runs/x/tensorboard/sprite.png")
        write(tmp_path, "runs/y/config.json", "runs/y/checkpoints/1.index", "runs/y/b.png", "runs/log.txt")
        write(tmp_path, "runs/z/finetune_5/config.json", "runs/z/finetune_5/metrics.csv", "runs/z/figures/a.vl.json")
        write(tmp_path, "c/run/config.json", "c/run/result.json", "c/run/d.png", "c/e.png")
        assert list_below(tmp_path) == (["a.png", "c/e.png"], {"directory of a run": 4})

    def test_the_images_of_a_folder_that_is_also_the_model_directory_remain(self, tmp_path):
        write(tmp_path, "a.png", "class/b.png", "config.json", "checkpoints/c.png", "tensorboard/sprite.png")
        paths, skipped = list_below(tmp_path)
        assert paths == ["a.png", "class/b.png"] and skipped["directory of a run"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_an_unreadable_folder_is_counted(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a").chmod(0)
    assert list_below(tmp_path) == (["b/2.png"], {"unreadable folder": 1})
    (tmp_path / "a").chmod(0o700)


def test_names_can_be_printed_on_one_line():
    assert printable(os.fsdecode(b"caf\xe9\nbar")) == "caf\ufffd bar"
    assert list_names(["a", "b"]) == "a, b"
    assert list_names([str(i) for i in range(1012)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1,002 more"


NAMES = st.sampled_from(["a.png", "b.jpg", "c.txt", ".d.png", "Thumbs.db", "config.json", "e", "f.GIF"])
FOLDERS = st.lists(st.sampled_from(["x", "y", "z.png"]), max_size=3).map("/".join)


@given(st.sets(st.tuples(FOLDERS, NAMES), max_size=12))
def test_every_file_is_either_listed_or_counted(files):
    with tempfile.TemporaryDirectory() as root:
        for folder, name in files:
            os.makedirs(os.path.join(root, folder), exist_ok=True)
            open(os.path.join(root, folder, name), "w").close()
        paths, skipped = list_below(root)
    expected = {os.path.join(folder, name) for folder, name in files if name in ("a.png", "b.jpg", "f.GIF")}
    assert paths == sorted(expected, key=lambda path: path.split("/"))
    assert sum(skipped.values()) == len(files) - len(expected)
