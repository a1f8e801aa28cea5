"""What the tests of the torch adapter share: views to follow, and small modules to graft."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from kasmina.domain.projections import Behaviour, SlotView
from kasmina.domain.schedules import held
from kasmina.domain.stages import SeedInput
from tests.torch.continuity import growing

Pair = namedtuple("Pair", ["features", "extra"])  # noqa: PYI024  # as strangers' models return it


class ConvSeed(nn.Module):
    """Residual, not zero at birth, so that what it does is seen."""

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.norm(self.conv(x)))


class Returning(nn.Module):
    """Returns its features in the given kind of container."""

    def __init__(self, kind):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.kind = kind

    def forward(self, x):
        features = self.conv(x)
        match self.kind:
            case "tuple":
                return features, "extra"
            case "list":
                return [features, "extra"]
            case "namedtuple":
                return Pair(features, "extra")
            case "dict":
                return {"features": features, "extra": "extra"}
            case "text":
                return "extra"


def conv_host(*, inplace=False, dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=inplace),
        nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 10),
    )


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Tensors here are small: threads cost more than they give, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def drawn_from_a_known_seed():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.randn(4, 3, 12, 12)


@pytest.fixture
def kit():
    """The modules above."""

    class Kit:
        seed = ConvSeed
        host = staticmethod(conv_host)
        returning = Returning
        pair = Pair

    return Kit


@pytest.fixture
def view():
    """``view("1", Behaviour.BLEND, 0.5)``: as the domain projects it in that stage."""

    def make(slot_id, behaviour, alpha=0.0, *, seed_input=SeedInput.OPEN, learning=True):
        return SlotView(
            slot_id=slot_id,
            behaviour=behaviour,
            seed_input=seed_input,
            learning=learning and behaviour is not Behaviour.IDENTITY,
            schedule=held(alpha),
        )

    return make


@pytest.fixture
def accelerator():
    """The accelerator's device; the test is skipped where there is none."""
    if not torch.accelerator.is_available():
        pytest.skip("there is no accelerator")
    return torch.accelerator.current_accelerator()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return tmp_path_factory.mktemp("grown") / "runs.db"


@pytest.fixture
def grown(database):
    with growing(database) as make:
        yield make
