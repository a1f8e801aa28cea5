"""Whether runs are as they were written, and the seals that they are held to."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from kasmina.adapters.cli.render.figures import plural, verdict
from kasmina.infra.integrity import Problem, Verification
from kasmina.infra.sealing import SealFile

_LISTED = 10

_UNJUDGED = (
    "{} not held against the run's state: a newer release wrote some of them, "
    "or the run that it was forked from is elsewhere"
)


def render_verifications(found: Sequence[Verification]) -> RenderableType:
    """What was found of each run, and of a broken one where it breaks first."""
    if not found:
        return Text("there are no runs to verify")
    return Lines(*(part for verification in found for part in _parts(verification)))


def _parts(verification: Verification) -> Iterator[RenderableType]:
    name = (verification.run_id, "bold")
    mark = verdict(passed=verification.sound)
    events = plural(verification.events, "event")
    if verification.sound:
        digest = verification.head.digest.hex()[:16]
        yield Text.assemble(mark, " ", name, f"  intact, {events}, head digest {digest}")
        if verification.unjudged:
            yield Text(
                f"  {_UNJUDGED.format(plural(verification.unjudged, 'event'))}", style="yellow"
            )
        return
    first = verification.problems[0].sequence
    yield Text.assemble(mark, " ", name, (f"  broken at event #{first}, {events}", "red"))
    yield _problems(verification.problems[:_LISTED])
    if len(verification.problems) > _LISTED:
        yield Text(f"  and {plural(len(verification.problems) - _LISTED, 'more problem')}")


def _problems(problems: Sequence[Problem]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for problem in problems:
        detail = f" ({problem.detail})" if problem.detail else ""
        table.add_row(f"  #{problem.sequence}", problem.flaw.value + detail)
    return table


def render_sealed(file: SealFile, *, path: Path) -> RenderableType:
    """What was sealed, and where it is."""
    lines = [
        Text.assemble(
            (seal.run_id, "bold"),
            f"  sealed at event #{seal.length}, digest {seal.digest.hex()[:16]}",
        )
        for seal in file.seals
    ]
    return Lines(
        *lines, Text(f"{path}: {_signature(file)}; keep it where no run can be changed from")
    )


def render_credentials(file: SealFile, *, trusted: bool) -> RenderableType:
    """Who vouches for the seal that the runs were held to."""
    moment = f"{file.sealed_at:%Y-%m-%d %H:%M:%S} UTC"
    text = f"held to the seal of {moment}, {_signature(file)}"
    if trusted:
        return Text(f"{text}, which is the trusted one")
    if file.fingerprint is None:
        return Text(f"{text}: it is worth as much as the place where it was kept", style="yellow")
    return Text(f"{text}, which was not checked: --public-key names one to trust", style="yellow")


def render_key(private: Path, public: Path, *, fingerprint: str) -> RenderableType:
    """The two halves of a new key, and what to do with each."""
    return Lines(
        Text(f"{private}: the private key, to sign with; keep it to yourself"),
        Text(f"{public}: the public key, to hand out"),
        Text(f"fingerprint {fingerprint}"),
    )


def _signature(file: SealFile) -> str:
    if file.fingerprint is None:
        return "not signed"
    return f"signed by the key {file.fingerprint}"
