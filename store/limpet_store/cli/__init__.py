"""`limpet-store`: look at a gateway's store, check it, move it, clean it up.

One module for each verb. A verb's module has

    HELP                what the list of verbs says, one line; the module's docstring is what `--help` says
    configure(parser)   its arguments
    run(args) -> int    what it does; the exit code

Exit codes: 0 all is well; 1 something was found or left out, or what was asked for is not there, and it said so;
2 wrong usage; 3 a file cannot be opened (it is not there, is held by a gateway, or is no store); 130 interrupted;
141 whoever read the output went away. All output goes by `limpet.console`, so that no user's text steers a terminal.
"""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Sequence

from limpet import FormatError, LimpetError, LockedError
from limpet.console import Parser, run

from ..errors import SchemaError
from .common import CANNOT_OPEN, FAILED, WRONG_USAGE, UsageError, add_common, note

# The one list of verbs, in the order of the help: the name, and with "_" for "-" the module.
VERBS = (
    "demo",
    "stats",
    "check",
    "sessions",
    "messages",
    "archive",
    "tasks",
    "jobs",
    "cron",
    "pairings",
    "kv",
    "export",
    "import",
    "import-openclaw",
    "import-redb",
    "inspect-redb",
    "backup",
    "retention",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(
        prog="limpet-store",
        description="Look at the store of an AI-agent gateway, check it, move it, clean it up.",
        epilog="exit codes: 0 all is well, 1 something was found, left out or is not there, 2 wrong usage, "
        "3 cannot open the store, 130 interrupted, 141 whoever read the output went away",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        module = importlib.import_module(f".{module_name(verb)}", __name__)
        child = verbs.add_parser(
            verb,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_common(child)
        module.configure(child)
        child.set_defaults(run=module.run)
    return parser


def module_name(verb: str) -> str:
    """The module of a verb: `import` is a keyword, so that its module is `import_`."""
    return "import_" if verb == "import" else verb.replace("-", "_")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    return run("limpet-store", functools.partial(_main, argv), refused=FAILED)


def _main(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except UsageError as error:
        note(str(error))
        return WRONG_USAGE
    except (LockedError, FormatError, SchemaError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
        note(str(error))
        return CANNOT_OPEN
    except BrokenPipeError:
        raise
    except (LimpetError, OSError) as error:
        note(str(error))
        return FAILED
