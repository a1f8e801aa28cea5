"""Public fakes and suites for those who build on kasmina, or beside it."""

from kasmina.testing.contract import EventStoreContract
from kasmina.testing.fakes import CountingIdentifiers, FixedClock, MemoryEventStore
from kasmina.testing.samples import caught, epochs, run_opened
from kasmina.testing.scenario import Decided, Given, given

__all__ = [
    "CountingIdentifiers",
    "Decided",
    "EventStoreContract",
    "FixedClock",
    "Given",
    "MemoryEventStore",
    "caught",
    "epochs",
    "given",
    "run_opened",
]
