"""What was released is readable for ever. No file under ``golden/`` is ever edited.

A new event type, or a new version of one, adds its event to ``released.py``, and a new revision of
the schema a digest here; ``python -m tests.infra.released`` writes the files that are missing.
"""

import shutil

import pytest

from kasmina.domain import events as e
from kasmina.infra import codec, schema
from kasmina.infra.engine import Access
from kasmina.infra.event_store import open_store
from tests.infra.released import (
    EVENTS,
    GOLDEN,
    RUN,
    database_file,
    digest_of_first_versions,
    payload_file,
    write_database,
)

PAYLOADS = "d96adc10bebc6e2c7e044a6a37c5ff899bbf8d17670375580ecf82c303af7f53"
"""The digest over the payloads of version 1."""

DATABASES = dict.fromkeys(
    ("0001", "0002"), "ce369694be5fbccc0160312615302c70bcd1d7e0794d7ce4959503da1e461d74"
)
"""The revision of each golden database, and the digest at the end of its first run."""


def leaves(cls):
    """The classes at the end of the hierarchy, without those that tests make."""
    below = [sub for sub in cls.__subclasses__() if sub.__module__ == e.__name__]
    return {leaf for sub in below for leaf in leaves(sub)} if below else {cls}


def test_every_event_has_a_stored_name_and_a_golden_payload():
    named = {cls for cls, _ in codec.TYPES.values()}
    assert named == leaves(e.Event) - {e.UnknownEvent}
    assert EVENTS.keys() == codec.TYPES.keys()
    for name, (_, version) in codec.TYPES.items():
        for released in range(1, version + 1):
            assert payload_file(name, released).is_file()


@pytest.mark.parametrize("path", sorted((GOLDEN / "payloads").iterdir()), ids=lambda p: p.stem)
def test_a_golden_payload_reads_as_its_event(path):
    name, version = path.stem.split(".")
    event = codec.decode(name, int(version), path.read_bytes())
    assert repr(event) == repr(EVENTS[name])


@pytest.mark.parametrize("name", codec.TYPES)
def test_an_event_is_written_as_its_newest_golden_payload(name):
    version = codec.TYPES[name][1]
    golden = payload_file(name, version).read_bytes()
    encoded = codec.encode(EVENTS[name])
    assert (encoded.type.decode(), encoded.schema_version) == (name, version)
    assert encoded.payload == golden


def test_no_golden_file_was_edited():
    assert digest_of_first_versions() == PAYLOADS


def test_every_revision_has_a_golden_database():
    assert {path.stem for path in (GOLDEN / "databases").glob("*.db")} == set(DATABASES)
    assert schema.REVISION in DATABASES


@pytest.mark.parametrize(("revision", "digest"), DATABASES.items())
def test_a_golden_database_is_brought_up_to_date_and_reads_as_it_did(tmp_path, revision, digest):
    copy = tmp_path / "runs.db"
    shutil.copy(database_file(revision), copy)
    with open_store(f"sqlite:///{copy}") as store:
        events = [recorded.event for recorded in store.read(RUN)]
        forked = [recorded.event for recorded in store.read("digits-fork")]
        verification = store.verify(RUN)
    expected = list(EVENTS.values())
    expected.remove(EVENTS["RunForked"])
    assert (repr(events), forked) == (repr(expected), [EVENTS["RunForked"]])
    assert verification.sound
    assert verification.head.digest.hex() == digest


def test_the_present_golden_database_can_be_audited_without_being_touched(tmp_path):
    copy = tmp_path / "runs.db"
    shutil.copy(database_file(schema.REVISION), copy)
    before = copy.read_bytes()
    with open_store(f"sqlite:///{copy}", access=Access.READ) as store:
        assert store.verify(RUN).sound
    assert copy.read_bytes() == before


def test_a_database_is_made_the_same_each_time(tmp_path):
    assert write_database(tmp_path / "a.db") == write_database(tmp_path / "b.db")
