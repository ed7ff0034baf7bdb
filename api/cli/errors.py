"""What the command line says when it cannot go on.

CliError                 expected; shown as one message with its fix, never as a stack trace
├── SetupError           the machine or the settings are not ready (exit 2)
├── StartFailed          a process did not become healthy (exit 1)
├── NotRunning           no service answers (exit 3)
└── Refused              the service understood and said no (exit 1)
"""

from __future__ import annotations


class CliError(Exception):
    """Expected failure; `fix` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class SetupError(CliError):
    """The machine or the settings are not ready."""

    exit_code = 2


class StartFailed(CliError):
    """A process did not become healthy."""


class NotRunning(CliError):
    """No service answers."""

    exit_code = 3


class Refused(CliError):
    """The service understood and said no: with which status and problem, and when it wants to be asked again."""

    def __init__(
        self,
        message: str,
        *,
        fix: str | None = None,
        status: int = 0,
        problem: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, fix=fix)
        self.status, self.problem, self.retry_after_seconds = status, problem, retry_after_seconds
