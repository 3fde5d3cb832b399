"""Files given by ``--images``: a folder, files, globs; each image once."""

import os

import pytest

from simclrv2_tf.data import unlabelled
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current directory, with some empty files."""
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.png", "p/a.JPG", "p/deep/er/c.webp", "p/notes.txt", "q/d.png", "with, comma.png", "e[1].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def open_images(images, **settings):
    return unlabelled.open_images(Config(images=images, **settings))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("p", ["p/a.JPG", "p/b.png", "p/deep/er/c.webp"]),
        ("./p/", ["p/a.JPG", "p/b.png", "p/deep/er/c.webp"]),
        ("q,p/b.png", ["q/d.png", "p/b.png"]),
        ("p/b.png, p/b.png,p/*.png", ["p/b.png"]),
        ("with, comma.png", ["with, comma.png"]),
        ("e[1].png", ["e[1].png"]),
        ("?", ["p/a.JPG", "p/b.png", "p/deep/er/c.webp", "q/d.png"]),
        ("p/**", ["p/a.JPG", "p/b.png", "p/deep/er/c.webp"]),
        ("**/*.png", ["e[1].png", "p/b.png", "q/d.png", "with, comma.png"]),
        ("p/notes.txt", ["p/notes.txt"]),  # named explicitly, so it is reported as corrupt instead of skipped
    ],
)
def test_images_are_found(images, expected):
    source = open_images(images)
    assert list(source.paths) == expected
    assert source.labels is None and source.class_names == () and source.name == images


def test_the_home_directory_and_absolute_paths(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert open_images("~/q").paths == open_images(f"{folder}/q").paths == (f"{folder}/q/d.png",)


def test_other_files_are_counted():
    expected = {"not a supported image format (.txt)": 1}
    assert open_images("p").skipped == open_images("p/*").skipped == expected


@pytest.mark.parametrize("images", ["nowhere", "p,nowhere", "nowhere/*.png"])
def test_a_place_that_does_not_exist_is_refused(images):
    with pytest.raises(SettingError, match=r"^--images=nowhere\S*: there is no such file or folder$"):
        open_images(images)


def test_a_place_without_images_is_refused(folder):
    os.rename("p/notes.txt", "q/notes.txt")
    os.remove("q/d.png")
    with pytest.raises(
        SettingError, match=r"^--images=q: no \.jpg, .* images there, but 1 x not a supported .*\.txt\)$"
    ):
        open_images("q")


def test_a_broken_link_counts_as_corrupt(folder):
    os.symlink("gone.png", "q/link.png")
    assert open_images("q/link.png").paths == ("q/link.png",)
    assert open_images("q").paths == ("q/d.png", "q/link.png")


def test_files_are_read_as_the_settings_say():
    source = open_images("p", max_corrupt_share=0.3, max_file_mb=7, image_bits=12, cache_dataset=True)
    assert (source.max_corrupt_share, source.max_file_mb, source.image_bits, source.in_memory) == (0.3, 7, 12, False)
