"""Measuring with a seed and without it: the figures are right, and nothing else is left."""

import copy
import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from kasmina.adapters.torch import measurement as module
from kasmina.adapters.torch.graft import graft
from kasmina.adapters.torch.measurement import (
    Correlation,
    Evaluator,
    IncomparableOutputs,
    Measured,
    MissingObjective,
    SlotNotEvaluated,
    UnusableMetrics,
    largest_tensor,
)
from kasmina.adapters.torch.randomness import RandomStreams
from kasmina.adapters.torch.slot import Sprout
from kasmina.adapters.torch.streams import Stream
from kasmina.domain.evidence import Metric, Probe
from kasmina.domain.objective import Objective
from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import Stage, Topology

WITH = SlotView(
    slot_id="body",
    stage=Stage.SHADOWING,
    seed_id="s",
    behaviour=Behaviour.BLEND,
    learning=True,
    schedule=held(1.0),
)
WITHOUT = SlotView(slot_id="body", stage=Stage.SHADOWING, seed_id="s")


class Host(nn.Module):
    def __init__(self, pack=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(4, 3)
        self.pack = pack

    def forward(self, images, *, scale=1.0):
        return self.pack(self.head(self.rest(self.body(images)).flatten(1)) * scale)


class Bench:
    """A host with a dropping-out seed that blends at full alpha, and held-out data."""

    def __init__(self, seed=None, **host):
        torch.manual_seed(0)
        self.model = Host(**host)
        self.slots = graft(self.model, {"body": Topology.CNN})
        seed = seed or nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.5))
        self.slots["body"].attach(
            Sprout(module=seed, probe=Probe(), parameters=1, stream=Stream(3))
        )
        self.slots["body"].follow(WITH, 0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.batches = [torch.randn(n, 1, 6, 6) for n in (4, 3, 5)]
        self.evaluator = Evaluator(self.slots, Objective.minimize("loss"))
        self.train()

    def train(self, model=None):
        model = self.model if model is None else model
        model.train()
        out = torch.stack([model(x).square().mean() for x in self.batches]).mean()
        out.backward()
        self.optimizer.step()
        return out.item()

    def predictions(self, view):
        with torch.no_grad(), self.slots.showing("body", view):
            self.model.eval()
            outputs = torch.cat([self.model(x) for x in self.batches])
            self.model.train()
        return outputs

    def evaluate(self, model=None):
        model = self.model if model is None else model
        model.eval()
        with torch.no_grad():
            losses = [model(x).square().mean() for x in self.batches]
        model.train()
        return {"loss": torch.stack(losses).mean()}

    def traces(self):
        """Everything that a further pass must leave alone."""
        streams = RandomStreams.capture()
        return copy.deepcopy(
            {
                "model": dict(self.model.state_dict()),
                "buffers": dict(self.model.named_buffers()),
                "gradients": {n: p.grad for n, p in self.model.named_parameters()},
                "optimizer": self.optimizer.state_dict(),
                "modes": {n: m.training for n, m in self.model.named_modules()},
                "hooks": len(self.model._forward_hooks),
                "streams": streams.state_dict(),
                "own stream": self.slots["body"].own_stream.state(),
                "view": self.slots["body"].view == WITH,
            }
        )


def alike(one, other):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture
def bench():
    return Bench()


def reference(one, other):
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1].item()


class TestThePlainEvaluation:
    def test_is_one_call_whose_numbers_are_kept_as_they_are(self, bench):
        calls = []
        measured = bench.evaluator.measure(
            lambda: calls.append(1) or {"acc": 1, "loss": torch.tensor(0.5), "odd": math.inf}
        )
        assert calls == [1]
        assert measured == Measured(
            objective=0.5,
            metrics=(
                Metric(name="acc", value=1.0),
                Metric(name="loss", value=0.5),
                Metric(name="odd", value=math.inf),
            ),
        )

    def test_may_give_a_number_that_is_none(self, bench):
        assert math.isnan(bench.evaluator.measure(lambda: {"loss": math.nan}).objective)

    def test_without_the_objective_says_what_it_did_give(self, bench):
        with pytest.raises(
            MissingObjective, match="no metric 'loss'; did you mean 'los'"
        ) as raised:
            bench.evaluator.measure(lambda: {"los": 1.0, "acc": 2.0})
        assert raised.value.known == ("acc", "los")

    @pytest.mark.parametrize("value", ["0.5", None, [1.0], torch.ones(2), 1j])
    def test_with_something_else_than_a_number_says_which(self, bench, value):
        with pytest.raises(UnusableMetrics, match="metric 'extra' is a"):
            bench.evaluator.measure(lambda: {"loss": 1.0, "extra": value})

    @pytest.mark.parametrize("returned", [0.5, None, {1: 2.0}, {" ": 2.0}])
    def test_that_is_no_mapping_from_names_is_refused(self, bench, returned):
        with pytest.raises(UnusableMetrics, match="must return a mapping from names to numbers"):
            bench.evaluator.measure(lambda: returned)


def rude(bench):
    """An evaluation that does everything it should not."""
    bench.model.train()
    with torch.enable_grad():
        for x in bench.batches:
            bench.model(x).sum().backward()
    bench.model.body[1].num_batches_tracked = torch.tensor(99)
    random.random()
    return {"loss": 0.0}


class TestAFurtherPass:
    @pytest.mark.parametrize("kind", ["showing", "shadow"])
    @pytest.mark.parametrize("evaluate", [Bench.evaluate, rude])
    def test_leaves_no_trace(self, bench, kind, evaluate):
        before = bench.traces()
        gradients = [p.grad for p in bench.model.parameters()]
        views = {"showing": (WITHOUT,), "shadow": (WITH, WITHOUT)}[kind]
        getattr(bench.evaluator, kind)(lambda: evaluate(bench), *views)
        assert alike(bench.traces(), before)
        assert all(p.grad is g for p, g in zip(bench.model.parameters(), gradients, strict=True))

    @pytest.mark.parametrize("kind", ["showing", "shadow"])
    def test_that_fails_leaves_none_either_and_the_error_is_the_users(self, bench, kind):
        def fail():
            rude(bench)
            bench.evaluate()
            raise ZeroDivisionError

        before = bench.traces()
        views = {"showing": (WITHOUT,), "shadow": (WITH, WITHOUT)}[kind]
        with pytest.raises(ZeroDivisionError):
            getattr(bench.evaluator, kind)(fail, *views)
        assert alike(bench.traces(), before)

    def test_does_not_change_the_training_that_follows(self):
        left, right = Bench(), Bench()
        right.evaluator.showing(lambda: rude(right), WITHOUT)
        right.evaluator.shadow(right.evaluate, WITH, WITHOUT)
        losses = []
        for bench in (left, right):
            torch.manual_seed(5)
            losses.append([bench.train() for _ in range(3)])
        assert losses[0] == losses[1]
        assert alike(dict(left.model.state_dict()), dict(right.model.state_dict()))

    @pytest.mark.parametrize("training", [True, False])
    def test_begins_in_the_mode_of_the_plain_one_and_without_gradient(self, bench, training):
        """An evaluation that forgets ``eval()`` compares like with like."""
        bench.model.train(training)
        seen = []
        bench.evaluator.showing(
            lambda: (
                seen.append((bench.model.training, torch.is_grad_enabled())) or bench.evaluate()
            ),
            WITHOUT,
        )
        assert seen == [(training, False)]

    def test_of_another_model_is_an_error_and_not_a_difference_of_zero(self, bench):
        other = copy.deepcopy(bench.model)
        for judge in (
            lambda: bench.evaluator.showing(lambda: bench.evaluate(other), WITHOUT),
            lambda: bench.evaluator.shadow(lambda: bench.evaluate(other), WITH, WITHOUT),
        ):
            with pytest.raises(SlotNotEvaluated, match="never ran slot 'body'"):
                judge()

    def test_of_some_batches_that_skip_the_slot_is_judged_by_the_others(self, bench):
        class Skipping(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Linear(4, 4)

            def forward(self, x, *, deep):
                return self.body(x) if deep else x

        model = Skipping()
        slots = graft(model, {"body": Topology.TRANSFORMER})
        slots["body"].attach(nn.Linear(4, 4))
        evaluator = Evaluator(slots, Objective.minimize("loss"))

        def evaluate():
            x = torch.ones(2, 4)
            return {"loss": (model(x, deep=False) + model(x, deep=True)).mean()}

        shadow = evaluator.shadow(evaluate, WITH, WITHOUT)
        assert shadow.values == 16
        assert shadow.objective_without is not None

    def test_of_a_host_with_dropout_in_training_mode_compares_like_with_like(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        slots = graft(model, {"0": Topology.TRANSFORMER})
        slots["0"].attach(nn.Identity())
        evaluator = Evaluator(slots, Objective.minimize("loss"))
        batches = torch.randn(4, 3, 4)

        def evaluate():
            with torch.no_grad():
                figures = [model(batch).mean() for batch in batches]
            model.eval()
            return {"loss": torch.stack(figures).mean()}

        model.train()
        measured = evaluator.measure(evaluate)
        without = SlotView(slot_id="0")
        with_seed = SlotView(
            slot_id="0", seed_id="s", behaviour=Behaviour.BLEND, schedule=held(1.0)
        )
        shadow = evaluator.shadow(evaluate, with_seed, without)
        assert shadow.agreement == 1.0
        assert shadow.objective_without == measured.objective
        assert evaluator.showing(evaluate, with_seed).objective == measured.objective

    def test_of_a_copy_made_inside_is_an_error_too(self, bench):
        def evaluate():
            return bench.evaluate(copy.deepcopy(bench.model))

        with pytest.raises(SlotNotEvaluated):
            bench.evaluator.shadow(evaluate, WITH, WITHOUT)
        assert bench.evaluator.showing(bench.evaluate, WITHOUT).objective is not None

    def test_of_a_module_that_torch_fuses_away_is_an_error(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 1)
        torch.backends.mha.set_fastpath_enabled(False)  # as it must have been seen, to be grafted
        slots = graft(
            model,
            {"layers.0.linear2": Topology.TRANSFORMER},
            example_inputs=(torch.randn(2, 3, 8),),
        )
        torch.backends.mha.set_fastpath_enabled(True)
        slots["layers.0.linear2"].attach(nn.Linear(8, 8))
        evaluator = Evaluator(slots, Objective.minimize("loss"))

        def evaluate():
            model.eval()
            return {"loss": model(torch.randn(2, 3, 8)).mean()}

        view = SlotView(slot_id="layers.0.linear2")
        with pytest.raises(SlotNotEvaluated, match="fuses in eval mode"):
            evaluator.showing(evaluate, view)

    def test_shows_the_slot_as_it_was_asked_to(self, bench):
        rehearsed = bench.evaluator.showing(bench.evaluate, WITH).objective
        alone = bench.evaluator.showing(bench.evaluate, WITHOUT).objective
        assert rehearsed == bench.evaluate()["loss"].item()
        assert alone != rehearsed

    def test_sees_the_same_data_where_the_evaluation_draws_its_own(self, bench):
        def evaluate():
            bench.evaluate()
            return {"loss": torch.rand(()) + random.random()}

        measured = bench.evaluator.measure(evaluate)
        bench.train()
        assert bench.evaluator.showing(evaluate, WITHOUT).objective == measured.objective
        shadow = bench.evaluator.shadow(evaluate, WITH, WITHOUT)
        assert shadow.objective_without == measured.objective


class TestAgreement:
    def test_is_the_correlation_of_all_outputs_with_the_seed_and_without_it(self, bench):
        shadow = bench.evaluator.shadow(bench.evaluate, WITH, WITHOUT)
        one, other = bench.predictions(WITH), bench.predictions(WITHOUT)
        assert shadow.agreement == pytest.approx(reference(one, other), abs=1e-12)
        assert shadow.agreement < 0.9999
        assert shadow.values == one.numel() == 36
        alone = bench.evaluator.showing(bench.evaluate, WITHOUT)
        assert shadow.objective_without == alone.objective

    def test_of_a_seed_that_is_the_identity_is_exactly_one(self):
        bench = Bench(seed=nn.Identity())
        assert bench.evaluator.shadow(bench.evaluate, WITH, WITHOUT).agreement == 1.0

    def test_counts_no_output_with_gradient(self, bench):
        def evaluate():
            with torch.enable_grad():
                bench.model(bench.batches[0])
            return bench.evaluate()

        assert bench.evaluator.shadow(evaluate, WITH, WITHOUT).values == 36

    def test_of_a_seed_that_is_not_finite_is_nan(self):
        class Broken(nn.Conv2d):
            def forward(self, features):
                return super().forward(features) / 0

        bench = Bench(seed=Broken(4, 4, 1))
        alone = WITH.__class__(
            slot_id="body", stage=Stage.FOSSILIZED, seed_id="s", behaviour=Behaviour.SEED
        )
        assert math.isnan(bench.evaluator.shadow(bench.evaluate, alone, WITHOUT).agreement)

    def test_serves_keyword_arguments_inference_mode_and_autocast(self, bench):
        def evaluate():
            bench.model.eval()
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                for x in bench.batches:
                    bench.model(x, scale=2.0)
            return {"loss": 0}

        shadow = bench.evaluator.shadow(evaluate, WITH, WITHOUT)
        expected = reference(bench.predictions(WITH), bench.predictions(WITHOUT))
        assert shadow.agreement == pytest.approx(expected, abs=0.02)

    def test_compares_what_forward_returned_whatever_the_users_own_hooks_make_of_it(self, bench):
        expected = bench.evaluator.shadow(bench.evaluate, WITH, WITHOUT).agreement
        bench.model.register_forward_pre_hook(lambda _, args: (args[0] * 1.0,))
        bench.model.register_forward_hook(lambda *_: torch.zeros(2))
        assert bench.evaluator.shadow(bench.evaluate, WITH, WITHOUT).agreement == expected


class TestTheComparedTensor:
    @pytest.mark.parametrize(
        "pack",
        [
            lambda logits: (torch.zeros(2), logits),
            lambda logits: {"loss": logits.mean(), "logits": logits, "mask": torch.ones(99).bool()},
            lambda logits: [{"deep": (logits,)}],
        ],
    )
    def test_is_the_largest_floating_one(self, pack):
        bench = Bench()
        expected = bench.evaluator.shadow(bench.evaluate, WITH, WITHOUT)
        bench.model.pack = pack

        def evaluate():
            bench.model.eval()
            for x in bench.batches:
                bench.model(x)
            return {"loss": 0.0}

        shadow = bench.evaluator.shadow(evaluate, WITH, WITHOUT)
        assert (shadow.agreement, shadow.values) == (expected.agreement, expected.values)

    def test_is_what_prediction_says(self, bench):
        evaluator = Evaluator(
            bench.slots, Objective.minimize("loss"), prediction=lambda output: output[:, 0]
        )
        shadow = evaluator.shadow(bench.evaluate, WITH, WITHOUT)
        one, other = (bench.predictions(view)[:, 0] for view in (WITH, WITHOUT))
        assert shadow.values == 12
        assert shadow.agreement == pytest.approx(reference(one, other), abs=1e-12)

    def test_cannot_be_found_in_an_output_without_one(self):
        with pytest.raises(IncomparableOutputs, match="a dict without a floating-point tensor"):
            largest_tensor({"classes": torch.arange(3)})

    def test_cannot_be_something_else(self, bench):
        before = bench.traces()
        evaluator = Evaluator(
            bench.slots, Objective.minimize("loss"), prediction=lambda output: output.tolist()
        )
        with pytest.raises(IncomparableOutputs, match="the prediction is a list"):
            evaluator.shadow(bench.evaluate, WITH, WITHOUT)
        assert alike(bench.traces(), before)


class TestCorrelation:
    @given(
        data=st.lists(
            st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)),
            min_size=2,
            max_size=40,
        ),
        cuts=st.lists(st.integers(0, 40), max_size=4),
    )
    def test_does_not_depend_on_how_the_values_were_cut(self, data, cuts):
        one, other = torch.tensor(data).T
        whole, cut = Correlation(), Correlation()
        whole.add(one, other)
        edges = [0, *sorted(min(c, len(one)) for c in cuts), len(one)]
        for start, stop in itertools.pairwise(edges):
            cut.add(one[start:stop], other[start:stop])
        assert cut.values == len(one)
        assert (whole.value() is None) == (cut.value() is None)
        if whole.value() is not None:
            assert whole.value() == pytest.approx(cut.value(), abs=1e-6)

    def test_keeps_its_precision_far_from_zero(self):
        generator = torch.Generator().manual_seed(0)
        one = torch.randn(5000, generator=generator, dtype=torch.float64) + 1e8
        other = one + torch.randn(5000, generator=generator, dtype=torch.float64)
        correlation = Correlation()
        for pair in zip(one.split(7), other.split(7), strict=True):
            correlation.add(*pair)
        assert correlation.value() == pytest.approx(reference(one - 1e8, other - 1e8), abs=1e-9)

    def test_is_taken_in_pieces_where_there_is_much(self, monkeypatch):
        monkeypatch.setattr(module, "_CHUNK", 10)
        one, other = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0))
        correlation = Correlation()
        correlation.add(one, other)
        assert correlation.value() == pytest.approx(reference(one, other), abs=1e-12)

    def test_of_a_constant_is_undefined_unless_the_other_is_the_same(self):
        constant, line = torch.full((9,), 0.1), torch.linspace(0, 1, 9)
        for one, other, expected in (
            (constant, line, None),
            (line, constant, None),
            (constant, constant * 2, None),
            (constant, constant, 1.0),
        ):
            correlation = Correlation()
            for part in (slice(0, 4), slice(4, 9)):
                correlation.add(one[part], other[part])
            assert correlation.value() == expected

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("position", [0, 4])
    def test_of_something_not_finite_is_nan_even_where_both_are_equal(self, bad, position):
        one = torch.linspace(0, 1, 9)
        one[position] = bad
        correlation = Correlation()
        correlation.add(one, one)
        assert math.isnan(correlation.value())

    def test_of_nothing_is_undefined(self):
        correlation = Correlation()
        correlation.add(torch.zeros(0), torch.zeros(0))
        assert correlation.value() is None

    def test_of_unlike_shapes_is_refused(self):
        with pytest.raises(IncomparableOutputs, match=r"shape \(2,\) with the seed and \(3,\)"):
            Correlation().add(torch.zeros(2), torch.zeros(3))


# torch warns against its own way of tracing autograd functions.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function:DeprecationWarning")
# torch warns of what its own compiler does with an autograd function.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
class TestACompiledModel:
    @pytest.fixture
    def counter(self):
        torch._dynamo.reset()
        yield CompileCounter()
        torch._dynamo.reset()

    @pytest.mark.parametrize("in_place", [False, True])
    def test_is_seen_and_not_compiled_again(self, counter, in_place):
        bench = Bench(seed=nn.Conv2d(4, 4, 1))
        bench.slots["body"].stream = None
        bench.slots["body"].watching = False
        bench.slots["body"].choose()
        expected = bench.evaluator.shadow(bench.evaluate, WITH, WITHOUT)
        compiled = bench.model
        if in_place:
            bench.model.compile(backend=counter)
        else:
            compiled = torch.compile(bench.model, backend=counter)
        for _ in range(2):
            bench.train(compiled)
        with_seed = bench.evaluate(compiled)["loss"].item()
        graphs = counter.frame_count
        shadow = bench.evaluator.shadow(lambda: bench.evaluate(compiled), WITH, WITHOUT)
        alone = bench.evaluator.showing(lambda: bench.evaluate(compiled), WITHOUT)
        assert shadow.values == expected.values
        assert shadow.objective_without == alone.objective != with_seed
        bench.train(compiled)
        assert bench.evaluate(compiled)["loss"].item() != with_seed
        assert counter.frame_count == graphs > 0
