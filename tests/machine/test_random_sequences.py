"""Any sequence of steps and crashes leaves the record that the docs promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import ClassVar

import pytest
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from tests.machine.machine import RecordMachine, profile, steps_performed

STEPS = 2000
MUST_HAPPEN = {
    ("Confirm", "done"), ("Confirm", "already-superseded"), ("Confirm", "idempotency-key-reused"),
    ("Retract", "done"), ("Retract", "already-superseded"), ("Adjudicate", "done"), ("Adjudicate", "record-moved"),
    ("Record", "done"), ("Record", "lease-lost"), ("Beat", "nothing"), ("GiveUp", "done"), ("CancelRun", "done"),
    ("Promote", "done"), ("Promote", "champion-moved"), ("Promote", "approval-missing"), ("RollBack", "done"),
    ("Sign", "not-distinct-approver"), ("Sign", "already-signed"), ("Promote", "cut"),
    ("ending", "killed"), ("ending", "answer lost"), ("ending", "hung up"), ("ending", "cut"),
    ("ending", "at once, committed"), ("ending", "at once, killed"), ("ending", "at once, answer lost"),
}  # fmt: skip
"""A machine that never came this far would prove little."""


@pytest.mark.timeout(1800)  # about a minute on two idle cores
@pytest.mark.parametrize(
    ("examples", "seeds"),
    [
        pytest.param(3, range(40), id="seeded-ones"),
        pytest.param(100, [None], id="new-ones", marks=(pytest.mark.soak, pytest.mark.timeout(7200))),
    ],
)
def test_the_record_is_what_a_plain_model_says_after_any_sequence(
    examples: int, seeds: Iterable[int | None], clone: Callable[[], AbstractContextManager[str]]
) -> None:
    class Machine(RecordMachine):
        performed: ClassVar[Counter[tuple[str, str]]] = Counter()

    Machine.clone = staticmethod(clone)
    # What a seed gives depends on the machine's speed and on Hypothesis: what is wanted is reached, not hoped for.
    for number in seeds:
        seeded = Machine if number is None else seed(number)(Machine)
        run_state_machine_as_test(seeded, settings=profile(examples=examples))
        if steps_performed(Machine.performed) >= STEPS and set(Machine.performed) >= MUST_HAPPEN:
            break
    for (step, outcome), count in sorted(Machine.performed.items()):
        print(f"{step}: {outcome} {count}")
    print(f"{steps_performed(Machine.performed)} steps")
    assert steps_performed(Machine.performed) >= STEPS
    assert set(Machine.performed) >= MUST_HAPPEN
