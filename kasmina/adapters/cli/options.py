"""The parameters that commands share."""

from typing import Annotated, TypeAlias

from cyclopts import Parameter

DEFAULT_DATABASE = "sqlite:///kasmina.db"

Database: TypeAlias = Annotated[
    str,
    Parameter(
        name="--database", env_var="KASMINA_DATABASE", help="The database, as a SQLAlchemy URL."
    ),
]
Json: TypeAlias = Annotated[
    bool,
    Parameter(
        name="--json", negative=(), show_default=False, help="Print JSON, for other programs."
    ),
]
Run: TypeAlias = Annotated[
    str,
    Parameter(help="A run's id or its unique beginning, a run's unique name, or 'latest'."),
]
