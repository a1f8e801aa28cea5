"""``kasmina seal``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kasmina.adapters.cli.documents.seal import key_document, seal_document
from kasmina.adapters.cli.errors import ContradictoryOptions, Exit, MissingExtra, NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import complain, say, show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader
from kasmina.adapters.cli.render.verification import render_key, render_sealed
from kasmina.infra import sealing
from kasmina.infra.integrity import Scrutiny, Verification
from kasmina.infra.sealing import SealFile


def seal(
    run: Run | None = None,
    /,
    *,
    every: Annotated[
        bool, Parameter(name="--all", negative=(), show_default=False, help="Seal every run.")
    ] = False,
    key: Annotated[
        Path | None, Parameter(help="Sign with this private key; see --new-key.")
    ] = None,
    output: Annotated[
        Path | None, Parameter(help="The new file; without one, the standard output.")
    ] = None,
    new_key: Annotated[
        Path | None,
        Parameter(help="Instead of sealing, make a key: KEY.pem, and KEY.pub.pem to hand out."),
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> Exit:
    """Write down what runs are now, so that `kasmina verify --seal` can hold them to it later.

    Keep the seal where those who can write to the database cannot. A run that is not sound is not
    sealed: then nothing is, and the exit code is 1.
    """
    _require_sense(run, key, output, new_key, every=every)
    if new_key is not None:
        return _make_key(new_key, json=json)
    with open_reader(database) as store:
        chosen = store.run_ids() if run is None else (find_run(store, run),)
        found = [store.verify(run_id, scrutiny=Scrutiny.HISTORY) for run_id in chosen]
    if not _sealable(found):
        return Exit.NO
    file = _sealed(found, key)
    if output is None:
        say(sealing.dump(file).decode().rstrip("\n"))
        return Exit.FINE
    from kasmina.infra.writing import write_new

    write_new(output, sealing.dump(file))
    if json:
        show_document(seal_document(file, path=output))
    else:
        show(render_sealed(file, path=output))
    return Exit.FINE


def _require_sense(
    run: str | None, key: Path | None, output: Path | None, new_key: Path | None, *, every: bool
) -> None:
    given = {"RUN": run, "--all": every, "--key": key, "--output": output, "--new-key": new_key}
    named = [name for name, value in given.items() if value]
    if new_key is not None and len(named) > 1:
        raise ContradictoryOptions(("--new-key", named[0]))
    if run is not None and every:
        raise ContradictoryOptions(("RUN", "--all"))
    if run is None and not every and new_key is None:
        raise NothingNamed(("a RUN", "--all", "--new-key KEY.pem"))


def _make_key(path: Path, *, json: bool) -> Exit:
    with needing_cryptography("kasmina seal --new-key"):
        from kasmina.infra.keys import make_keys, public_path
    fingerprint = sealing.fingerprint(make_keys(path))
    public = public_path(path)
    if json:
        show_document(key_document(path, public, fingerprint=fingerprint))
    else:
        show(render_key(path, public, fingerprint=fingerprint))
    return Exit.FINE


def _sealable(found: Sequence[Verification]) -> bool:
    for verification in found:
        if verification.problems:
            first = verification.problems[0].message
            complain(
                f"error: run {verification.run_id!r} is not sound, nothing was sealed: {first}"
            )
    if not found:
        complain("error: there are no runs to seal")
    return bool(found) and all(verification.sound for verification in found)


def _sealed(found: Sequence[Verification], key: Path | None) -> SealFile:
    from kasmina.infra.system import SystemClock

    seals = [verification.seal for verification in found]
    file = sealing.sealed(seals, at=SystemClock().now())
    if key is None:
        return file
    with needing_cryptography("kasmina seal --key"):
        from kasmina.infra.keys import signed
    return signed(file, key)


@contextmanager
def needing_cryptography(command: str) -> Iterator[None]:
    """Raise ``MissingExtra`` where what is imported inside needs ``cryptography`` in vain."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "cryptography":
            raise
        raise MissingExtra(command, "cryptography", extra="seal") from error
