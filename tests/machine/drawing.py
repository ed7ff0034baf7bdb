"""Turns drawn numbers into steps that make sense, or nearly, in the record as the model knows it.

Invariant: what is drawn never depends on the record, only what it is taken to mean, so that a sequence can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from registry.users import User
from tests.machine.confirming import Confirm, MakeKey, RevokeKey, SubmitCase
from tests.machine.deciding import Promote, RollBack, Sign
from tests.machine.learning import CancelRun, Record, StartRun
from tests.machine.leasing import Beat, Claim, GiveUp, Reap, Relay
from tests.machine.model import CLASSES, UNFINISHED_RUN, Holding, Model
from tests.machine.overruling import Adjudicate, Retract
from tests.machine.step import Step, pick

Kind = Literal[
    "submit", "confirm", "repeat", "correct", "retract", "adjudicate", "key",
    "start", "cancel", "claim", "beat", "record", "give up", "reap", "relay",
    "sign", "promote", "roll back",
]  # fmt: skip
SENDING: tuple[Kind, ...] = (
    *("submit", "confirm", "repeat", "correct", "correct", "key", "submit", "confirm", "repeat", "correct", "key"),
    *("retract", "adjudicate"),
)
WORKING: tuple[Kind, ...] = ("start", "cancel", "claim", "beat", "record", "give up", "reap", "relay")
DECIDING: tuple[Kind, ...] = ("sign", "promote", "promote", "roll back", "record")
Numbers = tuple[int, int, int, int]


class Drawing:
    """Makes steps for one record; remembers what was sent, as clients do who may send it again."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.sent: list[Confirm] = []

    def step(self, kind: Kind, numbers: Numbers, *, alone: bool = True) -> Step | None:
        """A step of this kind; None where the record has nothing yet that it could be about."""
        makers: dict[Kind, Callable[[Numbers], Step | None]] = {
            "submit": self._submit,
            "confirm": self._confirm,
            "repeat": self._repeat,
            "correct": self._correct,
            "retract": self._retract,
            "adjudicate": self._adjudicate,
            "key": self._key,
            "start": lambda n: StartRun(line=self.line(n[0]), actor=self._person(n[1])),
            "cancel": self._cancel,
            "claim": self._claim,
            "beat": lambda n: None if (held := self._holding(n)) is None else Beat(holding=held),
            "record": self._record,
            "give up": self._give_up,
            "reap": lambda _: Reap(alone=alone),
            "relay": lambda _: Relay(alone=alone),
            "sign": self._sign,
            "promote": self._promote,
            "roll back": self._roll_back,
        }
        return makers[kind](numbers)

    def line(self, number: int) -> int:
        """A line, most often the first one: a long history tells more than two short ones."""
        return self.model.lines[number % 6 == 0]

    def _person(self, number: int, *names: str) -> User:
        people = [self.model.people[name] for name in names or sorted(self.model.people)]
        return people[number % len(people)]

    def _submit(self, n: Numbers) -> Step:
        return SubmitCase(
            actor=self._person(n[0], "north", "south"),
            line=self.line(n[1]),
            image=self.model.images[n[2] % len(self.model.images)],
            patient=("patient-1", "patient-2", None)[n[3] % 3],
            external_id=(None, None, "a", "b", "c")[n[3] % 5],
        )

    def _key_of(self, number: int, name: str | None = None) -> str:
        mine = [key for key, owner in self.model.keys.items() if name in {None, owner}]
        alive = [key for key in mine if key not in self.model.revoked]
        found = pick(mine if number % 11 == 0 or not alive else alive, number)
        assert found is not None
        return found

    def _confirm(self, n: Numbers) -> Step | None:
        case = pick(list(self.model.cases), n[1])
        if case is None:
            return None
        return self._remember(
            Confirm(
                plaintext=self._key_of(n[0]),
                idempotency_key=f"key-{len(self.sent)}-{n[2] % 2}",
                case=case if n[3] % 13 else 10**9,
                finding=(*CLASSES, *CLASSES, "tumour")[n[2] % 5],
                days_ahead=(3, 0, 0, 0, -3, 0, 0)[n[3] % 7],
            )
        )

    def _repeat(self, n: Numbers) -> Step | None:
        earlier = pick(self.sent[-8:], n[0])
        if earlier is None or n[1] % 3:
            return earlier
        by_another = n[2] % 3 == 0
        return Confirm(
            plaintext=self._key_of(n[3]) if by_another else earlier.plaintext,
            idempotency_key=earlier.idempotency_key,
            case=earlier.case,
            finding=earlier.finding if by_another else CLASSES[earlier.finding == CLASSES[0]],
            supersedes=earlier.supersedes,
        )

    def _correct(self, n: Numbers) -> Step | None:
        target = pick(list(self.model.confirmations)[-6:], n[0])
        if target is None:
            return None
        said = self.model.confirmations[target]
        wrong_case = pick(list(self.model.cases), n[1]) or said.case
        who = (said.submitter, "reviewer", said.submitter, None)[n[2] % 4]
        return self._remember(
            Confirm(
                plaintext=self._key_of(n[3], who),
                idempotency_key=f"key-{len(self.sent)}-{n[1] % 2}",
                case=said.case if n[1] % 7 else wrong_case,
                finding=CLASSES[n[2] % 2],
                supersedes=target if n[3] % 13 else 10**9,
            )
        )

    def _retract(self, n: Numbers) -> Step | None:
        target = pick(list(self.model.confirmations)[-6:], n[0])
        if target is None:
            return None
        sender = self.model.confirmations[target].submitter
        actor = self._person(n[1], sender, sender, "reviewer", "south")
        return Retract(actor=actor, confirmation=target if n[2] % 13 else 10**9)

    def _adjudicate(self, n: Numbers) -> Step | None:
        waiting = list(self.model.discordant()) if n[0] % 3 else []
        case = pick(waiting or list(self.model.cases)[-6:], n[1])
        said = [key for key, row in self.model.confirmations.items() if row.case == case]
        if case is None or not self.model.confirmations:
            return None
        stale = said[-2] if len(said) > 1 and n[2] % 3 else list(self.model.confirmations)[-1]
        return Adjudicate(
            actor=self._person(n[3], *["reviewer"] * 6, "north"),
            case=case,
            finding=(*CLASSES, *CLASSES, None, "tumour")[n[2] % 6],
            last_seen=stale if n[0] % 5 == 0 or not said else said[-1],
        )

    def _remember(self, step: Confirm) -> Confirm:
        self.sent.append(step)
        return step

    def _key(self, n: Numbers) -> Step:
        plaintext = self._key_of(n[1])
        alone = sum(
            owner == self.model.keys[plaintext] and key not in self.model.revoked
            for key, owner in self.model.keys.items()
        )
        if n[0] % 2 and alone > 1:
            return RevokeKey(plaintext=plaintext)
        return MakeKey(owner=self._person(n[2], *self.model.keys.values()))

    def _cancel(self, n: Numbers) -> Step | None:
        every = list(self.model.runs)
        unfinished = [run for run in every if self.model.runs[run].state in UNFINISHED_RUN]
        run = pick(every if n[0] % 3 == 0 else unfinished, n[1])
        return None if run is None else CancelRun(run=run, actor=self._person(n[2], "operator", "requester"))

    def _claim(self, n: Numbers) -> Step | None:
        every = list(self.model.jobs)
        waiting = [key for key in every if self.model.jobs[key].state == "queued"]
        job = pick(every if n[0] % 4 == 0 else waiting, n[1])
        return None if job is None else Claim(job=job)

    def _holding(self, n: Numbers) -> Holding | None:
        every = self.model.holdings
        running = [held for held in every if self.model.jobs[held.job].state == "running"]
        late = [held for held in running if self.model.jobs[held.job].fence != held.fence]
        return pick((late or every)[-6:] if n[0] % 3 == 0 else running, n[1])

    def _record(self, n: Numbers) -> Step | None:
        holding = self._holding(n)
        verdict = ("pass", "pass", "pass", "fail", "insufficient")[n[2] % 5]
        return None if holding is None else Record(holding=holding, verdict=verdict)

    def _give_up(self, n: Numbers) -> Step | None:
        holding = self._holding(n)
        how = ("crashed", "crashed", "crashed", "poison", "warm stop", "warm stop", "cancelled")[n[2] % 7]
        return None if holding is None else GiveUp(holding=holding, how=how)

    def _candidate(self, number: int, *, line: int) -> int | None:
        every = [key for key, candidate in self.model.candidates.items() if candidate.line == line]
        passed = [key for key in every if self.model.candidates[key].state == "gates_passed"]
        return pick(every if number % 5 == 0 or not passed else passed[-1 - number % 2 :], number // 5)

    def _sign(self, n: Numbers) -> Step | None:
        candidate = self._candidate(n[0], line=self.line(n[1]))
        if candidate is None:
            return None
        actor = self._person(n[2], "ada", "ben", "cleo", "cleo", "requester", "north")
        return Sign(candidate=candidate, actor=actor, decision="approve" if n[3] % 8 else "reject")

    def _promote(self, n: Numbers) -> Step | None:
        line = self.line(n[1])
        candidate = self._candidate(n[0], line=line)
        if candidate is None:
            return None
        actor = self._person(n[2], "ada", "ben", "cleo", "requester", "north")
        return Promote(candidate=candidate, expected=self._champion(n[3], line=line), actor=actor)

    def _roll_back(self, n: Numbers) -> Step:
        line = self.line(n[1])
        actor = self._person(n[2], "ada", "operator", "operator", "north")
        return RollBack(line=line, expected=self._champion(n[3], line=line), actor=actor)

    def _champion(self, number: int, *, line: int) -> int | None:
        stale = pick([None, *self.model.candidates], number // 7)
        return stale if number % 7 == 0 else self.model.champion(line)
