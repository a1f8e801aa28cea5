"""How far a run is shown, as every receiver keeps it."""

import json

from attrs import asdict, frozen

from kasmina.domain.ports import Recorded


@frozen(kw_only=True)
class Mark:
    """The last event of a run that is shown; ``digest`` is hexadecimal.

    The digest covers all that came before, so a mark says which history was shown.
    """

    run_id: str
    sequence: int
    digest: str

    @classmethod
    def of(cls, record: Recorded) -> "Mark":
        """The mark of a run that is shown up to ``record``."""
        return cls(run_id=record.run_id, sequence=record.sequence, digest=record.digest.hex())

    @classmethod
    def nothing(cls, run_id: str) -> "Mark":
        """The mark of a run of which nothing is shown."""
        return cls(run_id=run_id, sequence=0, digest="")

    @classmethod
    def parse(cls, text: str) -> "Mark":
        """The mark that was written as ``text``."""
        return cls(**json.loads(text))

    @property
    def text(self) -> str:
        """The mark as it is stored."""
        return json.dumps(asdict(self), sort_keys=True)
