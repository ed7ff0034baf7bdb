"""Run a simulation and print what it measured beside what was expected.

python -m pipelines.simulate bio-creep --repeats 1000 --seed 0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import numpy as np

from pipelines.simulate import alarm, bio_creep, contamination, delay, reuse, shadow, slices
from pipelines.simulate.table import Table

SIMULATIONS: dict[str, tuple[Callable[..., Table], int]] = {
    "bio-creep": (bio_creep.simulate, 1000),
    "test-reuse": (reuse.simulate, 1000),
    "contamination": (contamination.simulate, 2000),
    "shadow": (shadow.simulate, 2000),
    "alarm": (alarm.simulate, 2000),
    "slices": (slices.simulate, 2000),
    "delay": (delay.simulate, 50),
}
"""What each word runs, and how often if not told."""


def main(arguments: list[str]) -> int:
    """Run the simulation named and print its table."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.simulate", description=__doc__)
    parser.add_argument("what", choices=SIMULATIONS)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    simulate, usual = SIMULATIONS[asked.what]
    repeats = usual if asked.repeats is None else asked.repeats
    if repeats < 2:
        parser.error("--repeats: at least 2, or nothing can be said about chance")
    sys.stdout.write(simulate(repeats=repeats, rng=np.random.default_rng(asked.seed)).render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
