"""What can befall a SQLite file that is in use, and go away again."""

import os
import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder, size):
    """A disk of its own of so many bytes, mounted at ``folder``; skipped where that cannot be."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def write_protect(folder):
    """Let nobody write to a mounted disk, root neither."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def allow_writing(folder):
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


class Trouble(ABC):
    """Something in the way of every append, though perhaps not of reading."""

    problem: str
    mend: str
    readable = True

    def place(self, folder):
        """Where the database must be for this to befall it; a context manager."""
        return contextmanager(lambda: (yield folder))()

    @abstractmethod
    def begun(self, path, start):
        """A context manager around the trouble, which may ``start`` a process for it."""


class FullDisk(Trouble):
    problem = "disk"
    mend = "free some space"

    def place(self, folder):
        return small_disk(folder / "disk", 2**20)

    @contextmanager
    def begun(self, path, start):
        filler = path.with_name("filler")
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(512)):
                    pass
            except OSError:
                pass
        yield
        filler.unlink()


class SizeLimit(Trouble):
    """Python ignores the signal that comes with it."""

    problem = "disk"
    mend = "the limit on file sizes"

    @contextmanager
    def begun(self, path, start):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        sizes = (other.stat().st_size for other in path.parent.glob(f"{path.name}*"))
        longest = max(sizes, default=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Locked(Trouble):
    """Another process holds the lock for writing."""

    problem = "locked"
    mend = "wait for that process"
    statement = "BEGIN IMMEDIATE"

    @contextmanager
    def begun(self, path, start):
        holder = start("hold_a_lock", path, self.statement)
        holder.go()
        assert holder.says() == "ready"
        yield
        holder.kill()


class LockedExclusively(Locked):
    statement = "BEGIN EXCLUSIVE"


class Deleted(Trouble):
    """The file is gone, until it is put back."""

    problem = "deleted or replaced"
    mend = "put it back"
    readable = False

    @contextmanager
    def begun(self, path, start):
        elsewhere = path.rename(path.with_name("elsewhere"))
        yield
        elsewhere.rename(path)


class Replaced(Deleted):
    """A copy is in the file's place: what is appended to it would not be in the file."""

    @contextmanager
    def begun(self, path, start):
        with super().begun(path, start):
            shutil.copy(path.with_name("elsewhere"), path)
            yield
            Path(path).unlink()


TROUBLES = (FullDisk(), SizeLimit(), Locked(), LockedExclusively(), Deleted(), Replaced())
