"""What other thresholds would have decided, and what would have become of each seed."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kasmina.adapters.cli.render.figures import number, plain_table, plural
from kasmina.adapters.cli.render.sentences import requirement
from kasmina.domain.evidence import Check
from kasmina.domain.stages import Gate, Stage
from kasmina.domain.thresholds import Threshold
from kasmina.domain.verdicts import Action, Certainty, Change, Course, Tally, Verdict
from kasmina.domain.whatif import WhatIf

_STYLES = {
    Change.TO_PASSING: "green",
    Change.TO_REFUSED: "red",
    Change.TIMED_OUT: "red",
    Change.SPARED: "green",
}
_NOTES = {Certainty.SHIFTED: " (shifted)", Certainty.OPEN: " (open)"}


def render_what_if(
    result: WhatIf, verdicts: Sequence[Verdict], courses: Sequence[Course]
) -> RenderableType:
    """The thresholds, the decisions that change, the courses that leave the record, a count."""
    # What is overtaken would not have been asked: it is counted, and told by its seed's course.
    changes = [
        verdict
        for verdict in verdicts
        if verdict.change is not Change.NONE and verdict.certainty is not Certainty.MOOT
    ]
    told = [text for text in map(course_text, courses) if text is not None]
    parts: list[RenderableType] = [_heading(result)]
    if changes:
        parts += ["", _changes(changes)]
    if told:
        parts += ["", *told]
    return Lines(*parts, "", render_tally(Tally.of(verdicts)))


def render_run(
    result: WhatIf, verdicts: Sequence[Verdict], courses: Sequence[Course]
) -> RenderableType:
    """One of many runs: a line where nothing changes, else all as for one run, and a gap."""
    tally = Tally.of(verdicts)
    if tally.changes:
        return Lines(render_what_if(result, verdicts, courses), "")
    return Lines(Text.assemble((result.run_id, "bold"), "  ", render_tally(tally)), "")


def render_tally(tally: Tally) -> Text:
    """How many decisions change, how far that can be told, and what no bound would turn."""
    counts = {
        "now pass": tally.to_passing,
        "now refused": tally.to_refused,
        "now culled by time-out": tally.timed_out,
        "no longer culled": tally.spared,
    }
    sure = {
        "certain": tally.certain,
        "shifted": tally.shifted,
        "open": tally.open,
        "overtaken": tally.moot,
    }
    text = Text.assemble(
        (plural(tally.decisions - tally.undone, "decision"), "bold"),
        f": {_listed(counts) or 'none changes'}",
    )
    if tally.changes:
        text.append(f" ({_listed(sure)})")
    if tally.undone:
        text.append(f"; {tally.undone:,} more undone by a rewind")
    if tally.unusable:
        unusable = "for a figure that was not measured, or not finite"
        text.append(f"\nrefused under any bound: {tally.unusable:,}, {unusable}")
    return text


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def left_out_text(left_out: Sequence[str], names: Iterable[str]) -> Text:
    """Which of many runs have no gate that asks for the thresholds."""
    asked = ", ".join(names)
    return Text(f"{plural(len(left_out), 'run')} left out, without {asked}: {', '.join(left_out)}")


def course_text(course: Course) -> RenderableType | None:
    """What would have become of a seed; nothing for one whose life is the recorded one."""
    at = course.divergence
    if at is not None:
        said = " ".join([_turn(course, at), *_afterwards(course, at)])
    elif course.untold_from is not None:
        said = (
            f"From #{course.untold_from} on the log cannot tell: another seed might still have "
            f"held the slot."
        )
    elif course.shifted_from is not None:
        said = (
            f"Decided as recorded, but from #{course.shifted_from} on by figures of a host that "
            f"another seed's course might have changed."
        )
    else:
        return None
    seed = course.seed_id if course.seed_id.strip() else "(no seed)"
    heading = Text.assemble((course.slot_id, "bold"), f" {seed}")
    return Lines(heading, Padding(Text(said), (0, 0, 0, 2)))


def _heading(result: WhatIf) -> RenderableType:
    text = Text.assemble((result.run_id, "bold"), " under other thresholds")
    for threshold in result.thresholds:
        text.append(f"\n  {_replaced(threshold, result.in_force[threshold.name])}")
    return text


def _replaced(threshold: Threshold, recorded: Sequence[float | None]) -> str:
    now, was = bound(threshold.value), " and ".join(map(bound, recorded))
    return f"{threshold.name} {now}" + (", as it was" if now == was else f" instead of {was}")


def bound(value: float | None) -> str:
    """A threshold's value; a time-out may have none."""
    return "none" if value is None else number(value)


def _changes(changes: Iterable[Verdict]) -> Table:
    table = plain_table()
    table.add_column("event", justify="right", no_wrap=True)
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("slot", overflow="fold", max_width=20)
    table.add_column("gate", no_wrap=True)
    table.add_column("what changes", overflow="fold")
    for verdict in changes:
        decision = verdict.decision
        table.add_row(
            f"#{decision.sequence}",
            f"{decision.epoch:,}",
            decision.slot_id,
            verdict.outcome.gate.value,
            _noted(verdict),
        )
    return table


def _noted(verdict: Verdict) -> Text:
    if verdict.decision.undone:
        return Text(f"{_change(verdict)} (undone)", style="dim")
    note = _NOTES.get(verdict.certainty, "")
    return Text.assemble((_change(verdict), _STYLES[verdict.change]), (note, "yellow"))


def _change(verdict: Verdict) -> str:
    match verdict.change:
        case Change.TO_PASSING:
            recorded = "culled" if verdict.recorded is Action.CULL else "refused"
            return f"{recorded} → passed: {_reasons(verdict, passing=True)}"
        case Change.TO_REFUSED:
            now = "culled" if verdict.action is Action.CULL else "refused"
            return f"passed → {now}: {_reasons(verdict, passing=False)}"
        case Change.TIMED_OUT:
            return f"refused → culled: {_lasted(verdict)}"
        case _:
            return f"culled → refused: {_lasted(verdict)}"


def _reasons(verdict: Verdict, *, passing: bool) -> str:
    """The checks that turned the decision, with their new bounds."""
    pairs = zip(verdict.decision.outcome.checks, verdict.outcome.checks, strict=True)
    return "; ".join(
        _figure(check)
        for recorded, check in pairs
        if check.passed is passing and recorded.passed is not passing
    )


def _figure(check: Check) -> str:
    return f"{check.name} {number(check.measured)}, required {requirement(check)}"


def _lasted(verdict: Verdict) -> str:
    return f"{plural(verdict.epochs_in_stage, 'epoch')} in {verdict.stage.value}"


def _turn(course: Course, at: Verdict) -> str:
    """What would have happened at the divergence."""
    here = f"epoch {at.decision.epoch:,} (#{at.decision.sequence})"
    instead = course.instead_of
    later = "" if instead is None else f" instead of {instead.epoch:,} (#{instead.sequence})"
    spared = ", not culled by its time-out" if at.recorded is Action.CULL else ""
    if at.action is Action.ADVANCE:
        might = "Might" if at.certainty is Certainty.OPEN else "Would"
        return f"{might} have been {at.leads_to.value} from {here}{later}{spared}."
    if at.action is Action.CULL:
        return f"Would have been culled by its time-out at {here}{later}, after {_lasted(at)}."
    if at.outcome.gate is Gate.G0:
        return f"Would not have germinated at {here}."
    return f"Would have stayed in {at.stage.value} at {here}{spared}."


def _afterwards(course: Course, at: Verdict) -> Iterable[str]:
    """What the divergence does to the rest of the recorded life, and where knowledge ends."""
    if at.certainty is Certainty.SHIFTED:
        yield "The figures are of a host that another seed's course might have changed."
    if at.certainty is Certainty.OPEN:
        yield "It had not been rehearsed so early, and a rehearsal could have refused it."
    lived = [a for a in course.foregone if a.stage.holds_seed or a.stage is Stage.CULLED]
    if at.change is Change.TO_REFUSED and lived:
        stages = ", ".join(f"{arrival.stage.value} (epoch {arrival.epoch:,})" for arrival in lived)
        yield f"{stages} would not have followed as recorded."
    if course.untold_from is not None:
        yield f"{_lost(at)} from #{course.untold_from} on the log {_of_what(at)}."


def _lost(at: Verdict) -> str:
    if at.action is Action.STAY:
        return "Whether a later epoch would have passed cannot be told:"
    return "How it would have gone on cannot be told:"


def _of_what(at: Verdict) -> str:
    match at.recorded:
        case Action.ADVANCE:
            return f"is of a seed that had left {at.stage.value}"
        case Action.STAY:
            return f"is of a seed that was still in {at.stage.value}"
        case Action.CULL:
            return f"is of a seed that was {Stage.CULLED.value}"
