"""Files that appear whole or not at all, and messages where they cannot."""

import errno

import pytest

from common import errors, files


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
