"""``kasmina``: the commands, and what becomes of their errors.

Each command lives in a module of its own that is imported when the command is called: help costs
no database library, reading commands no torch.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from keyword import iskeyword
from typing import NoReturn

from cyclopts import App, CycloptsError

from kasmina.adapters.cli.errors import Exit, exit_code
from kasmina.domain.errors import KasminaError

_COMMANDS = "kasmina.adapters.cli"


def _version() -> str:
    from importlib.metadata import version

    return version("kasmina")


app = App(
    name="kasmina",
    help="Grow neural networks under gates, with every decision on record.",
    help_format="plaintext",
    version=_version,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
database = App(name="db", help="Create a database, bring it up to date, copy it.")


def _function(command: str) -> str:
    return f"{command}_" if iskeyword(command) else command


def _register() -> None:
    for command, module, summary in (
        ("demo", "demo_command", "Grow a small network, from germination to the last gate."),
        ("runs", "runs_command", "List the runs of a database."),
        ("replay", "replay_command", "Show a run as it stands, or as it stood at any point."),
        ("audit", "audit_command", "Show what the gates decided, and on which figures."),
        ("diff", "diff_command", "Show what differs between two points, or between two runs."),
        ("verify", "verify_command", "Check that runs are exactly as they were recorded."),
        ("seal", "seal_command", "Write down what a run is now, to hold it to that later."),
        ("fork", "fork_command", "Begin a new run from any point of another."),
        ("export", "export_command", "Write runs to JSON lines, Parquet or CSV."),
        ("import", "import_command", "Take in runs that were exported as JSON lines."),
        ("sink", "sink_command", "Pass the log on to TensorBoard, MLflow or OpenTelemetry."),
        ("blueprints", "catalogue_commands", "List what seeds can be made of."),
        ("stages", "catalogue_commands", "Draw the lifecycle of a slot."),
    ):
        app.command(f"{_COMMANDS}.{module}:{_function(command)}", name=command, help=summary)
    for command, module, summary in (
        ("upgrade", "db_commands", "Create a database, or bring it up to date."),
        ("current", "db_commands", "Show a database's schema."),
        ("copy", "db_copying", "Copy runs into another database, digests and all."),
        ("backup", "db_copying", "Copy a whole database while others write to it."),
    ):
        database.command(f"{_COMMANDS}.{module}:{command}", name=command, help=summary)
    app.command(database)
    app.register_install_completion_command(help="Install completion for this shell.")


_register()


def main() -> NoReturn:
    """Run the command that the program was called with, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack a letter; show the rest
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every foreseen error is a line on stderr."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        return _failed("UsageError", str(error), Exit.USAGE, arguments)
    except KasminaError as error:
        return _failed(type(error).__name__, str(error), exit_code(error), arguments)
    except BrokenPipeError:  # `kasmina audit | head`: nobody reads on
        _discard_output()
        return Exit.READER_LEFT
    except OSError as error:  # the disk that the output goes to is full, for instance
        _discard_output()
        return _failed("OSError", str(error), Exit.STORE, arguments)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return result if isinstance(result, int) else Exit.FINE


def _discard_output() -> None:
    """Keep the interpreter's last flush from failing, and complaining, again."""
    with suppress(OSError):  # where a test stands in for the stream there is nothing to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(kind: str, message: str, code: Exit, arguments: Sequence[str]) -> Exit:
    from kasmina.adapters.cli.output import complain

    text = " ".join(message.split())
    if "--json" in arguments:
        document = {"error": {"type": kind, "message": text, "exit_code": int(code)}}
        complain(json.dumps(document))
    else:
        complain(f"error: {text}")
    return code
