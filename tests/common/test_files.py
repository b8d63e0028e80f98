"""Files that appear whole or not at all, locks, names, and messages where they cannot be had."""

import errno
import os
import re
import subprocess
import sys
import textwrap

import pytest

from common import errors, files, locks, workdir


def test_a_text_that_cannot_be_written_is_one_message(tmp_path):
    """And says so beforehand where that can be seen."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for path, reason in (
        (tmp_path / "folder", "is a folder: name a file"),
        (tmp_path / "file" / "a" / "b.txt", f"{tmp_path}/file is no folder"),
    ):
        with pytest.raises(errors.UserError, match="cannot be written"):
            files.write_text(path, "new")
        with pytest.raises(errors.UserError, match=reason):
            files.check_output(path)
    files.check_output(tmp_path / "file")
    files.check_output(tmp_path / "to" / "come" / "b.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_without_permission_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda place, mode: False)  # root may write anywhere
    with pytest.raises(errors.UserError, match=f"{tmp_path} may not be written to"):
        files.check_output(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), ValueError("not now")]
)
def test_after_a_failure_the_file_is_as_it_was(tmp_path, failure):
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "old")
    expected = errors.UserError if isinstance(failure, OSError) else ValueError

    def fail():
        with files.replacing(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text("half")
            raise failure

    with pytest.raises(expected, match=r"a\.txt cannot be written \(No space|not now"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_processes_that_change_one_file_lose_nothing(tmp_path):
    """Each adds its rows one by one to whatever is there."""
    path = tmp_path / "deep" / "table.txt"
    program = textwrap.dedent("""
        import pathlib, sys, time
        from common import files
        path, me, rows = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
        for i in range(rows):
            with files.locked(path):
                old = path.read_text() if path.exists() else ""
                time.sleep(0.002)  # the others get their chance
                files.write_text(path, f"{old}{me}-{i}\\n")
        assert "jax" not in sys.modules
    """)
    count, rows = 4, 15
    running = [
        subprocess.Popen([sys.executable, "-c", program, path, str(me), str(rows)])
        for me in range(count)
    ]
    assert [process.wait(timeout=100) for process in running] == [0] * count
    expected = {f"{me}-{i}" for me in range(count) for i in range(rows)}
    assert sorted(path.read_text().split()) == sorted(expected)
    assert [p.name for p in path.parent.iterdir()] == ["table.txt"]


def test_a_file_that_stays_locked_is_one_message_and_a_killed_owner_hinders_nobody(tmp_path):
    path = tmp_path / "table.txt"
    program = (
        "import sys, time; from common import files\n"
        "with files.locked(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout.readline() == "held\n"
            with (
                pytest.raises(
                    errors.UserError,
                    match=rf"table\.txt is being changed by another process \(pid {owner.pid} on "
                    r".*since more than 0\.1 s\. Wait for it or stop it",
                ),
                files.locked(path, seconds=0.1),
            ):
                pytest.fail("both hold it")
        finally:
            owner.kill()
    assert (tmp_path / ".table.txt.lock").exists()
    with files.locked(path, seconds=0):
        files.write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["table.txt"]
    with files.locked(path, seconds=0):  # it is given back
        pass


def test_a_lock_deleted_while_it_was_waited_for_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    """The holder deletes its file; who waited then holds the lock of a file without a name."""
    path = tmp_path / "lock"
    first, second, third = (locks.Lock(path) for _ in range(3))
    first.acquire()
    real, opened = locks.fcntl.flock, []

    def flock(file, how):
        opened.append(file)
        if len(opened) == 1:  # the second has opened the file, and the first gives it back
            first.release()
        real(file, how)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert second.acquire()
    assert len(opened) == 2
    with pytest.raises(locks.Busy, match=f"pid {os.getpid()} on"):
        third.acquire()
    second.release()
    assert not path.exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, None])
def test_without_locks_everything_works_with_one_warning(tmp_path, monkeypatch, caplog, code):
    def flock(file, how):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.setattr(locks, "fcntl", None)  # Windows
    else:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_without", set())
    with workdir.Lock(tmp_path / "run"), files.locked(tmp_path / "run" / "a.txt"):
        files.write_text(tmp_path / "run" / "a.txt", "new")
    with files.locked(tmp_path / "b.txt"):
        files.write_text(tmp_path / "b.txt", "new")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"The file system of {tmp_path}/run has no file locks (")
    assert "Do not start two commands at once" in message
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"a.txt", "b.txt"}


def test_a_lock_that_cannot_be_made_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    path = tmp_path / "file" / "a.txt"
    for context in (files.locked(path), workdir.Lock(path)):
        with (
            pytest.raises(
                errors.UserError, match=r"annot (be written|write to).*\b(exists|directory)"
            ),
            context,
        ):
            pytest.fail("held")

    def flock(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(errors.UserError, match=r"b\.txt cannot be written \(Input/output error"):
        files.locked(tmp_path / "b.txt").__enter__()


def test_a_work_directory_has_one_process(tmp_path):
    with workdir.Lock(tmp_path):
        with (
            pytest.raises(
                workdir.WorkdirError,
                match=rf"Another process \(pid {os.getpid()} on .*\) is working in {tmp_path}\.",
            ),
            workdir.Lock(tmp_path),
        ):
            pytest.fail("two at work")
        assert (tmp_path / ".lock").exists()
    with workdir.Lock(tmp_path):
        pass


def test_names_become_names_of_files_inside(tmp_path):
    for name in ("dev", "test-clean", "dev.v2", "_x", "Prüfung", "開発", "a" * 100):
        assert files.safe_name(name) == name
    assert re.fullmatch("corpus_dev~[0-9a-f]{8}", files.safe_name("/corpus/dev"))
    assert re.fullmatch(r"corpus_dev~[0-9a-f]{8}\.tsv", files.safe_name("../corpus/dev.tsv"))
    odd = (
        *("", ".", "..", "/", ".hidden", "-rf", "a/b", "a\\b", "a b", "a_b~", "a:b", "a\nb"),
        *("a\0b", "/a/b", "../a/b", "a/../b", "dev.", "caf\udce9", "Pru\u0308fung", "train[:10%]"),
        *("~" * 3, "\x1b[2J", "é" * 300, "a" * 101, "x." + "y" * 300, "a" * 300 + ".tsv"),
    )
    found = [files.safe_name(name) for name in odd]
    assert len(set(found)) == len(odd)
    assert not set(found) & set(odd)
    for name in found:
        assert len(os.fsencode(name)) <= 100
        assert name.isprintable()
        assert not name.startswith((".", "-"))
        path = tmp_path / name
        assert path.parent == tmp_path
        path.touch()
    assert len(list(tmp_path.iterdir())) == len(odd)
