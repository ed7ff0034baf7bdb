"""A second try, alone, for the few of three thousand tests that failed while others held the processors.

A test that fails twice fails. One that passes now is named for all to see, for its cause is still there: most often a
wait that was too short, and once it was a worker that lost its session with the broker. Where more failed than chance
explains, or the tests could not be run, there is no second try.

    python -m pytest --numprocesses 3 || python tests/again.py $?      # what `make test` does
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FAILED = 1
"""pytest's exit code for tests that failed, and for nothing worse."""
MOST = 3
REMEMBERED = Path(".pytest_cache/v/cache/lastfailed")


def main(arguments: list[str]) -> int:
    """Try again what failed in the last run, whose exit code is given; returns the exit code of both together."""
    code = int(arguments[0])
    names = sorted(json.loads(REMEMBERED.read_text(encoding="utf-8"))) if REMEMBERED.is_file() else []
    if code != FAILED or not 0 < len(names) <= MOST:
        return code
    print(f"\n{len(names)} failed; each is tried once more, alone.", flush=True)
    again = subprocess.run([sys.executable, "-m", "pytest", "--last-failed", "--tb=short"], check=False).returncode
    if again == 0:
        print("PASSED ONLY AT THE SECOND TRY, look for the cause above:", *names, sep="\n  ")
    return again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
