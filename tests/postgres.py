"""A PostgreSQL server of one's own: on loopback, as an unprivileged user, gone afterwards."""

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

USERS = ("postgres", "nobody")
"""Who runs the server where the tests run as root, which PostgreSQL refuses."""

DURABLE = ("-c", "max_connections=60")

# Processes die in the tests, never the machine: nothing needs to wait for the disk.
HASTY = (*DURABLE, "-c", "fsync=off")

PORTS = range(20_000, 32_000)
"""Below those that the system gives to whoever asks for any: a server that starts, or that is
stopped for a while, loses its port to none of the tests beside it."""


def binaries() -> Path | None:
    """The folder of the newest server that is installed, ``None`` without one."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    if debian:
        return debian[-1].parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def _version(binary: Path) -> float:
    return float(binary.parts[-3])


class Server:
    """A server on a free port of 127.0.0.1, in a folder of its own."""

    def __init__(self, settings: tuple[str, ...] = HASTY) -> None:
        self._settings = settings
        found = binaries()
        assert found is not None
        self._bin = found
        self._user = _unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="kasmina-postgres-"))
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._data = self.folder / "data"
        self._run(
            "initdb",
            "--no-sync",
            "--auth=trust",
            "--username=kasmina",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            f"--pgdata={self._data}",
        )
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ("-p", str(self.port), "-h", "127.0.0.1", "-k", "", *self._settings)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                **self._as_user(),
            )
        for _ in range(400):
            try:
                psycopg.connect(self.dsn("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.025)
            else:
                return
        raise AssertionError("the server did not start: " + (self.folder / "log").read_text())

    def stop(self) -> None:
        """Stop it at once, as a power cut would be seen by its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # no shutdown, recovery at the next start
            self._process.wait(20)
            self._process = None

    def dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=kasmina dbname={database}"

    def database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://kasmina@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as_user(),
        )

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)  # the tests beside it have the same seed
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {account.pw_name for account in pwd.getpwall()}
    return next(name for name in USERS if name in known)
