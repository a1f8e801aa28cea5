"""A file appears whole or not at all."""

import gzip
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from kasmina.domain.errors import KasminaError
from kasmina.infra.exchange.errors import UnwritableFile
from kasmina.infra.exchange.files import MissingFile, opened, replacing, require_no_database
from kasmina.testing import caught


def write(path, *parts):
    """The parts to a file; a part that is an error is raised there."""
    with replacing(path) as partial, partial.open("wb") as file:
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            file.write(part)


def names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


class TestReplacing:
    def test_the_file_has_its_name_only_when_it_is_complete(self, path):
        path.write_bytes(b"before")
        with replacing(path) as partial:
            partial.write_bytes(b"after")
            assert path.read_bytes() == b"before"
        assert path.read_bytes() == b"after"
        assert names(path.parent) == [path.name]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), KasminaError("no")], ids=repr)
    def test_when_it_fails_what_was_there_is_there_and_nothing_else(self, path, error):
        path.write_bytes(b"before")
        caught(type(error), write, path, b"half", error)
        assert path.read_bytes() == b"before"
        assert names(path.parent) == [path.name]

    def test_a_file_that_was_not_there_is_not_there(self, path):
        caught(KasminaError, write, path, b"half", KasminaError("no"))
        assert names(path.parent) == []

    def test_a_full_disk_is_told_with_what_to_do(self, path):
        error = caught(UnwritableFile, write, path, b"half", OSError(28, "No space left"))
        assert (error.path, error.problem) == (str(path), "No space left")
        assert "free space" in error.mend
        caught(UnwritableFile, write, path, OSError("odd"))

    def test_a_folder_that_is_not_there_is_told(self, path):
        error = caught(UnwritableFile, write, path / "deeper" / "out", b"")
        assert error.problem == "No such file or directory"

    def test_a_folder_that_is_a_file_is_told(self, path):
        path.touch()
        assert caught(UnwritableFile, write, path / "out", b"").problem == "Not a directory"

    def test_what_is_no_file_is_not_replaced(self, path):
        path.mkdir()
        assert "not a file" in caught(UnwritableFile, write, path, b"").problem
        fifo = path / "pipe"
        os.mkfifo(fifo)
        assert "not a file" in caught(UnwritableFile, write, fifo, b"").problem

    def test_a_link_goes_on_pointing_to_the_file(self, path, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(path)
        write(link, b"new")
        assert link.is_symlink()
        assert path.read_bytes() == b"new"


class TestDatabases:
    def test_one_is_not_to_be_replaced(self, path):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE events (position)")
        assert "a database" in caught(UnwritableFile, require_no_database, path).problem

    def test_any_other_file_may_be_and_none_may_be_made(self, path):
        require_no_database(path)
        path.write_bytes(b"SQLite")
        require_no_database(path)

    def test_what_cannot_be_read_is_told(self, tmp_path):
        assert "directory" in caught(UnwritableFile, require_no_database, tmp_path).problem


class TestOpening:
    def test_a_file_is_read_as_it_is(self, path):
        path.write_bytes(b"one\ntwo\n")
        with opened(str(path)) as stream:
            assert stream.readline() == b"one\n"

    def test_a_gzipped_file_is_decompressed_whatever_its_name(self, path):
        path.write_bytes(gzip.compress(b"one\ntwo\n"))
        with opened(str(path)) as stream:
            assert stream.readlines() == [b"one\n", b"two\n"]

    def test_an_empty_file_is_no_error(self, path):
        path.touch()
        with opened(str(path)) as stream:
            assert stream.read() == b""

    def test_a_file_that_cannot_be_opened_is_told(self, path, tmp_path):
        for wrong in (path, tmp_path, Path("/proc/self/mem")):
            with pytest.raises(MissingFile) as raised, opened(str(wrong)):
                pass
            assert raised.value.path == str(wrong)
