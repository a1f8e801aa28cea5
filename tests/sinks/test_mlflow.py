"""MLflow's own client reads back what was logged to a real tracking store."""

from contextlib import suppress

import pytest
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from kasmina.adapters.sinks.errors import SinkUnavailable
from kasmina.adapters.sinks.follower import Follower
from kasmina.adapters.sinks.mlflow import MARK_TAG, PARENT_TAG, RUN_TAG, MlflowSink
from kasmina.domain import events as e
from kasmina.domain.evidence import Metric
from kasmina.testing import MemoryEventStore, epochs, run_opened
from tests.sinks.logs import WORDS, told

EXPERIMENT = "kasmina"

# MLflow 3.17 uses what SQLAlchemy 2.1 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="session")
def uri(tmp_path_factory):
    """One tracking store for all tests, because making one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def experiment(request):
    return request.node.name


@pytest.fixture
def client(uri):
    return MlflowClient(uri)


def catch_up(store, uri, experiment, **options):
    sink = MlflowSink(uri, experiment=experiment, words=WORDS)
    return Follower(store, sink, **options).catch_up()


def runs(client, experiment):
    found = client.get_experiment_by_name(experiment)
    return {
        run.data.tags[RUN_TAG]: run
        for run in client.search_runs([found.experiment_id], run_view_type=ViewType.ALL)
    }


def held(client, experiment):
    """All that MLflow keeps of the experiment, without the identifiers it chose itself."""
    return {
        run_id: (
            run.info.run_name,
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            {name: tag for name, tag in run.data.tags.items() if name.startswith("kasmina")},
            {
                name: sorted(
                    (metric.step, metric.timestamp, repr(metric.value))
                    for metric in client.get_metric_history(run.info.run_id, name)
                )
                for name in run.data.metrics
            },
            repr(run.data.metrics),
        )
        for run_id, run in runs(client, experiment).items()
    }


def history(client, run, name):
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


@pytest.fixture
def logged(store, uri, experiment, client):
    catch_up(store, uri, experiment)
    return runs(client, experiment)


def test_every_run_is_a_run_that_says_what_it_is(store, logged):
    assert set(logged) == {first.run_id for first in store.runs()}
    run = logged["grown-1"]
    assert run.info.run_name == "digits"
    assert run.data.params["host/kind"] == "tests.Host"
    assert run.data.params["policy/g2/min_improvement"] == "0.5"
    assert run.data.params["software/torch"] == "2.13"


def test_figures_are_metrics_at_optimizer_steps_and_at_the_times_of_the_log(store, logged, client):
    measured = [r for r in store.read("grown-1") if isinstance(r.event, e.EpochRecorded)]
    drawn = client.get_metric_history(logged["grown-1"].info.run_id, "objective/val_accuracy")
    assert [(m.step, m.value) for m in drawn] == [
        (r.event.step, r.event.objective) for r in measured
    ]
    assert [m.timestamp for m in drawn] == [int(r.recorded_at.timestamp() * 1000) for r in measured]


def test_gates_and_alpha_are_metrics_too(logged, client):
    run = logged["troubled/läufe"]
    assert history(client, run, "slots/layer2/G2/margin/improvement") == [(20, -0.25)]
    assert (60, 0.75) in history(client, run, "slots/layer2/alpha")


def test_steps_that_a_rewind_took_back_are_there_twice(logged, client):
    drawn = history(client, logged["troubled/läufe"], "objective/val_accuracy")
    assert [step for step, _ in drawn if step == 50] == [50, 50]


def test_the_latest_decision_of_each_kind_is_a_tag(logged):
    tags = logged["grown-1"].data.tags
    assert tags["kasmina/layer2/G5"] == "#28, epoch 11: G5 passed, score 1.00"
    assert tags["kasmina/RunClosed"].startswith("#31, epoch 12: run closed")


def test_a_closed_run_is_finished_and_one_that_went_on_is_not(store, logged):
    assert logged["grown-1"].info.status == "FINISHED"
    last = list(store.read("grown-1"))[-1].recorded_at
    assert logged["grown-1"].info.end_time == int(last.timestamp() * 1000)
    assert logged["troubled/läufe"].info.status == "RUNNING"


def test_a_fork_is_a_run_of_its_own_that_names_its_parent(logged):
    assert logged["fork"].data.tags[PARENT_TAG] == "troubled/läufe#8"
    assert logged["fork"].data.params["objective/name"] == "val_accuracy"


def test_any_split_into_sessions_logs_the_same(store, uri, client, experiment):
    catch_up(store, uri, f"{experiment} whole")
    for page in (1, 7, 2, 30, 11):
        sink = MlflowSink(uri, experiment=experiment, words=WORDS)
        next(Follower(store, sink, page=page).pages(), None)
    catch_up(store, uri, experiment)
    assert held(client, experiment) == held(client, f"{experiment} whole")


def test_a_crash_between_any_two_calls_logs_everything_once(
    store, uri, client, experiment, monkeypatch
):
    """MLflow commits each call by itself: the process is imagined to end before call after call."""
    catch_up(store, uri, f"{experiment} whole")

    class Ended(BaseException):
        pass

    def dying(method, calls, allowed):
        def call(self, *arguments, **options):
            calls.append(method)
            if len(calls) > allowed:
                raise Ended
            return method(self, *arguments, **options)

        return call

    for allowed in range(1, 40):
        calls = []
        with monkeypatch.context() as patch, suppress(Ended):
            for name in ("create_run", "log_batch", "set_terminated", "update_run"):
                patch.setattr(
                    MlflowClient, name, dying(getattr(MlflowClient, name), calls, allowed)
                )
            catch_up(store, uri, experiment, page=25)
            break
    assert allowed > 5
    assert held(client, experiment) == held(client, f"{experiment} whole")


def test_what_a_crash_left_before_the_mark_is_written_again_to_no_effect(
    store, uri, client, experiment
):
    catch_up(store, uri, experiment)
    before = held(client, experiment)
    for run in runs(client, experiment).values():
        client.delete_tag(run.info.run_id, MARK_TAG)
    assert catch_up(store, uri, experiment) == len(store.follow())
    assert held(client, experiment) == before


def test_names_and_amounts_that_mlflow_refuses_are_logged_all_the_same(uri, client, experiment):
    store = MemoryEventStore()
    many = tuple(Metric(name=f"body[{n}]//weight: ü", value=n / 7) for n in range(2300))
    measured = e.EpochRecorded(epoch=1, step=10, objective=float("nan"), metrics=many)
    long = run_opened("long", name="x" * 400)
    store.append("long", [long, measured, *epochs(1, first=2)], expected=0)
    catch_up(store, uri, experiment)
    (run,) = runs(client, experiment).values()
    assert len([name for name in run.data.metrics if name.startswith("metrics")]) == 2300
    assert history(client, run, "metrics:2f:body:5b:7:5d::2f::2f:weight:3a: ü") == [(10, 1.0)]


def test_a_run_that_is_there_twice_is_refused(store, uri, client, experiment):
    catch_up(store, uri, experiment)
    found = client.get_experiment_by_name(experiment)
    client.create_run(found.experiment_id, tags={RUN_TAG: "grown-1"})
    with pytest.raises(SinkUnavailable, match=r"'grown-1' is there twice: .* delete one of them"):
        catch_up(store, uri, experiment)


def test_a_mark_that_somebody_changed_is_refused(store, uri, client, experiment):
    catch_up(store, uri, experiment)
    client.set_tag(runs(client, experiment)["fork"].info.run_id, MARK_TAG, "mine")
    with pytest.raises(SinkUnavailable):
        catch_up(store, uri, experiment)


def test_more_runs_than_mlflow_lists_at_a_time_are_all_found(store, uri, experiment, monkeypatch):
    catch_up(store, uri, experiment)
    whole = MlflowClient.search_runs

    def one_at_a_time(self, *arguments, **options):
        return whole(self, *arguments, **options, max_results=1)

    monkeypatch.setattr(MlflowClient, "search_runs", one_at_a_time)
    sink = MlflowSink(uri, experiment=experiment, words=WORDS)
    assert set(sink.marks()) == {first.run_id for first in store.runs()}


def test_runs_of_others_in_the_experiment_are_left_alone(store, uri, client, experiment):
    number = client.create_experiment(experiment)
    theirs = client.create_run(number, run_name="theirs")
    catch_up(store, uri, experiment)
    assert catch_up(store, uri, experiment) == 0
    assert client.get_run(theirs.info.run_id).data.metrics == {}


@pytest.mark.parametrize("uri", ["nonsense://x", "file:///mlruns"])
def test_a_store_that_cannot_be_used_is_unavailable(uri):
    with pytest.raises(SinkUnavailable, match="MLflow at") as raised:
        catch_up(told(MemoryEventStore()), uri, EXPERIMENT)
    assert raised.value.target == f"MLflow at {uri}"


def test_a_file_that_is_no_database_is_unavailable(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"not a database, however long one looks at it" * 100)
    with pytest.raises(SinkUnavailable):
        catch_up(told(MemoryEventStore()), f"sqlite:///{path}", EXPERIMENT)


def test_a_failing_store_keeps_its_place_and_goes_on(store, uri, client, experiment, monkeypatch):
    sink = MlflowSink(uri, experiment=experiment, words=WORDS)
    follower = Follower(store, sink, page=20)

    def refuse(*_arguments, **_options):
        raise MlflowException("the database is down")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="the database is down"):
                follower.catch_up()
    assert follower.catch_up() == len(store.follow())
    assert set(runs(client, experiment)) == {first.run_id for first in store.runs()}
