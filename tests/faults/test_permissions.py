"""A file or a folder that may only be read is said to be, and nothing is made beside it."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from kasmina.domain.errors import StoreUnavailable
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from kasmina.testing import caught, epochs
from tests.faults.troubles import allow_writing, small_disk, write_protect

NOBODY = 65534


@contextmanager
def permissions(path, mode):
    """Take permissions away; root, who has them all, becomes an ordinary user meanwhile."""
    before = path.stat().st_mode
    path.chmod(mode)
    user = os.getresuid()
    if user[1] == 0:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(*user)
        path.chmod(before)


@pytest.fixture
def folder():
    """A folder that any user can reach and, until told otherwise, use."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


def shared(folder):
    """A database with two events that any user may read and write."""
    url = f"sqlite:///{folder / 'runs.db'}"
    with open_store(url) as store:
        store.append("digits-1", epochs(2), expected=0)
    (folder / "runs.db").chmod(0o666)
    return url


def listed(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_that_may_only_be_read(folder):
    url = shared(folder)
    before = listed(folder)
    with permissions(folder / "runs.db", 0o444):
        error = caught(StoreUnavailable, open_store, url)
        assert f"{folder / 'runs.db'} may only be read" in error.problem
        assert "give this user the permission" in error.mend
        with open_store(url, access=Access.READ) as store:
            assert store.verify("digits-1").sound
    assert listed(folder)["runs.db"] == before["runs.db"]
    with open_store(url) as store:
        store.append("digits-1", epochs(1, first=3), expected=2)


def test_a_folder_that_may_only_be_read(folder):
    url = shared(folder)
    before = listed(folder)
    with permissions(folder, 0o555):
        assert "may only be read" in caught(StoreUnavailable, open_store, url).problem
        new = f"sqlite:///{folder / 'new.db'}"
        assert "may only be read" in caught(StoreUnavailable, open_store, new).problem
        error = caught(StoreUnavailable, open_store, url, access=Access.READ)
        assert "copy it to a folder of your own" in error.mend
    assert listed(folder) == before
    with open_store(url) as store:
        assert store.append("digits-1", epochs(1, first=3), expected=2)[0].sequence == 3


def test_a_file_that_may_not_be_read(folder):
    url = shared(folder)
    with permissions(folder / "runs.db", 0o000):
        error = caught(StoreUnavailable, open_store, url, access=Access.READ)
        assert "cannot be opened" in error.problem
        assert "give this user the permission" in error.mend


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_a_permission_that_is_taken_away_from_a_file_in_use_ends_nothing(folder, mode):
    """Who has a file open keeps it: what is acknowledged then is recorded like any other."""
    url = shared(folder)
    with open_store(url) as store:
        store.append("digits-1", epochs(1, first=3), expected=2)
        with permissions(folder / "runs.db", mode):
            store.append("digits-1", epochs(1, first=4), expected=3)
    with open_store(url) as store:
        assert (store.head("digits-1").sequence, store.verify("digits-1").sound) == (4, True)


def test_a_disk_that_may_only_be_read(tmp_path):
    """Root neither can write there; so the database is to be copied elsewhere."""
    with small_disk(tmp_path / "disk", 2**20) as folder:
        url = shared(folder)
        before = listed(folder)
        write_protect(folder)
        error = caught(StoreUnavailable, open_store, url)
        assert "may only be read" in error.problem
        assert "choose another place" in error.mend
        error = caught(StoreUnavailable, open_store, url, access=Access.READ)
        assert "copy it to a folder of your own" in error.mend
        allow_writing(folder)
        assert listed(folder) == before
        with open_store(url) as store:
            store.append("digits-1", epochs(1, first=3), expected=2)
            assert store.verify("digits-1").sound
