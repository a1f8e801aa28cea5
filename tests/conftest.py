"""What all tests share: hypothesis profiles, and a PostgreSQL server where one is installed.

The profile is ``dev`` by default, ``ci`` (the same examples every time) where CI=true.
"""

import os

import pytest
from hypothesis import settings

from tests.postgres import Server, binaries

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


@pytest.fixture(scope="session")
def postgres():
    """A running server; ``postgres.database()`` is the URL of a new database."""
    if binaries() is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    server = Server()
    yield server
    server.close()
