"""Killed at every point where the code says that a crash could matter, the service comes back to a whole record.

Each scenario is done once unharmed to count the points it passes, then once for each of them with a kill there and a
repeat after it. Of many hits of one point the first, one in the middle and the last are taken; `make soak` takes all.
Fault matrix rows 1, 4, 6, 8, 21, 24.
"""

from __future__ import annotations

import ast
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.db import connect
from tests.faults.conftest import MakePlace
from tests.faults.mutation import Mutation
from tests.faults.places import blob_root
from tests.faults.scenarios import SCENARIOS
from tests.faults.whole import assert_record_whole, imagined_files
from tests.faults.zygote import ROOT, Zygote

PACKAGES = ("api", "registry", "workers", "pipelines")
SOAK = (pytest.mark.soak, pytest.mark.timeout(3600))


def labels_in(source: str) -> Iterator[str]:
    """The label of each fault point in a module's source."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="audit"), args=[ast.Constant(value="overread.fault"), *rest]):
                (label,) = rest
                assert isinstance(label, ast.Constant), "a label is written out, so that it can be found"
                yield str(label.value)


def all_labels() -> set[str]:
    """Every label in the four packages."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {label for file in files for label in labels_in(file.read_text(encoding="utf-8"))}


def test_labels_are_found_wherever_they_stand() -> None:
    source = 'def f():\n    with g():\n        sys.audit("overread.fault", "a.b.after")\nsys.audit("x", "y")\n'
    assert list(labels_in(source)) == ["a.b.after"]
    assert len(all_labels()) > 20
    for label in all_labels():
        subject, step, when = label.split(".")
        assert subject.isalpha() and step.isalpha() and when in {"before", "after"}, label  # noqa: PT018


def test_every_fault_point_is_on_the_way_of_a_scenario() -> None:
    subjects = {subject for scenario in SCENARIOS.values() for subject in scenario.subjects}
    assert {label for label in all_labels() if label.split(".")[0] not in subjects} == set(), "write a scenario"


@pytest.mark.parametrize("every_hit", [pytest.param(False, id="some"), pytest.param(True, id="all", marks=SOAK)])
@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_is_killed_the_repeat_makes_it_whole(
    name: str, every_hit: bool, zygote: Zygote, make_place: MakePlace, tmp_path: Path
) -> None:
    points, unbroken = unharmed(name, zygote=zygote, make_place=make_place, seen=tmp_path / "seen")
    for label in sorted(label for label in all_labels() if label.split(".")[0] in SCENARIOS[name].subjects):
        assert points[label], f"it never gets to {label}"
        for number in chosen(points[label], every=every_hit):
            killed_and_repeated(name, f"{label}:{number}", zygote=zygote, make_place=make_place, unbroken=unbroken)


def unharmed(name: str, *, zygote: Zygote, make_place: MakePlace, seen: Path) -> tuple[Counter[str], Any]:
    """Do a scenario without any harm; returns how often it passed each of its points, and what it was told."""
    scenario = SCENARIOS[name]
    place = make_place()
    with connect(place["database_url"]) as conn:
        place.update(scenario.prepare(conn, place))
        conn.commit()
        imagined = imagined_files(conn, blob_root(place))
        code, answer = zygote.run(name, place, seen=seen)
        assert code == 0, zygote.said()
        place["unbroken"] = answer
        assert_record_whole(conn, blob_root(place), imagined=imagined)
        scenario.check(conn, place, answer)
    return Counter(seen.read_text(encoding="utf-8").split()), answer


def chosen(hits: int, *, every: bool) -> list[int]:
    """Which of the hits of one point to kill at."""
    return list(range(1, hits + 1)) if every else sorted({1, (hits + 1) // 2, hits})


def killed_and_repeated(
    name: str,
    faultpoint: str,
    *,
    zygote: Zygote,
    make_place: MakePlace,
    unbroken: Any = None,
    mutations: tuple[Mutation, ...] = (),
) -> dict[str, Any]:
    """Kill a scenario at a point, look, repeat it unharmed, look again; returns the place as it was then."""
    scenario = SCENARIOS[name]
    place = make_place()
    with connect(place["database_url"]) as conn:
        place.update(scenario.prepare(conn, place), unbroken=unbroken)
        conn.commit()
        imagined = imagined_files(conn, blob_root(place))
        code, _ = zygote.run(name, place, faultpoint=faultpoint, mutations=mutations)
        assert code == -signal.SIGKILL, f"{faultpoint}: it ended with {code}\n{zygote.said()}"
        assert_record_whole(conn, blob_root(place), imagined=imagined)
        code, answer = zygote.run(name, place, mutations=mutations)
        assert code == 0, f"after a kill at {faultpoint}:\n{zygote.said()}"
        assert_record_whole(conn, blob_root(place), imagined=imagined)
        scenario.check(conn, place, answer)
        return place
