"""TensorBoard's own loaders read back what was written, also after a crash at any byte."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.adapters.sinks.event_files import records
from kasmina.adapters.sinks.follower import Follower
from kasmina.adapters.sinks.tensorboard import TensorBoardSink, folder_name
from kasmina.domain import events as e
from kasmina.domain.stages import Stage
from kasmina.history import load
from kasmina.testing import MemoryEventStore, epochs, run_opened
from tests.sinks.logs import WORDS, told


def catch_up(store, folder, **options):
    with TensorBoardSink(folder, words=WORDS) as sink:
        return Follower(store, sink, **options).catch_up()


def held(folder):
    """All that TensorBoard loads, run by run: every value with its time and step."""
    found = {}
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        found[run.name] = [
            (event.wall_time, event.step, value.tag, said(value))
            for file in sorted(run.iterdir())
            for event in EventFileLoader(str(file)).Load()
            for value in event.summary.value
        ]
    return found


def said(value):
    plugin = value.metadata.plugin_data
    return repr((tensor_util.make_ndarray(value.tensor).tolist(), plugin.plugin_name))


def figures(folder, run_id, tag):
    accumulated = EventAccumulator(str(folder / folder_name(run_id)))
    accumulated.Reload()
    return [(event.step, event.value) for event in accumulated.Scalars(tag)]


def texts(folder, run_id, tag):
    accumulated = EventAccumulator(str(folder / folder_name(run_id)))
    accumulated.Reload()
    return [
        (event.step, event.tensor_proto.string_val[0].decode().strip())
        for event in accumulated.Tensors(tag)
    ]


@pytest.fixture
def folder(store, tmp_path):
    folder = tmp_path / "runs"
    catch_up(store, folder)
    return folder


def test_every_event_of_the_log_is_one_record_with_its_mark(store, folder):
    for first in store.runs():
        (file,) = (folder / folder_name(first.run_id)).iterdir()
        preamble, *rest = records(file)
        assert b"brain.Event:2" in preamble
        assert len(rest) == store.head(first.run_id).sequence


def test_the_objective_is_drawn_over_the_optimizer_steps(store, folder):
    measured = [
        (record.event.step, record.event.objective)
        for record in store.read("grown-1")
        if isinstance(record.event, e.EpochRecorded)
    ]
    assert figures(folder, "grown-1", "objective/val_accuracy") == measured


def test_alpha_is_that_of_the_recorded_schedule_at_each_epoch(store, folder):
    alphas = dict(figures(folder, "grown-1", "slots/layer2/alpha"))
    blending = 0
    for record in store.read("grown-1"):
        slots = load(store, "grown-1", until=record.sequence).slots
        if isinstance(record.event, e.EpochRecorded) and slots["layer2"].stage is Stage.BLENDING:
            expected = slots["layer2"].seed.alpha(record.event.step)
            assert alphas[record.event.step] == pytest.approx(expected, abs=1e-7)
            blending += 0 < expected < 1
    assert blending
    assert (alphas[40], alphas[70], alphas[110]) == (0.0, 1.0, 1.0)


def test_the_stage_is_drawn_by_its_code(folder):
    codes = [code for _, code in figures(folder, "grown-1", "slots/layer2/stage")]
    assert list(dict.fromkeys(codes)) == [float(stage.code) for stage in list(Stage)[:7]]
    dormant = figures(folder, ".culled", "slots/layer2/alpha")[-1]
    assert dormant[1] == 0.0


def test_gates_show_score_margin_and_verdict(folder):
    assert figures(folder, "troubled/läufe", "slots/layer2/G2/score") == [
        (20, pytest.approx(0.05)),
        (40, 1.0),
        (40, 1.0),
    ]
    assert figures(folder, "troubled/läufe", "slots/layer2/G2/passed")[0] == (20, 0.0)
    (margin,) = figures(folder, "troubled/läufe", "slots/layer2/G2/margin/improvement")
    assert margin == (20, -0.25)


def test_what_was_not_measured_has_no_point_and_what_was_not_finite_has_one(folder):
    (loss,) = figures(folder, "troubled/läufe", "metrics/loss")
    assert loss == (20, float("inf"))
    accumulated = EventAccumulator(str(folder / folder_name("troubled/läufe")))
    accumulated.Reload()
    assert "slots/layer2/G2/margin/unmeasured" not in accumulated.Tags()["scalars"]


def test_decisions_are_texts_that_name_their_place_in_the_log(folder):
    ((step, refusal), *_) = texts(folder, "troubled/läufe", "decisions/layer2/G2")
    assert step == 20
    assert refusal == (
        "#12, epoch 2: G2 refused: improvement 0.25, required >= 0.5; gradient nan, required "
        "finite; unmeasured –, required >= 1"
    )
    assert texts(folder, ".culled", "decisions/layer2/CULLED")[0][0] == 40


def test_a_run_is_described_by_its_hyperparameters(folder):
    accumulated = EventAccumulator(str(folder / "grown-1"))
    accumulated.Reload()
    content = accumulated.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    told_of = HParamsPluginData.FromString(content).session_start_info
    assert told_of.group_name == "grown-1"
    assert told_of.hparams["objective/direction"].string_value == "maximize"
    assert told_of.hparams["policy/g2/min_improvement"].number_value == 0.5
    assert told_of.hparams["software/torch"].string_value == "2.13"
    assert "policy/timeouts/training" not in told_of.hparams


def test_a_fork_is_a_run_of_its_own_that_names_its_parent(folder):
    accumulated = EventAccumulator(str(folder / "fork"))
    accumulated.Reload()
    content = accumulated.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    told_of = HParamsPluginData.FromString(content).session_start_info
    assert told_of.hparams["parent/run_id"].string_value == "troubled/läufe"
    assert told_of.hparams["host/parameters"].number_value == 1000
    assert figures(folder, "fork", "objective/val_accuracy") == [(20, 51.0)]


def test_steps_that_a_rewind_took_back_are_drawn_a_second_time(folder):
    drawn = [step for step, _ in figures(folder, "troubled/läufe", "objective/val_accuracy")]
    assert drawn == [10, 20, 50, 60, 50, 60, 70]
    ((step, text), *_) = texts(folder, "troubled/läufe", "decisions/RunRewound")
    assert step == 30
    assert "rewound to #16" in text


@settings(max_examples=25)
@given(pages=st.lists(st.integers(1, 25), min_size=1, max_size=12))
def test_any_split_into_sessions_writes_the_same(tmp_path_factory, pages):
    whole, split = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("split")
    store = told(MemoryEventStore())
    catch_up(store, whole)
    for page in pages:
        with TensorBoardSink(split, words=WORDS) as sink:
            next(Follower(store, sink, page=page).pages(), None)
    catch_up(store, split)
    assert held(split) == held(whole)


@settings(max_examples=25)
@given(data=st.data())
def test_a_crash_at_any_byte_leaves_the_whole_of_an_event_or_nothing(tmp_path_factory, data):
    whole, torn = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("torn")
    store = told(MemoryEventStore())
    catch_up(store, whole)
    catch_up(store, torn, page=40)
    for _ in range(data.draw(st.integers(1, 3))):
        run = data.draw(st.sampled_from(sorted(path for path in torn.iterdir() if path.is_dir())))
        last = max(run.iterdir())
        content = last.read_bytes()
        kept = data.draw(st.integers(0, len(content)))
        tail = data.draw(st.sampled_from((b"", bytes(64))))  # a power cut may leave zeros
        last.write_bytes(content[:kept] + tail)
        catch_up(store, torn)
        assert held(torn) == held(whole)


def test_a_changed_byte_ends_what_is_believed_of_a_file(store, folder):
    whole = held(folder)
    (file,) = (folder / "grown-1").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert catch_up(store, folder) > 0
    assert held(folder) == whole


def test_one_follower_at_a_time_writes_to_a_folder(tmp_path):
    with (
        TensorBoardSink(tmp_path, words=WORDS),
        pytest.raises(SinkUnavailable, match="another follower is writing"),
    ):
        TensorBoardSink(tmp_path, words=WORDS)
    TensorBoardSink(tmp_path, words=WORDS).close()


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SinkUnavailable, match="cannot be read or written"):
        TensorBoardSink(tmp_path / "file" / "runs", words=WORDS)


def test_a_folder_that_vanishes_is_unavailable_until_it_is_back(tmp_path):
    store, folder = MemoryEventStore(), tmp_path / "runs"
    store.append("a", [run_opened("a"), *epochs(3)], expected=0)
    with TensorBoardSink(folder, words=WORDS) as sink:
        follower = Follower(store, sink)
        follower.catch_up()
        shutil.rmtree(folder)
        (tmp_path / "runs").touch()
        store.append("a", epochs(2, first=4), expected=4)
        for _ in range(2):
            with pytest.raises(SinkUnavailable):
                follower.catch_up()
        folder.unlink()
        folder.mkdir()
        assert follower.catch_up() == 6
    assert [step for step, _ in figures(folder, "a", "epoch")] == [10, 20, 30, 40, 50]


def test_other_files_and_folders_beside_the_runs_are_left_alone(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "events.out.tfevents.1.host").write_bytes(b"not ours")
    (tmp_path / "notes.txt").touch()
    catch_up(store, tmp_path)
    assert catch_up(store, tmp_path) == 0
    assert (tmp_path / "mine" / "events.out.tfevents.1.host").read_bytes() == b"not ours"


@pytest.mark.parametrize("run_id", ["..", ".", "a/../../b", "%2E", "läufe/1", "a b", "-"])
def test_a_run_has_one_folder_directly_in_the_log_directory(run_id):
    name = folder_name(run_id)
    assert "/" not in name
    assert name not in {".", ".."}
    assert not name.startswith(".")


def test_different_runs_have_different_folders():
    names = ["a", "a/b", "a%2Fb", ".a", "%2Ea", "..", "%2E."]
    assert len({folder_name(name) for name in names}) == len(names)


POISON = 'raise RuntimeError("tensorflow was imported")'
SESSION = """
import sys
from pathlib import Path
from kasmina.adapters.sinks.follower import Follower
from kasmina.adapters.sinks.tensorboard import TensorBoardSink
from kasmina.testing import MemoryEventStore, epochs, run_opened

store = MemoryEventStore()
store.append("a", [run_opened("a"), *epochs(3)], expected=0)
with TensorBoardSink(Path(sys.argv[1]), words=str) as sink:
    assert Follower(store, sink).catch_up() == 4
    assert Follower(store, sink).catch_up() == 0
assert "torch" not in sys.modules
"""


def test_tensorflow_is_never_imported(tmp_path: Path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(POISON)
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )
    assert done.returncode == 0, done.stderr
