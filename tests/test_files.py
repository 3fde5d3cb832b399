"""Files and folders are replaced completely or not at all, however the program ends; links are not followed."""

import inspect
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from simclrv2_tf.files import is_plain, plain_path, replacing, write_atomically

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


KINDS = ("file", "folder")


def write(path: pathlib.Path, kind: str, text: str) -> None:
    """Writes a file, or a folder with two files."""
    if kind == "file":
        path.write_text(text)
        return
    (path / "inner").mkdir(parents=True)
    (path / "first").write_text(text)
    (path / "inner/second").write_text(text)


def read(path: pathlib.Path) -> set[str]:
    """Returns the distinct texts of the files at a path."""
    return {file.read_text() for file in [path, *path.rglob("*")] if file.is_file()}


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", ["nothing", *KINDS, "link to file", "link to folder", "dangling link"])
def test_whatever_was_there_is_replaced_and_a_link_is_not_followed(old, new, tmp_path):
    place, outside = tmp_path / "run", tmp_path / "outside"
    place.mkdir()
    if old in KINDS:
        write(place / "export", old, "old")
    elif old != "nothing":
        if old != "dangling link":
            write(outside, old.removeprefix("link to "), "precious")
        (place / "export").symlink_to(outside)
    with replacing(place / "export") as unfinished:
        assert unfinished.name == "export"
        write(unfinished, new, "new")
    assert read(place / "export") == {"new"} and not (place / "export").is_symlink()
    assert [path.name for path in place.iterdir()] == ["export"]
    assert read(outside) == ({"precious"} if old in ("link to file", "link to folder") else set())


@pytest.mark.parametrize("name", ["", "/old-export", "/lock"])
@pytest.mark.parametrize("target", ["file", "folder", "dangling"])
def test_a_link_under_a_temporary_name_is_not_followed(target, name, tmp_path):
    """As in an attacker's directory; the attacker cannot know the random part of a future name."""
    place, outside = tmp_path / "run", tmp_path / "outside"
    (place / ".simclrv2-abc" if name else place).mkdir(parents=True)
    if target != "dangling":
        write(outside, target, "precious")
    (place / f".simclrv2-abc{name}").symlink_to(outside)
    with replacing(place / "export") as unfinished:
        write(unfinished, "folder", "new")
    assert read(place / "export") == {"new"}
    assert read(outside) == (set() if target == "dangling" else {"precious"})


def test_temporary_names_are_random(tmp_path):
    with replacing(tmp_path / "export") as one, replacing(tmp_path / "export") as two:
        assert one.parent != two.parent and {one.parent.parent, two.parent.parent} == {tmp_path}
        assert one.parent.stat().st_mode & 0o77 == 0  # no other user can put links there
        write(one, "file", "one")
        write(two, "file", "two")
    assert read(tmp_path / "export") == {"one"} and [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_write_the_same_path_at_once_do_not_disturb_each_other(kind, tmp_path):
    """Each writes it many times; none fails, the content is always one of theirs, and nothing is left over."""
    script = f"""
import pathlib, sys
from simclrv2_tf.files import replacing
{inspect.getsource(write)}
for number in range(200):
    with replacing(pathlib.Path(sys.argv[1])) as unfinished:
        write(unfinished, {kind!r}, sys.argv[2])
"""
    command = [sys.executable, "-c", script, str(tmp_path / "export")]
    texts = ("one", "two", "three", "four")
    writers = [subprocess.Popen([*command, text], cwd=ROOT, stderr=subprocess.PIPE) for text in texts]
    errors = [writer.communicate()[1].decode() for writer in writers]
    assert errors == ["", "", "", ""]
    assert read(tmp_path / "export") in ({text} for text in texts)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_an_error_of_any_kind_leaves_the_old_content_and_nothing_else(error, kind, tmp_path):
    write(tmp_path / "export", kind, "old")
    with pytest.raises(error), replacing(tmp_path / "export") as unfinished:
        write(unfinished, kind, "new")
        raise error
    assert read(tmp_path / "export") == {"old"} and [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_the_old_content_and_nothing_else(kind, tmp_path, file_size_limit):
    write(tmp_path / "export", kind, "old")
    with file_size_limit(3), pytest.raises(OSError), replacing(tmp_path / "export") as unfinished:
        write(unfinished, kind, "newer")
    assert read(tmp_path / "export") == {"old"} and [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_that_cannot_take_the_place_of_the_old_one_leaves_it(tmp_path):
    write(tmp_path / "export", "folder", "old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "export"):
        pass  # writes nothing
    assert read(tmp_path / "export") == {"old"} and [path.name for path in tmp_path.iterdir()] == ["export"]


TERMINATED = """
import pathlib, signal, sys
from simclrv2_tf.files import replacing
from simclrv2_tf.interrupts import SignalWatch

with SignalWatch(), replacing(pathlib.Path(sys.argv[1])) as unfinished:
    unfinished.mkdir()
    signal.raise_signal(signal.SIGTERM)
"""


def test_sigterm_removes_the_temporary_folder(tmp_path):
    program = subprocess.run([sys.executable, "-c", TERMINATED, tmp_path / "export"], capture_output=True, text=True)
    assert program.returncode == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
    assert program.stderr == "\nSIGTERM: stopping; repeat to stop now.\n"


# Kills itself before its n-th change of a file. Only such changes raise these audit events.
KILLED = """
import os, pathlib, signal, sys
from simclrv2_tf.files import replacing

path, kind, moment = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
changes = 0

def count(event, arguments):
    global changes
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        changes += 1
        if changes == moment:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
with replacing(path) as unfinished:
    write(unfinished, kind, "new")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_at_any_change_the_next_call_finds_the_old_or_the_new_content(kind, tmp_path):
    contents, moment = [], 0
    while not contents or contents[-1] != "finished":
        moment += 1
        place = tmp_path / str(moment)
        place.mkdir()
        write(place / "export", kind, "old")
        script = f"import pathlib\n{inspect.getsource(write)}\n{KILLED}"
        command = [sys.executable, "-c", script, str(place / "export"), kind, str(moment)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status == 0:
            contents.append("finished")
            continue
        assert status == -signal.SIGKILL
        with pytest.raises(ValueError), replacing(place / "export"):
            raise ValueError  # the next call fails as well
        (content,) = read(place / "export")
        contents.append(content)
        assert [path.name for path in place.iterdir()] == ["export"]
    assert contents[0] == "old" and contents[-2] == "new" and sorted(contents[:-1], reverse=True) == contents[:-1]


@pytest.mark.parametrize("name", ["a[0]", "a*", "a?", "a\\b"])
def test_a_path_with_characters_of_patterns_gets_a_link(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "inner").mkdir(parents=True)
    for folder in (str(tmp_path / name), f"{name}/inner"):  # also relative ones
        link = plain_path(folder)
        assert is_plain(link) and pathlib.Path(link).samefile(folder) and plain_path(folder) == link


@pytest.mark.parametrize("path", ["runs/a", "/a]b", "two words", "", "gs://bucket/[0]"])
def test_any_other_path_is_used_itself(path):
    assert plain_path(path) == path


def test_links_are_removed_at_the_end_also_if_the_temporary_directory_has_such_a_name(tmp_path):
    code = "from simclrv2_tf.files import plain_path; print(plain_path('/[0]'))"
    (tmp_path / "t[0]").mkdir()
    command, environment = [sys.executable, "-c", code], os.environ | {"TMPDIR": str(tmp_path / "t[0]")}
    link = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert is_plain(link) and link.startswith("/tmp/simclrv2-links-") and not pathlib.Path(link).parent.exists()


def test_text_is_written_as_utf8(tmp_path):
    write_atomically(tmp_path / "text", "é")
    assert (tmp_path / "text").read_bytes() == "é".encode()
