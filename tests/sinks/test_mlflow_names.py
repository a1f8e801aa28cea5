"""Keys that MLflow takes, and that stay different where the names are."""

from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

from kasmina.adapters.sinks.mlflow_names import LONGEST_TEXT, key, shortened

NAMES = st.text(alphabet=st.sampled_from("ab./:[]_- ü%2f\n"), min_size=1, max_size=12) | st.text(
    min_size=1, max_size=300
)


@given(NAMES)
@example(".")
@example("..")
@example("..a")
@example("/a")
@example("a/../b")
@example("a//b")
@example("x" * 251)
def test_mlflow_takes_every_key(name):
    _validate_metric_name(key(name))
    _validate_tag_name(key(name))


@given(NAMES, NAMES)
@example("a[", "a:5b:")
@example("a//b", "a/b")
@example("x" * 251, "x" * 252)
def test_different_names_stay_different(one, other):
    assert (key(one) == key(other)) == (one == other)


def test_what_mlflow_takes_anyway_is_left_as_it_is():
    assert (
        key("slots/body/G2/margin/min improvement-1.5")
        == "slots/body/G2/margin/min improvement-1.5"
    )
    assert shortened("as it is") == "as it is"


def test_a_long_text_ends_in_dots():
    assert len(shortened("x" * 9000)) == LONGEST_TEXT
    assert shortened("x" * 9000).endswith("x...")
