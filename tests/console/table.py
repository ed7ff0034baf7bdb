"""Every page of the console, from its own routers: what the tests walk through, so that a new page is tested too."""

from __future__ import annotations

from dataclasses import dataclass

from api.auth import ROLES_KEY
from api.console.pages import ROUTERS
from api.console.route import OPEN, PageRoute


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A route: its method, its path with places to fill, who may; nobody named means anybody."""

    method: str
    path: str
    roles: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def filled(self, **known: object) -> str:
        """The path with what is known in its places, and elsewhere something that does not exist."""
        nothing = {"line": "no-such-line", "token": "no-such-token", "name": "no-such-file"}
        ids = ("case_id", "candidate_id", "run_id", "dataset_version_id", "amendment_id")
        return self.path.format(**{**nothing, **dict.fromkeys(ids, 999999), **known})


def entries() -> list[Entry]:
    """All of them."""
    return [
        Entry(
            method=method,
            path=route.path,
            roles=tuple(role for role in route.openapi_extra[ROLES_KEY] if role != OPEN),
        )
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, PageRoute) and route.openapi_extra
        for method in sorted(route.methods or ())
    ]
