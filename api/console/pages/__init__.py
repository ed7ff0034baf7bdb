"""The pages, one module for each person's need."""

from __future__ import annotations

from api.console.pages import (
    auditing,
    data,
    home,
    mine,
    operating,
    overview,
    reading,
    reviewing,
    settling,
    signing_in,
)

ROUTERS = tuple(
    module.router
    for module in (signing_in, home, reading, settling, mine, overview, reviewing, data, operating, auditing)
)
