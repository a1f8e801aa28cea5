"""Whatever a file holds, reading it runs no code, and taking it on fails in one way only."""

import collections
import contextlib
import copy
import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kasmina.adapters.torch.checkpoint import read_checkpoint
from kasmina.adapters.torch.checkpoints import archive
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import Training, alike

MANY = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def content(path):
    training = Training()
    training.run(1)
    training.save(path)
    return torch.load(path, weights_only=True)


def sealed(data):
    """An archive with a seal that is right: a seal is no signature."""
    return data[:-2] + archive._seal(hashlib.sha256(data).hexdigest())


def refused(path, problem):
    with pytest.raises(CheckpointError, match=problem):
        read_checkpoint(path)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


class TestCode:
    @pytest.mark.parametrize("archived", [True, False])
    def test_is_not_run(self, path, archived, monkeypatch):
        monkeypatch.chdir(path.parent)
        torch.save({"model": Evil()}, path, _use_new_zipfile_serialization=archived)
        refused(path, r"was not read|cannot be read")
        path.write_bytes(pickle.dumps(Evil()))
        refused(path, "cannot be read")
        assert not (path.parent / "pwned").exists()

    def test_in_a_checkpoint_that_is_sealed_is_not_run_either(self, path, content, monkeypatch):
        monkeypatch.chdir(path.parent)
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        archive.write(path, content | {"run_id": Evil()})
        refused(path, "holds more than tensors, numbers and text, and was not read")
        assert not (path.parent / "pwned").exists()

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_of_torchscript_is_not_run(self, path):
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
        path.write_bytes(sealed(path.read_bytes()))
        refused(path, "cannot be read|unpacks to more")


class TestBombs:
    def archived(self, path, kind, content):
        stream = io.BytesIO()
        torch.save(content, stream)
        packed = io.BytesIO()
        with zipfile.ZipFile(stream) as source, zipfile.ZipFile(packed, "w", kind) as target:
            for entry in source.namelist():
                target.writestr(entry, source.read(entry))
        path.write_bytes(sealed(packed.getvalue()))

    def test_a_compressed_archive_is_not_unpacked(self, path, content):
        bomb = content | {"bomb": torch.zeros(50_000_000)}
        self.archived(path, zipfile.ZIP_DEFLATED, bomb)
        assert path.stat().st_size < 1_000_000
        refused(path, "unpacks to more than its size")

    def test_the_same_stored_plainly_is_read(self, path, content):
        self.archived(path, zipfile.ZIP_STORED, content)
        assert read_checkpoint(path).step == 42

    def test_entries_that_share_their_bytes_are_not_unpacked(self, path, content):
        torch.save(content, path)
        with zipfile.ZipFile(path, "a") as target:
            large = max(target.infolist(), key=lambda each: each.file_size)
            for number in range(50):
                twin = copy.copy(large)
                twin.filename = f"archive/data/x{number}"
                target.filelist.append(twin)
                target.NameToInfo[twin.filename] = twin
            target._didModify = True
        path.write_bytes(sealed(path.read_bytes()))
        refused(path, "unpacks to more than its size")

    def test_containers_that_contain_each_other_are_refused_in_no_time(self, path, content):
        bomb = []
        for _ in range(100):
            bomb = [bomb, bomb]
        archive.write(path, content | {"sequence": bomb})
        refused(path, r"it\['sequence'\] should be a count, is list")
        bomb.append(bomb)
        archive.write(path, content | {"optimizer": bomb})
        refused(path, r"it\['optimizer'\] should be dict, is list")


def places(value, way=()):
    """The way to every part of ``value``."""
    yield way
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*way, key))
    elif isinstance(value, list | tuple) and len(value) < 50:
        for position, each in enumerate(value):
            yield from places(each, (*way, position))


def replaced(value, way, other):
    """A copy of ``value`` with ``other`` in that place."""
    if not way:
        return other
    step, *rest = way
    if isinstance(value, dict):
        new = copy.copy(value)
        new[step] = replaced(value[step], rest, other)
        return new
    new = list(value)
    new[step] = replaced(value[step], rest, other)
    return type(value)(new)


def removed(value, way):
    *before, last = way
    parent = value
    for step in before:
        parent = parent[step]
    return replaced(value, before, type(parent)({k: v for k, v in parent.items() if k != last}))


def disguised():
    """A dict that carries an attribute in the place of its methods, as a pickle can make it."""
    junk = OrderedDict(a=1)
    junk.__dict__.update(keys=4, values=5, get=6, copy=7, _metadata=8)
    return junk


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),  # unlike itself
    st.text(max_size=5),
    st.sampled_from(["ffff", "cpu", "cuda", "cuda:9", "kasmina.first.seed.0.weight", "TRAINING"]),
    st.just([]),
    st.just({}),
    st.just(()),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.dictionaries(st.integers(), st.none(), max_size=2),
    st.builds(disguised),
    st.builds(collections.Counter, st.just("aab")),
    st.sampled_from(
        [
            torch.zeros(3),
            torch.zeros(0),
            torch.ones((), dtype=torch.bool),
            torch.zeros(2, dtype=torch.complex64),
            torch.zeros(9, dtype=torch.uint8),
            torch.eye(4).to_sparse(),
            torch.float16,
            torch.Size([3]),
        ]
    ),
)


@pytest.mark.filterwarnings("ignore::kasmina.adapters.torch.checkpoint.StreamsLost")
class TestOtherTypes:
    @MANY
    @given(data=st.data())
    def test_in_any_place_are_taken_on_or_refused_with_everything_as_it_was(
        self, path, content, data
    ):
        way = data.draw(st.sampled_from(sorted(places(content), key=repr)))
        spoilt = replaced(content, way, data.draw(JUNK))
        if data.draw(st.booleans()):
            again = data.draw(st.sampled_from(sorted(places(content), key=repr)))
            junk = data.draw(JUNK)
            with contextlib.suppress(LookupError, TypeError):  # it may be gone by now
                spoilt = replaced(spoilt, again, junk)
        self.survives(path, spoilt)

    @MANY
    @given(data=st.data())
    def test_what_is_left_out_is_missed_or_not_needed(self, path, content, data):
        inside = [way for way in places(content) if way and self.in_dict(content, way)]
        way = data.draw(st.sampled_from(sorted(inside, key=repr)))
        self.survives(path, removed(content, way))

    @MANY
    @given(junk=JUNK)
    @example(junk=disguised())
    def test_as_a_whole_file(self, path, junk):
        archive.write(path, junk)
        refused(path, "was not written by kasmina|cannot be read")

    @staticmethod
    def in_dict(content, way):
        for step in way[:-1]:
            content = content[step]
        return isinstance(content, dict)

    @staticmethod
    def survives(path, spoilt):
        archive.write(path, spoilt)
        training = Training()
        before = training.snapshot()
        try:
            training.restore(path)
        except CheckpointError:
            assert alike(training.snapshot(), before)
