"""Steps of runs: asked for, stopped, and what their jobs record."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from registry import audit, candidates, confirmations, datasets, jobs, lines, runs, sealed_tests
from registry.db import Connection
from registry.errors import RegistryError
from registry.users import User
from tests.machine.leasing import id_of
from tests.machine.model import UNFINISHED_RUN, Candidate, Holding, Job, Model, Report, Run, Version
from tests.machine.step import DONE, SYSTEM


class LeaseLost(RegistryError):
    """The job was not finished under this fence: what was recorded with it must not stay."""

    slug = "lease-lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRun:
    """Ask a line to learn, by hand or by the protocol's trigger."""

    line: int
    actor: User | None

    def expect(self, model: Model) -> str:
        return DONE if model.open_run(self.line) is None else "run-in-progress"

    def do(self, conn: Connection) -> Any:
        return runs.start_run(conn, line_id=self.line, requested_by=self.actor, reason="it is time", strategy="replay")

    def note(self, model: Model, result: Any) -> None:
        assert result.strategy == ("full" if model.champion(self.line) is None else "replay")
        actor = None if self.actor is None else self.actor.name
        model.runs[result.run_id] = Run(line=self.line, requested_by=actor, strategy=result.strategy)
        _ask(model, "freeze_dataset", run=result.run_id)
        model.trail.append((actor or SYSTEM, "run:start", f"run/{result.run_id}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRun:
    """Stop a run."""

    run: int
    actor: User

    def expect(self, model: Model) -> str:
        return DONE if model.runs[self.run].state in UNFINISHED_RUN else "state-moved"

    def do(self, conn: Connection) -> Any:
        return runs.cancel(conn, run_id=self.run, actor=self.actor)

    def note(self, model: Model, result: Any) -> None:
        del result
        model.end_run(self.run, "cancelled", actor=self.actor.name)
        for job in model.jobs.values():
            if job.run == self.run and not job.kind.startswith("mirror"):
                job.cancel_requested |= job.state in {"queued", "running"}
                job.state = "cancelled" if job.state == "queued" else job.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A worker records what its job made and finishes the job in the same transaction, under its fence."""

    holding: Holding
    verdict: str

    def expect(self, model: Model) -> str:
        job = model.jobs[self.holding.job]
        if job.kind in {"freeze_dataset", "train_candidate"}:
            assert job.run is not None
            wanted = "freezing" if job.kind == "freeze_dataset" else "training"
            if model.runs[job.run].state != wanted:
                return "state-moved"
        if job.kind == "gate_candidate":
            assert job.candidate is not None
            assert job.run is not None
            if model.runs[job.run].state not in {"gating", "finished"}:
                return "state-moved"
            if model.candidates[job.candidate].state not in {"trained", "gates_passed", "gates_failed"}:
                return "state-moved"
            asked = (job.candidate, self.holding.champion, model.protocols[job.line][-1])
            if asked in {(one.candidate, one.champion, one.protocol) for one in model.reports.values()}:
                return "state-moved"  # that question has been paid for, and answered
        return DONE if model.holds(self.holding) else "lease-lost"

    def do(self, conn: Connection) -> Any:
        job = jobs.get_job(conn, id_of(conn, self.holding.job))
        made: Any = True
        if job.kind == "freeze_dataset":
            made = self._freeze(conn, job.payload["run_id"])
        elif job.kind == "train_candidate":
            weights, metadata = (stored_blob(conn, f"{kind} {job.job_id}") for kind in ("weights", "metadata"))
            run_id = job.payload["run_id"]
            made = candidates.record_candidate(
                conn, run_id=run_id, weights_digest=weights, metadata_digest=metadata, metadata={}
            )
        elif job.kind == "gate_candidate":
            made = self._gate(conn, job.payload["candidate_id"])
        if not jobs.finish(conn, job_id=job.job_id, fence=self.holding.fence):
            raise LeaseLost("somebody else holds this job by now")
        return made

    def note(self, model: Model, result: Any) -> None:
        job = model.jobs[self.holding.job]
        job.state = "succeeded"
        if job.kind == "freeze_dataset":
            self._note_version(model, job, result)
        elif job.kind == "train_candidate":
            _note_candidate(model, job, result)
        elif job.kind == "gate_candidate":
            self._note_report(model, job, result)

    def _freeze(self, conn: Connection, run_id: int) -> Any:
        run = runs.lock(conn, run_id)
        before = datasets.latest(conn, run.line_id)
        number, since = (1, 0) if before is None else (before.number + 1, before.last_confirmation_id)
        rows = list(confirmations.standing_for_line(conn, line_id=run.line_id, up_to=self.holding.up_to))
        digest = audit.digest_of([run.line_id, number])
        version = datasets.record_version(
            conn,
            line_id=run.line_id,
            number=number,
            protocol_id=run.protocol_id,
            digest=digest,
            git_tag=f"v{number:04d}",
            git_commit=digest[:40],
            manifest={"confirmations": [row.confirmation_id for row in rows]},
            submitter_shares=shares(row.submitter for row in rows if row.confirmation_id > since),
            waiting={},
            last_confirmation_id=self.holding.up_to,
        )
        base = self.holding.champion if run.strategy != "full" else None
        runs.attach_dataset(conn, run_id=run_id, dataset_version_id=version.dataset_version_id, base_candidate_id=base)
        return version

    def _gate(self, conn: Connection, candidate_id: int) -> Any:
        candidate = candidates.get(conn, candidate_id)
        protocol = lines.current_protocol(conn, candidate.line_id)
        champion = None if self.holding.champion is None else candidates.get(conn, self.holding.champion)
        use = sealed_tests.record_use(
            conn,
            candidate_id=candidate_id,
            champion_candidate_id=self.holding.champion,
            protocol_id=protocol.protocol_id,
            epoch=1,
            after_version=0,
            wallet="unlimited",
            place=len(sealed_tests.list_uses(conn, candidate.line_id)) + 1,
            wallet_before=None,
            level=0.05,
        )
        document = {
            "candidate_digest": candidate.weights_digest,
            "champion_digest": None if champion is None else champion.weights_digest,
            "dataset_digest": datasets.get(conn, candidate.dataset_version_id).digest,
            "protocol_digest": protocol.digest,
            "verdict": self.verdict,
            "sealed_test": use.named(),
        }
        return candidates.record_gate_report(
            conn,
            candidate_id=candidate_id,
            champion_candidate_id=self.holding.champion,
            dataset_version_id=candidate.dataset_version_id,
            protocol_id=protocol.protocol_id,
            verdict=self.verdict,
            document=document,
            text=self.verdict,
            digest=audit.digest_of(document),
            sealed_test_use_id=use.sealed_test_use_id,
        )

    def _note_version(self, model: Model, job: Job, version: Any) -> None:
        before = model.latest_version(job.line)
        standing = model.standing(job.line, up_to=self.holding.up_to)
        new = [key for key in standing if before is None or key > before.last]
        model.versions[version.dataset_version_id] = Version(
            line=job.line,
            number=1 if before is None else before.number + 1,
            last=self.holding.up_to,
            standing=standing,
            shares=shares(model.confirmations[key].submitter for key in new),
        )
        assert job.run is not None
        run = model.runs[job.run]
        run.state, run.version = "training", version.dataset_version_id
        run.base = self.holding.champion if run.strategy != "full" else None
        _ask(model, "train_candidate", run=job.run)
        model.trail.append((SYSTEM, "dataset:freeze", f"dataset_version/{version.dataset_version_id}"))

    def _note_report(self, model: Model, job: Job, report: Any) -> None:
        assert job.candidate is not None
        assert job.run is not None
        candidate = model.candidates[job.candidate]
        candidate.state = "gates_passed" if self.verdict == "pass" else "gates_failed"
        model.reports[report.gate_report_id] = Report(
            candidate=job.candidate,
            champion=self.holding.champion,
            protocol=model.protocols[job.line][-1],
            verdict=self.verdict,
        )
        model.trail.append((SYSTEM, "sealed_test:use", f"candidate/{job.candidate}"))
        if model.runs[job.run].state == "gating":
            model.end_run(job.run, "finished", actor=SYSTEM)
        model.trail.append((SYSTEM, f"candidate:gate_{self.verdict}", f"candidate/{job.candidate}"))


def shares(submitters: Iterable[str]) -> dict[str, float]:
    """Each submitter's share."""
    counts = Counter(submitters)
    return {name: count / counts.total() for name, count in counts.items()}


def stored_blob(conn: Connection, name: str) -> str:
    """The digest of a stored file that nobody reads."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    conn.execute(
        "INSERT INTO blobs (digest, size_bytes, media_type) VALUES (%s, 1, 'application/x-npy') ON CONFLICT DO NOTHING",
        (digest,),
    )
    return digest


def _note_candidate(model: Model, job: Job, made: Any) -> None:
    assert job.run is not None
    run = model.runs[job.run]
    assert run.version is not None
    number = 1 + sum(candidate.line == job.line for candidate in model.candidates.values())
    model.candidates[made.candidate_id] = Candidate(
        line=job.line, number=number, run=job.run, version=run.version, weights=made.weights_digest
    )
    run.state = "gating"
    for kind in ("gate_candidate", "mirror_candidate"):
        _ask(model, kind, run=job.run, candidate=made.candidate_id)
    model.trail.append((SYSTEM, "candidate:train", f"candidate/{made.candidate_id}"))


def _ask(model: Model, kind: str, *, run: int, candidate: int | None = None) -> None:
    key = f"{kind}:run:{run}" if candidate is None else f"{kind}:candidate:{candidate}"
    model.jobs[key] = Job(kind=kind, line=model.runs[run].line, run=run, candidate=candidate)
