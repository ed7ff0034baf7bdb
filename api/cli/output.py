"""What the command line prints: answers to stdout, everything else to stderr.

So `overread run list --json | jq` works while progress stays visible. Colour follows NO_COLOR and the terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from api.cli.errors import CliError

if TYPE_CHECKING:
    from rich.console import Console

MARKS = {"✓": "green", "✗": "red", "!": "yellow"}
PIPE_WIDTH = 240
TIME = re.compile(r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(\.\d+)?(?P<zone>Z|[+-]\d\d:\d\d)")


def screen() -> Console:
    """The console for people, on stderr."""
    from rich.console import Console  # noqa: PLC0415 - only those who print pay for rich

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Tell a person one thing; a leading ✓, ✗ or ! is coloured."""
    from rich.markup import escape  # noqa: PLC0415

    colour = MARKS.get(text[:1])
    screen().print(f"[{colour}]{text[0]}[/{colour}]{escape(text[1:])}" if colour else escape(text))


def complain(error: CliError) -> None:
    """Say what went wrong and what to do about it."""
    say(f"✗ {error.message}")
    if error.fix:
        say(f"  → {error.fix}")


def answer(document: Any, *, as_json: bool, columns: Sequence[str] = (), empty: str = "Nothing yet.") -> None:
    """Print an answer: as JSON, or a list as a table of `columns`, or one thing as its fields."""
    if as_json:
        json.dump(document, sys.stdout, indent=2, ensure_ascii=False, default=str)
        sys.stdout.write("\n")
    elif isinstance(document, Mapping):
        _print_fields({name: _at(document, name) for name in (columns or document)})
    elif document:
        _print_table(document, columns=columns)
    else:
        say(empty)


def _print_fields(document: Mapping[str, Any]) -> None:
    width = max((len(name) for name in document), default=0)
    for name, value in document.items():
        sys.stdout.write(f"{_heading(name):<{width}}  {_shown(value)}\n")


def _print_table(rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(_heading(name), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(_at(row, name))) for name in columns))
    # Into a pipe or a file, lines are as long as they need to be.
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _heading(name: str) -> str:
    return name.replace("_", " ").replace(".", " ")


def _at(row: Mapping[str, Any], name: str) -> Any:
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case Mapping():
            return ", ".join(f"{_heading(str(name))} {_shown(item)}" for name, item in value.items()) or "-"
        case list() | tuple() if all(isinstance(item, str) for item in value):
            return ", ".join(value) or "-"
        case list():
            return json.dumps(value, ensure_ascii=False, default=str)
        case float():
            return f"{value:.4g}"
        case _:
            return _shown_text(str(value))


def _shown_text(text: str) -> str:
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]  # a digest; --json has all of it
    if stamp := TIME.fullmatch(text):
        zone = "Z" if stamp["zone"] in {"Z", "+00:00"} else stamp["zone"]
        return f"{stamp['day']} {stamp['time']}{zone}"
    return text
