"""What the writers of these tests write, and when something happens to them."""

import random
from enum import Enum
from itertools import chain, islice

from attrs import frozen

from kasmina.domain import events as e

LARGEST_BATCH = 20


class Moment(Enum):
    """A moment in the middle of a transaction: after the store's step of that name."""

    BEGUN = "begin"
    INSERTED = "insert"
    READING = "run"


WRITING = (Moment.BEGUN, Moment.INSERTED)


def marked(writer, count):
    """Events that bear the number of the writer that wrote them."""
    return tuple(e.EpochRecorded(epoch=1, step=1, objective=float(writer)) for _ in range(count))


@frozen(kw_only=True)
class Batch:
    number: int
    expected: int
    key: str
    events: tuple[e.Event, ...]


@frozen(kw_only=True)
class Plan:
    """The batches of a run, of 1 to 20 events: the same for all who know its seed."""

    run: str
    seed: int

    def batches(self, *, after=0):
        """Endlessly, from the one on that comes after so many."""
        sequence = 0
        for number, size in enumerate(self._sizes(), 1):
            if number > after:
                yield Batch(
                    number=number,
                    expected=sequence,
                    key=f"{self.run}:{number}",
                    events=tuple(
                        e.EpochRecorded(epoch=at, step=10 * at, objective=float(number))
                        for at in range(sequence + 1, sequence + 1 + size)
                    ),
                )
            sequence += size

    def end(self, number):
        """The sequence of the last event of so many batches."""
        return sum(islice(self._sizes(), number))

    def events(self, count):
        """The first so many."""
        flat = chain.from_iterable(batch.events for batch in self.batches())
        return list(islice(flat, count))

    def _sizes(self):
        chance = random.Random(self.seed)
        while True:
            yield chance.randint(1, LARGEST_BATCH)
