"""The catalogue of what seeds can be made of."""

from collections.abc import Sequence

from rich.console import RenderableType

from kasmina.adapters.cli.render.figures import plain_table
from kasmina.domain.blueprints import BlueprintSpec


def render_blueprints(specs: Sequence[BlueprintSpec], *, width: int) -> RenderableType:
    """Each blueprint, with its number of parameters in a slot ``width`` channels wide."""
    table = plain_table()
    table.add_column("topology", no_wrap=True)
    table.add_column("blueprint", overflow="fold", style="bold")
    table.add_column("kind", no_wrap=True)
    table.add_column(f"at width {width:,}", justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for spec in specs:
        table.add_row(
            spec.topology.value,
            spec.name,
            spec.kind.value,
            f"{spec.parameters(width):,}",
            spec.summary,
        )
    return table
