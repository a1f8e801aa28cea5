"""``kasmina verify``."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.types import ExistingFile
from rich.console import Group as Lines

from kasmina.adapters.cli.documents import verification_document
from kasmina.adapters.cli.documents.seal import credentials_document
from kasmina.adapters.cli.errors import ContradictoryOptions, Exit, NothingNamed
from kasmina.adapters.cli.options import DEFAULT_DATABASE, Database, Json, Run
from kasmina.adapters.cli.output import show, show_document
from kasmina.adapters.cli.reading import find_run, open_reader
from kasmina.adapters.cli.render.verification import render_credentials, render_verifications
from kasmina.adapters.cli.seal_command import needing_cryptography
from kasmina.domain.errors import KasminaError
from kasmina.infra.integrity import Scrutiny, Verification
from kasmina.infra.sealing import LARGEST, SealFile, parse

if TYPE_CHECKING:
    from kasmina.infra.event_store import SqlEventStore


class NotSealed(KasminaError):
    """A run of which the seal says nothing."""

    def __init__(self, run_id: str, path: Path) -> None:
        self.run_id = run_id
        self.path = path
        super().__init__(
            f"{path} does not seal run {run_id!r}; give the seal that was made of it, or leave "
            f"the RUN out to verify those that are in it"
        )


def verify(
    run: Run | None = None,
    /,
    *,
    every: Annotated[
        bool, Parameter(name="--all", negative=(), show_default=False, help="Verify every run.")
    ] = False,
    seal: Annotated[
        ExistingFile | None, Parameter(help="Hold runs to a seal; alone, all that are in it.")
    ] = None,
    public_key: Annotated[
        ExistingFile | None, Parameter(help="The public key that the seal must be signed with.")
    ] = None,
    database: Database = DEFAULT_DATABASE,
    json: Json = False,
) -> Exit:
    """Check that a run is exactly as it was recorded; exit code 1 where it is not."""
    if run is not None and every:
        raise ContradictoryOptions(("RUN", "--all"))
    if run is None and not every and seal is None:
        raise NothingNamed(("a RUN", "--all"))
    if public_key is not None and seal is None:
        raise NothingNamed(("--seal FILE with --public-key",))
    file = None if seal is None else _read(seal, public_key)
    sealed = {} if file is None else {one.run_id: one for one in file.seals}
    with open_reader(database) as store:
        chosen = _chosen(store, run, sealed, every=every)
        if seal is not None and run is not None and chosen[0] not in sealed:
            raise NotSealed(chosen[0], seal)
        found = [
            store.verify(run_id, seal=sealed.get(run_id), scrutiny=Scrutiny.HISTORY)
            for run_id in chosen
        ]
    _show(found, file, trusted=public_key is not None, json=json)
    return Exit.FINE if all(verification.sound for verification in found) else Exit.NO


def _chosen(
    store: "SqlEventStore", run: str | None, sealed: Collection[str], *, every: bool
) -> list[str]:
    """The runs to verify; a sealed one also where nothing of it is left."""
    if run is None:
        return sorted({*sealed, *(store.run_ids() if every else ())})
    return [run if run in sealed else find_run(store, run)]


def _read(path: Path, trusted: Path | None) -> SealFile:
    """The seal, found to be whole and by the trusted key as far as either can be told."""
    with path.open("rb") as stream:
        file = parse(stream.read(LARGEST + 1))
    if file.public_key is not None or trusted is not None:
        with needing_cryptography("to check a signature kasmina verify"):
            from kasmina.infra.keys import authenticate
        authenticate(file, trusted)
    return file


def _show(found: list[Verification], file: SealFile | None, *, trusted: bool, json: bool) -> None:
    if json:
        credentials = {} if file is None else {"seal": credentials_document(file, trusted=trusted)}
        show_document(verification_document(found) | credentials)
    elif file is None:
        show(render_verifications(found))
    else:
        show(Lines(render_verifications(found), render_credentials(file, trusted=trusted)))
