"""``kasmina stages`` and ``kasmina blueprints``: what there is, without any database."""

from typing import Annotated

from cyclopts import Parameter, validators

from kasmina.adapters.cli.documents import blueprints_document, stages_document
from kasmina.adapters.cli.options import Json
from kasmina.adapters.cli.output import say, show, show_document
from kasmina.adapters.cli.render.blueprints import render_blueprints
from kasmina.adapters.cli.render.stages import mermaid, render_stages
from kasmina.domain.blueprints import SHIPPED
from kasmina.domain.machine import EDGES
from kasmina.domain.stages import Topology


def stages(
    *,
    mermaid_text: Annotated[
        bool,
        Parameter(
            name="--mermaid", negative=(), show_default=False, help="Print a Mermaid diagram."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Draw the lifecycle of a slot, from the machine that enforces it."""
    if json:
        show_document(stages_document(EDGES))
    elif mermaid_text:
        say(mermaid(EDGES))
    else:
        show(render_stages(EDGES))


def blueprints(
    *,
    topology: Annotated[Topology | None, Parameter(help="Only those for this layout.")] = None,
    width: Annotated[
        int, Parameter(validator=validators.Number(gte=1), help="The slot's channels.")
    ] = 64,
    json: Json = False,
) -> None:
    """List the blueprints that come with kasmina, and count their parameters."""
    chosen = [spec for spec in SHIPPED if topology is None or spec.topology is topology]
    if json:
        show_document(blueprints_document(chosen, width=width))
    else:
        show(render_blueprints(chosen, width=width))
