"""A checkpoint is on the disk whole or not at all, and no byte of it changes unnoticed."""

import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasmina.adapters.torch.checkpoint import read_checkpoint
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import Training, alike

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VERSION_1 = HERE / "golden" / "checkpoint-1.pt"
PER_FILE = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def saved(path):
    training = Training()
    training.run(3)
    training.save(path)
    return training


@pytest.fixture
def whole(path, saved):
    return path.read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.path == str(path)
    return caught.value


class TestDamage:
    @PER_FILE
    @given(data=st.data())
    def test_any_bit_flipped_anywhere_is_seen(self, path, whole, data):
        spoilt = bytearray(whole)
        place = data.draw(st.integers(0, len(whole) - 1))
        spoilt[place] ^= 1 << data.draw(st.integers(0, 7))
        refused(path, spoilt)

    @PER_FILE
    @given(data=st.data())
    def test_a_file_cut_anywhere_is_seen(self, path, whole, data):
        refused(path, whole[: data.draw(st.integers(0, len(whole) - 1))])

    @PER_FILE
    @given(data=st.data())
    def test_bytes_put_in_or_taken_out_anywhere_are_seen(self, path, whole, data):
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, min(len(whole), start + 200)))
        other = data.draw(st.binary(max_size=200))
        if other != whole[start:end]:
            refused(path, whole[:start] + other + whole[end:])

    @pytest.mark.parametrize("lost", range(1, 130))
    def test_no_byte_of_the_end_can_be_done_without(self, path, whole, lost):
        refused(path, whole[:-lost])

    def test_a_file_that_was_written_again_by_others_has_lost_its_seal(self, path, saved):
        torch.save(torch.load(path, weights_only=True), path)
        with pytest.raises(CheckpointError, match="its end, with its seal, is lost"):
            read_checkpoint(path)

    def test_a_version_1_file_has_no_seal_and_damage_to_its_values_is_seen(self, path):
        whole, chance = VERSION_1.read_bytes(), random.Random(0)
        expected = read_checkpoint(VERSION_1)
        for _ in range(60):
            spoilt = bytearray(whole)
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
            path.write_bytes(spoilt)
            try:
                read = read_checkpoint(path)
            except CheckpointError:
                continue  # else it was in a name's padding, or a date
            assert alike(dict(expected.model), dict(read.model))
            assert alike(expected.optimizer.state, read.optimizer.state)

    def test_a_flipped_bit_in_a_tensor_of_version_1_is_located(self, path):
        with zipfile.ZipFile(VERSION_1) as archive:
            name = next(each for each in archive.namelist() if "/data/" in each)
            data = archive.read(name)
        spoilt = bytearray(VERSION_1.read_bytes())
        spoilt[spoilt.find(data) + len(data) // 2] ^= 4
        assert "is damaged at archive/data/" in str(refused(path, spoilt))


class TestAFileThatIsNone:
    def test_a_missing_one(self, path):
        with pytest.raises(CheckpointError, match="is missing"):
            read_checkpoint(path)

    @pytest.mark.parametrize("content", [b"", b"PK", b"nonsense" * 99, b"\x80\x02}q\x00."])
    def test_foreign_bytes(self, path, content):
        refused(path, content)

    def test_a_folder(self, path):
        path.mkdir()
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(path)


IN_VAIN = """
import resource, sys
from kasmina.domain.errors import CheckpointError
from tests.torch.checkpointed import Training
training = Training()
training.run(1)
for room in (100, 10_000, 20_000, int(sys.argv[2]) - 1, int(sys.argv[2])):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        training.save(sys.argv[1])
    except CheckpointError as error:
        print(error)
"""

# Each child dies at a later call than the one before, until one lives to the end.
KILLED = """
import os, pathlib, signal, sys
import torch
from kasmina.adapters.torch.checkpoint import read_checkpoint
from kasmina.adapters.torch.checkpoints import archive
from tests.torch.checkpointed import Training

torch.set_num_threads(1)
path = pathlib.Path(sys.argv[1])
training = Training()
training.save(path)
old = read_checkpoint(path).model["head.bias"]
training.run(1)
new = training.model.head.bias.detach()

def mortal(left):
    def counted(call):
        def at_last(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return at_last
    archive._Hashed.write = counted(archive._Hashed.write)
    archive._seal = counted(archive._seal)
    os.fsync = counted(os.fsync)
    pathlib.Path.replace = counted(pathlib.Path.replace)

seen, kills = [], 0
while True:
    child = os.fork()
    if child == 0:
        mortal([kills])
        training.save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = read_checkpoint(path).model["head.bias"]
    assert found.equal(old) or found.equal(new)
    seen.append("new" if found.equal(new) else "old")
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
    kills += 1
print(kills, seen.count("old"), sorted(each.name for each in path.parent.iterdir()))
"""


def python(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestWriting:
    def test_a_full_disk_leaves_the_old_checkpoint(self, path, saved):
        before = path.read_bytes()
        assert len(before) > 20_000
        said = python(IN_VAIN, path, len(before) - 100)
        assert said.count("could not be written") == 5
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == ["run.pt"]

    @pytest.mark.slow
    def test_a_process_killed_at_any_call_of_a_write_leaves_the_old_one_or_the_new(self, path):
        kills, old, left = python(KILLED, path).split(maxsplit=2)
        assert int(kills) > 100
        assert int(kills) > int(old) >= int(kills) - 2  # only what follows the renaming is new
        assert left.strip() == "['run.pt']"

    def test_a_folder_in_its_place_is_refused_and_nothing_left_behind(self, path):
        path.mkdir()
        with pytest.raises(CheckpointError, match="could not be written"):
            Training().save(path)
        assert [each.name for each in path.parent.iterdir()] == ["run.pt"]

    def test_a_folder_that_may_not_be_written_to_is_refused(self, tmp_path):
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        tmp_path.chmod(0o500)
        with pytest.raises(CheckpointError, match="could not be written"):
            Training().save(tmp_path / "run.pt")


class TestVersion1:
    """A file that was written before parameters had names (``golden/checkpoint-1.pt``)."""

    def test_is_taken_on_whole(self):
        content = torch.load(VERSION_1, weights_only=True)
        training = Training()
        assert training.restore(VERSION_1) == ()
        assert content["version"] == 1
        assert alike(dict(training.model.state_dict()), dict(content["model"]))
        assert alike(training.optimizer.state_dict(), content["optimizer"])
        assert alike(training.scheduler.state_dict(), content["extra"]["scheduler"])
        assert torch.equal(torch.get_rng_state(), content["random"]["generators"]["cpu"]["cpu"])
        assert alike(training.slots["first"].stream.state(), content["seed_streams"]["first"])

    def test_is_taken_on_by_seeds_in_another_order(self):
        one, other = Training(), Training(("second", "first"))
        one.restore(VERSION_1)
        losses = one.run(3)
        other.restore(VERSION_1)
        assert other.run(3) == losses

    def test_may_know_parameters_that_are_outside_the_model(self, path):
        """As in a larger model whose optimizer it was, and whose tensors others save."""
        content = torch.load(VERSION_1, weights_only=True)
        state = content["optimizer"]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        state["param_groups"][0]["params"].append(len(numbers))
        state["state"][len(numbers)] = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}
        torch.save(content, path)
        training, outside = Training(), torch.nn.Parameter(torch.zeros(2))
        training.optimizer.param_groups[0]["params"].append(outside)
        training.restore(path)
        assert training.optimizer.state[outside]["exp_avg"].tolist() == [1.0, 1.0]

    def test_keeps_its_position(self):
        read = read_checkpoint(VERSION_1)
        assert (read.run_id, read.sequence, read.epoch, read.step) == ("r1", 17, 3, 42)
        assert read.digest == bytes(range(32))

    @pytest.mark.parametrize(
        ("other", "problem"),
        [
            (lambda: Training(("first",)), r"its slot second, DORMANT: 0\.bias has no place"),
            (lambda: Training(width=5), r"first\.0\.bias was float32 \(4,\), is float32 \(5,\)"),
        ],
    )
    def test_that_does_not_fit_is_refused(self, other, problem):
        training = other()
        before = training.snapshot()
        with pytest.raises(CheckpointError, match=problem):
            training.restore(VERSION_1)
        assert alike(training.snapshot(), before)

    def test_in_groups_of_other_sizes_is_refused(self):
        training = Training()
        group = training.optimizer.param_groups[0]
        training.optimizer.add_param_group({"params": [group["params"].pop()]})
        with pytest.raises(CheckpointError, match=r"its groups had \[8, 2, 2\] parameters, have"):
            training.restore(VERSION_1)

    def test_of_parameters_in_another_order_is_refused_where_their_shapes_show_it(self):
        training = Training()
        training.optimizer.param_groups[0]["params"].reverse()
        with pytest.raises(CheckpointError, match=r"exp_avg of \S+ was float32 .*, is of"):
            training.restore(VERSION_1)
