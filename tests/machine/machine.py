"""The state machine: what people and workers may ask in any order, each transaction ending well or badly.

After every step the database must hold exactly what the model says. Two at once must end as if one had come after the
other; which one is not foretold, that there is such an order is.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar, Protocol

from registry import audit, passwords, users
from registry.db import connect
from tests import factories
from tests.conftest import as_superuser
from tests.machine import wires
from tests.machine.comparing import assert_equal, assert_promises
from tests.machine.confirming import Confirm
from tests.machine.deciding import Sign
from tests.machine.drawing import DECIDING, SENDING, WORKING, Drawing, Kind, Numbers
from tests.machine.learning import Record, StartRun, stored_blob
from tests.machine.leasing import Claim, Reap, Relay
from tests.machine.model import MAXIMUM_SHARE, Model
from tests.machine.outside import HAPPENINGS, OUTSIDE
from tests.machine.step import DONE, Step
from tests.machine.wires import CUT, Attempt, Ending, Exchange

PEOPLE = {
    "north": ("submitter",),
    "south": ("submitter",),
    "reviewer": ("reviewer",),
    "ada": ("approver",),
    "ben": ("approver",),
    "cleo": ("approver", "submitter"),
    "requester": ("operator", "approver"),
    "operator": ("operator",),
}
SENDERS = ("north", "south", "reviewer", "cleo")

# A pause after a failure never ends by itself: time passes when the machine says so.
TIME_STANDS_STILL = """
CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state = 'queued' AND NEW.run_after > clock_timestamp() THEN NEW.run_after := '9000-01-01'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER time_stands_still BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION stand_still();
"""


# Who comes second by a hair may hear it from a unique index instead of from the check before it.
IN_A_RACE = {"state-moved": "already-exists", "lease-lost": "already-exists"}

Ends = tuple[Ending, Ending]
Pair = tuple[Kind, Kind]


class Draw(Protocol):
    """Takes one value out of a source of chance."""

    def __call__(self, draw: random.Random, /) -> Any: ...


def ending(draw: random.Random) -> Ending | int:
    """How a transaction ends; a number cuts it before that statement."""
    return draw.choice(("committed", "committed", "committed", *wires.ENDINGS, draw.randint(1, 25)))


def ends(draw: random.Random) -> Ends:
    """How the transactions of two at once end."""
    return tuple(draw.choices(("committed", "killed", "answer lost"), (4, 1, 1), k=2))  # type: ignore[return-value]  # two


def numbers(draw: random.Random) -> Numbers:
    """Chance, to be made something of by who knows the record."""
    return draw.randrange(2**16), draw.randrange(2**16), draw.randrange(2**16), draw.randrange(2**16)


def perhaps_numbers(draw: random.Random) -> Numbers | None:
    """Numbers, or none."""
    return draw.choice((None, numbers(draw)))


def one_of(kinds: Sequence[str]) -> Draw:
    """Any of these."""
    return lambda draw: draw.choice(kinds)


def two_of(kinds: Sequence[Kind]) -> Draw:
    """Any two of these, or one twice."""
    return lambda draw: (draw.choice(kinds), draw.choice(kinds))


MOVES: dict[str, dict[str, Draw]] = {}
"""What may happen next: methods of the machine, with what is drawn for each of their arguments."""


def move(**arguments: Draw) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a method as something that may happen next."""

    def marked(method: Callable[..., None]) -> Callable[..., None]:
        MOVES[method.__name__] = arguments
        return method

    return marked


class RecordMachine:
    """One record, from nothing."""

    clone: ClassVar[Callable[[], AbstractContextManager[str]]]
    """Gives a migrated database."""
    sabotage: ClassVar[str] = ""
    """SQL that takes a protection away."""
    performed: ClassVar[Counter[tuple[str, str]]] = Counter()
    """How often which step came to what."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        url = self.stack.enter_context(type(self).clone())
        with connect(url) as conn:
            self.model = _beginning(conn)
        with connect(as_superuser(url)) as conn:
            conn.execute(TIME_STANDS_STILL)
            if self.sabotage:
                conn.execute(self.sabotage.encode())
        self.exchange = self.stack.enter_context(contextlib.closing(Exchange(url)))
        self.other = self.stack.enter_context(ThreadPoolExecutor(1))
        self.drawing = Drawing(self.model)

    @classmethod
    def run_all(cls, numbers: Iterable[int]) -> None:
        """Play the sequences of these numbers."""
        for number in numbers:
            cls.run(number)

    @classmethod
    def run(cls, number: int, *, moves: int = 60) -> None:
        """Play the sequence that has this number. Raises with all its moves where the record is not what it must be."""
        draw = random.Random(number)
        often = {name: draw.expovariate(1) for name in MOVES}  # what is rare in one sequence is frequent in another
        played: list[str] = []
        machine = cls()
        try:
            for _ in range(moves):
                (name,) = draw.choices(list(often), list(often.values()))
                arguments = {argument: take(draw) for argument, take in MOVES[name].items()}
                played.append(f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})")
                getattr(machine, name)(**arguments)
        except Exception as failure:
            failure.add_note("\n".join([f"sequence {number}:", *played]))
            raise
        finally:
            machine.stack.close()

    @move(kind=one_of(SENDING), numbers=numbers, ending=ending)
    def somebody_sends(self, kind: Kind, numbers: Numbers, ending: Ending | int) -> None:
        self.draw_and_perform(kind, numbers, ending)

    @move(first=numbers, second=numbers, ending=ending)
    def somebody_sends_a_case_with_its_diagnosis(self, first: Numbers, second: Numbers, ending: Ending | int) -> None:
        self.draw_and_perform("submit", first)
        self.draw_and_perform("confirm", second, ending)

    @move(first=numbers, second=numbers, kind=one_of(("retract", "adjudicate")), then=numbers, ending=ending)
    def readers_differ_and_somebody_overrules(
        self, first: Numbers, second: Numbers, kind: Kind, then: Numbers, ending: Ending | int
    ) -> None:
        """Two say something about the same case, then one row is taken back, or the case is decided."""
        self.draw_and_perform("confirm", first)
        self.draw_and_perform("confirm", (second[0], first[1], *second[2:]))
        self.draw_and_perform(kind, then, ending)

    @move(kind=one_of(WORKING), numbers=numbers, ending=ending)
    def somebody_works(self, kind: Kind, numbers: Numbers, ending: Ending | int) -> None:
        self.draw_and_perform(kind, numbers, ending)

    @move(first=numbers, kind=one_of(("beat", "record", "give up", "give up")), then=numbers, ending=ending)
    def a_worker_takes_a_job(self, first: Numbers, kind: Kind, then: Numbers, ending: Ending | int) -> None:
        self.perform(Relay())
        self.draw_and_perform("claim", first)
        self.draw_and_perform(kind, then, ending)

    @move(first=numbers, kind=one_of(("beat", "record", "give up")), then=numbers, ending=ending)
    def a_worker_comes_back_too_late(self, first: Numbers, kind: Kind, then: Numbers, ending: Ending | int) -> None:
        """Its lease ran out and somebody else holds the job, or it is over."""
        latest = (1, -1, 0, 0)
        self.draw_and_perform("start", first)
        self.draw_and_perform("claim", latest)
        OUTSIDE["a lease runs out"](self.exchange.observer, self.model, (-1, 0, 0, 0))
        self.perform(Reap())
        self.draw_and_perform("claim", latest)
        self.draw_and_perform(kind, (0, *then[1:]), ending)

    @move(kind=one_of(DECIDING), numbers=numbers, ending=ending)
    def somebody_decides(self, kind: Kind, numbers: Numbers, ending: Ending | int) -> None:
        self.draw_and_perform(kind, numbers, ending)

    @move(first=numbers, then=one_of(DECIDING), last=numbers, ending=ending)
    def a_line_learns(self, first: Numbers, then: Kind, last: Numbers, ending: Ending | int) -> None:
        """The long way from a run to a signed candidate, without accidents but for the end."""
        self._learn(first)
        if first[3] % 6 == 0:
            OUTSIDE["weights are swapped"](self.exchange.observer, self.model, last)
            self.draw_and_perform("promote", last)
        if first[3] % 6 in {1, 2}:
            self.draw_and_race(("promote", then), last, None, ("committed", "committed"))
        self.draw_and_perform(then, last, ending)

    @move(first=numbers, second=numbers, last=numbers, ending=ending)
    def a_better_model_is_taken_back(
        self, first: Numbers, second: Numbers, last: Numbers, ending: Ending | int
    ) -> None:
        """Two candidates reign one after the other, then the later one goes."""
        for asker in (first[1], second[1]):
            self._learn((first[0], asker, 0, 0))
            self.draw_and_perform("promote", (2, first[0], 0, 1))
        self.draw_and_perform("roll back", (last[0], first[0], *last[2:]), ending)

    @move(kinds=two_of(SENDING), first=numbers, second=perhaps_numbers, ends=ends)
    def two_send_at_once(self, kinds: Pair, first: Numbers, second: Numbers | None, ends: Ends) -> None:
        self.draw_and_race(kinds, first, second, ends)

    @move(kinds=two_of(WORKING), first=numbers, second=perhaps_numbers, ends=ends)
    def two_work_at_once(self, kinds: Pair, first: Numbers, second: Numbers | None, ends: Ends) -> None:
        self.draw_and_race(kinds, first, second, ends)

    @move(kinds=two_of(DECIDING), first=numbers, second=perhaps_numbers, ends=ends)
    def two_decide_at_once(self, kinds: Pair, first: Numbers, second: Numbers | None, ends: Ends) -> None:
        self.draw_and_race(kinds, first, second, ends)

    @move(what=one_of(HAPPENINGS), numbers=numbers)
    def the_world_goes_on(self, what: str, numbers: Numbers) -> None:
        """Time passes, the broker forgets, an owner of the database changes what may and what may not be changed."""
        OUTSIDE[what](self.exchange.observer, self.model, numbers)
        self.performed["outside", what] += 1
        self.check()

    def draw_and_perform(self, kind: Kind, numbers: Numbers, ending: Ending | int = "committed") -> None:
        """Perform a step of this kind if there is anything for it."""
        step = self.drawing.step(kind, numbers)
        if step is not None:
            self.perform(step, ending)

    def draw_and_race(self, kinds: Pair, first: Numbers, second: Numbers | None, ends: Ends) -> None:
        """Race two steps; without second numbers they are about the same things."""
        steps = [self.drawing.step(k, n, alone=False) for k, n in zip(kinds, (first, second or first), strict=True)]
        if steps[0] is not None and steps[1] is not None:
            self.race((steps[0], steps[1]), ends)

    def _learn(self, numbers: Numbers) -> None:
        line = self.drawing.line(numbers[0])
        if self.model.open_run(line) is None:
            asker = (None, "operator", "requester")[numbers[1] % 3]
            self.perform(StartRun(line=line, actor=None if asker is None else self.model.people[asker]))
        run = self.model.open_run(line)
        for kind in ("freeze_dataset", "train_candidate", "gate_candidate"):
            self._finish_job_of(run, kind)
        made = next((key for key, candidate in self.model.candidates.items() if candidate.run == run), None)
        if made is not None:
            for name in (("ada", "ben"), ("ada", "ben"), ("ada", "cleo"), ("cleo",))[numbers[2] % 4]:
                self.perform(Sign(candidate=made, actor=self.model.people[name], decision="approve"))

    def _finish_job_of(self, run: int | None, kind: str) -> None:
        for key, job in self.model.jobs.items():
            if (job.run, job.kind, job.state, job.pausing) == (run, kind, "queued", False):
                self.perform(Claim(job=key))
                self.perform(Record(holding=self.model.holdings[-1], verdict="pass"))
                return

    def perform(self, step: Step, ending: Ending | int = "committed") -> None:
        """Do one step; it must come to what the model says, and last only if it was committed."""
        expected = step.expect(self.model)
        cut = isinstance(ending, int)
        attempt = self.exchange.attempt(step, fuse=ending if isinstance(ending, int) else None)
        assert attempt.outcome == expected or (cut and attempt.outcome == CUT), (step, attempt.outcome, expected)
        committed = self.exchange.end(attempt, "committed" if isinstance(ending, int) else ending)
        if committed and attempt.outcome == DONE:
            step.note(self.model, attempt.result)
        self._count(attempt, ending)
        self.check()
        # A client that was not answered asks again, under the same key.
        if isinstance(step, Confirm) and attempt.outcome in {CUT, DONE} and ending != "committed":
            self.perform(step)

    def race(self, steps: tuple[Step, Step], ends: Ends) -> None:
        """Do two steps at once; there must be an order in which they come to what they came to."""
        first = self.exchange.attempt(steps[0])
        pid = self.exchange.next_pid()
        running = self.other.submit(self.exchange.attempt, steps[1])
        while not running.done() and not self.exchange.waits(pid):
            pass
        kept = [self.exchange.end(first, ends[0])]
        second = running.result(timeout=wires.PATIENCE_SECONDS)
        kept.append(self.exchange.end(second, ends[1]))
        attempts, failures = (first, second), []
        for order in ((0, 1), (1, 0)):
            model = copy.deepcopy(self.model)
            try:
                for which in order:
                    self._foretell(model, attempts, which, kept=kept[which])
                assert_equal(self.exchange.observer, model, in_any_order=len(model.trail) - len(self.model.trail))
            except AssertionError as failure:
                failures.append(failure)
                continue
            self._settle(model)
            break
        else:
            raise AssertionError(f"no order of {steps} explains {[a.outcome for a in attempts]}: {failures}")
        for attempt, ending in zip(attempts, ends, strict=True):
            self._count(attempt, f"at once, {ending}")
        self.check()

    def check(self) -> None:
        """The database is what the model says, and keeps its promises."""
        assert_equal(self.exchange.observer, self.model)
        assert_promises(self.exchange.observer)

    def _foretell(self, model: Model, attempts: tuple[Attempt, Attempt], which: int, *, kept: bool) -> None:
        mine, other = attempts[which], attempts[1 - which]
        if mine.outcome == "idempotency-in-flight":
            assert isinstance(mine.step, Confirm)
            assert isinstance(other.step, Confirm)
            assert mine.step.idempotency_key == other.step.idempotency_key
            return
        expected = mine.step.expect(model)
        assert mine.outcome in {expected, IN_A_RACE.get(expected)}, (mine.step, mine.outcome, expected)
        if kept and mine.outcome == DONE:
            mine.step.note(model, mine.result)

    def _settle(self, model: Model) -> None:
        settled = len(self.model.trail)
        self.model = self.drawing.model = model
        events = self.exchange.observer.execute(
            "SELECT actor, action, subject FROM audit_events ORDER BY audit_event_id"
        ).fetchall()
        model.trail[settled:] = [(row[0], row[1], row[2]) for row in events[settled:]]

    def _count(self, attempt: Attempt, ending: Any) -> None:
        how = "cut" if isinstance(ending, int) else str(ending)
        self.performed[type(attempt.step).__name__, attempt.outcome] += 1
        self.performed["ending", how] += 1


def steps_performed(counts: Counter[tuple[str, str]]) -> int:
    """How many steps these are."""
    return sum(count for (kind, _), count in counts.items() if kind not in {"ending", "outside"})


def _beginning(conn: Any) -> Model:
    people = {name: factories.user(conn, *roles, name=name) for name, roles in PEOPLE.items()}
    passwords.set_password(conn, user=people["reviewer"], password="four words do well")  # to be known as a person
    lines = [
        factories.line(conn, approvals={"required": 2, "maximum_submitter_share": MAXIMUM_SHARE}).line_id
        for _ in range(2)
    ]
    keys = {users.create_api_key(conn, user_id=people[name].user_id): name for name in SENDERS}
    events = audit.list_events(conn, limit=1000)
    return Model(
        people=people,
        lines=lines,
        images=[stored_blob(conn, f"image {index}") for index in range(3)],
        protocols={
            line: [row[0] for row in conn.execute("SELECT protocol_id FROM protocols WHERE line_id = %s", (line,))]
            for line in lines
        },
        keys=keys,
        trail=[(event.actor, event.action, event.subject) for event in events],
    )
