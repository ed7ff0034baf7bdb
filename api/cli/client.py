"""The HTTP API as the command line uses it: where it is, who asks, and what its refusals mean.

`OVERREAD_API_URL` names the service (default: what runs in the home folder); `OVERREAD_API_KEY` is the person's key,
`OVERREAD_PURPOSE` what patients' data is looked at for.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from api.cli.errors import NotRunning, Refused, SetupError
from api.cli.home import home_at, read_stack_file

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8080"


def api_url() -> str:
    """Where the API is: OVERREAD_API_URL, else what runs in the home folder, else the default port."""
    stack = read_stack_file(home_at())
    return (os.environ.get("OVERREAD_API_URL") or (stack.api_url if stack else DEFAULT_URL)).rstrip("/")


class Client:
    """A connection for one command; refusals become CliErrors in the service's own words.

    Raises:
        SetupError: no API key in the environment.
    """

    def __init__(self) -> None:
        import httpx  # noqa: PLC0415 - `overread --help` does not pay for it

        key = os.environ.get("OVERREAD_API_KEY", "").strip()
        if not key:
            raise SetupError(
                "OVERREAD_API_KEY is not set, so the service cannot know who asks",
                fix="make a key with `overread key create NAME`, then: export OVERREAD_API_KEY=ovr_...",
            )
        purpose = os.environ.get("OVERREAD_PURPOSE", "").strip()
        self.url = api_url()
        local = urlsplit(self.url).hostname in {"127.0.0.1", "localhost", "::1"}
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} | ({"Overread-Purpose": purpose} if purpose else {}),
            timeout=120,
            trust_env=not local,  # loopback never goes through a proxy
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Read a resource as JSON; parameters that are None are left out."""
        kept = {name: value for name, value in parameters.items() if value is not None}
        return self.send("GET", path, params=kept).json()

    def text(self, path: str) -> str:
        """Read a resource as plain text."""
        return self.send("GET", path, headers={"Accept": "text/plain"}).text

    def post(self, path: str, **options: Any) -> Any:
        """Ask for a change and return what came of it."""
        return self.send("POST", path, **options).json()

    def line(self, given: str | None) -> str:
        """Name the line meant: the given one, or the only one there is.

        Raises:
            SetupError: none was given, and there is not exactly one.
        """
        if given:
            return given
        names = [line["name"] for line in self.get("/v1/lines")]
        if len(names) == 1:
            return str(names[0])
        if not names:
            raise SetupError("there is no line yet", fix="make one with `overread line create PROTOCOL.yaml`")
        raise SetupError("there is more than one line", fix=f"say which with --line: {', '.join(sorted(names))}")

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request.

        Raises:
            NotRunning: nobody answers there.
            Refused: the service said no; the message is its own.
        """
        import httpx  # noqa: PLC0415

        try:
            response = self._client.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise NotRunning(
                f"{self.url} did not answer in time", fix="see what is wrong with `overread doctor`"
            ) from error
        except httpx.TransportError as error:
            raise NotRunning(
                f"nobody answers at {self.url}", fix="start the service with `overread up`, or set OVERREAD_API_URL"
            ) from error
        if response.is_error:
            raise _refusal(response)
        return response


def _refusal(response: httpx.Response) -> Refused:
    try:
        problem = response.json()
        detail = str(problem.get("detail") or problem["title"])
    except (ValueError, KeyError, AttributeError):
        return Refused(
            f"the service answered {response.status_code}: {response.text[:300]}", status=response.status_code
        )
    faults = [fault for fault in problem.get("errors") or () if isinstance(fault, dict)]
    if faults:  # one line each reads better than the sentence that strings them together
        detail = "\n    ".join([str(problem["title"]), *(f"{fault['field']}: {fault['message']}" for fault in faults)])
    if str(problem.get("type", "")).endswith(("/sign-in-again", "/no-password")):
        return Refused(detail)  # says itself what to do
    fixes = {
        401: "is OVERREAD_API_KEY a key of this service, and not revoked? `overread key create NAME` makes another",
        403: "ask an operator for the role, or use the key of somebody who has it",
    }
    wait = response.headers.get("Retry-After", "")
    return Refused(
        detail,
        fix=fixes.get(response.status_code),
        status=response.status_code,
        problem=str(problem.get("type", "")),
        retry_after_seconds=float(wait) if wait.isdecimal() else None,
    )
