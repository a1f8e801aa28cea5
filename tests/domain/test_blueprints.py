import subprocess
import sys
from itertools import pairwise

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from kasmina.domain.blueprints import (
    SHIPPED,
    BlueprintKind,
    BlueprintSpec,
    DuplicateBlueprint,
    heads,
    rank,
    reduced,
)
from kasmina.domain.errors import KasminaError
from kasmina.domain.stages import Topology

EVERY = pytest.mark.parametrize("spec", SHIPPED, ids=lambda s: f"{s.topology.value}-{s.name}")
WIDTHS = st.integers(min_value=1, max_value=5000)


def names(topology):
    return {spec.name for spec in SHIPPED if spec.topology is topology}


def test_the_catalogue_serves_both_topologies():
    assert names(Topology.CNN) == {
        "attention",
        "bottleneck",
        "conv_heavy",
        "conv_inline",
        "conv_light",
        "depthwise",
        "norm",
    }
    assert names(Topology.TRANSFORMER) == {
        "attention",
        "linear_inline",
        "lora",
        "mlp",
        "mlp_small",
        "norm",
    }


def test_topology_and_name_are_given_once_and_in_order():
    order = [(list(Topology).index(spec.topology), spec.name) for spec in SHIPPED]
    assert order == sorted(set(order))


def test_each_topology_has_an_in_line_blueprint():
    inline = {spec.topology for spec in SHIPPED if spec.kind is BlueprintKind.INLINE}
    assert inline == set(Topology)


def test_listing_and_counting_load_no_framework():
    program = (
        "import sys\n"
        "from kasmina.domain.blueprints import SHIPPED\n"
        "assert all(spec.parameters(64) > 0 for spec in SHIPPED)\n"
        "print([name for name in ('torch', 'numpy', 'sqlalchemy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@EVERY
class TestEverySpec:
    def test_a_wider_seed_has_more_parameters(self, spec):
        counts = [spec.parameters(width) for width in (1, 2, 8, 64, 256)]
        assert counts[0] > 0
        assert all(narrow < wide for narrow, wide in pairwise(counts))

    @pytest.mark.parametrize("width", [0, -3])
    def test_a_width_below_one_is_refused(self, spec, width):
        with pytest.raises(ValueError, match=f"width of at least 1, got {width}"):
            spec.parameters(width)

    def test_the_summary_fits_a_column(self, spec):
        assert len(spec.summary) <= 70
        assert spec.summary == spec.summary.strip(" .")


def test_a_spec_is_a_value():
    spec = SHIPPED[0]
    with pytest.raises(FrozenInstanceError):
        spec.name = "other"


@pytest.mark.parametrize("blank", ["name", "summary"])
def test_a_spec_says_what_it_is(blank):
    texts = {"name": "mine", "summary": "a seed"} | {blank: " "}
    with pytest.raises(ValueError, match=f"{blank} must not be blank"):
        BlueprintSpec(topology=Topology.CNN, kind=BlueprintKind.INLINE, formula=int, **texts)


def test_a_duplicate_is_named_with_the_reason():
    error = DuplicateBlueprint(Topology.CNN, "norm")
    assert isinstance(error, KasminaError)
    assert (error.topology, error.name) == (Topology.CNN, "norm")
    assert "already is a cnn blueprint 'norm'" in str(error)


@given(WIDTHS)
def test_heads_divide_the_width_and_are_not_too_narrow(width):
    assert width % heads(width) == 0
    assert heads(width) == 1 or width // heads(width) >= 32


@given(WIDTHS)
def test_inner_sizes_are_at_least_one_and_grow_slowly(width):
    assert 1 <= rank(width) <= min(8, width)
    assert 4 <= reduced(width) <= max(4, width // 4)


@pytest.mark.parametrize(("width", "expected"), [(16, 1), (64, 2), (768, 24), (131, 1)])
def test_heads_of_some_widths(width, expected):
    assert heads(width) == expected
