"""What all tests share: hypothesis profiles, and a PostgreSQL server where one is installed.

The profile is ``dev`` by default, ``ci`` (the same examples every time) where CI=true.
"""

import gc
import os
import warnings

import pytest
from hypothesis import settings

from kasmina.silence import SilentRun
from tests.postgres import Server, binaries

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


def pytest_unconfigure():
    # Tests that play a crash leave their runs open.
    warnings.simplefilter("ignore", SilentRun)
    gc.unfreeze()  # else what ends with the process counts as leaked


@pytest.fixture(autouse=True, scope="module")
def garbage_of_this_module_only():
    """To collect it, nobody goes through all that the tests before have left: seconds each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres():
    """A running server; ``postgres.database()`` is the URL of a new database."""
    if binaries() is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    server = Server()
    yield server
    server.close()
