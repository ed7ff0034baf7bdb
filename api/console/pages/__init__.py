"""The pages, one module for each person's need."""

from __future__ import annotations

from api.console.pages import (
    amending,
    auditing,
    data,
    exporting,
    flips,
    home,
    live,
    mine,
    operating,
    overview,
    reading,
    reviewing,
    settling,
    signing_in,
    talking,
    watching,
)

ROUTERS = tuple(
    module.router
    for module in (
        signing_in, home, live, reading, settling, mine, overview, watching, reviewing, amending, flips, talking, data,
        operating, auditing, exporting,
    )
)  # fmt: skip
