"""What a use of the sealed test is worth, who pays for it, and that a job that dies has paid."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.gates import SPEND_NOTHING
from pipelines.sealed_ledger import Plan, local_level
from registry import candidates, confirmations, datasets, db, disclosure, jobs, lines, promotions, runs, sealed_tests
from registry.candidates import Candidate
from registry.lines import Line
from registry.sealed_tests import Use
from tests import factories
from workers import sealing
from workers.lease import Lease, LeaseLost, Workshop
from workers.settings import WorkerSettings
from workers.supervise import ScienceRefused
from workers.tasks import TASKS

from .conftest import state_of
from .lines import as_holder, confirm_cases, make_line, only, promote, start_run, story, untrained, work

pytestmark = pytest.mark.usefixtures("at_hand")

STATED = {"success_weight": 0.8, "recipe_share": 0.6, "uses": 50, "smallest_level": 1e-4, "new_epoch_cases": 100}
PLAN = Plan(alpha=0.05, uses=50)


def line_with(record: db.Connection, **stated: Any) -> Line:
    """A line whose protocol accounts for the wear of its sealed test."""
    gates = {**factories.protocol_document()["gates"], "alpha": 0.05, "sealed_test": {**STATED, **stated}}
    return factories.line(record, gates=gates)


def lease_of(workshop: Workshop, record: db.Connection, candidate: Candidate) -> Lease:
    """The lease of the job that gates a candidate."""
    (job,) = [
        job
        for job in jobs.list_jobs(record, line_id=candidate.line_id)
        if job.kind == "gate_candidate" and job.payload["candidate_id"] == candidate.candidate_id
    ]
    claimed = jobs.claim(record, job_id=job.job_id, owner=workshop.owner, lease_seconds=60.0)
    assert claimed is not None
    record.commit()
    return Lease(workshop, claimed)


def spent(workshop: Workshop, record: db.Connection, candidate: Candidate) -> Use:
    """The use that is granted to a candidate against today's champion."""
    record.commit()
    _, use = sealing.grant(lease_of(workshop, record, candidate), candidate=candidate)
    return use


def judged(workshop: Workshop, record: db.Connection, line: Line, *, verdict: str, sealed: int = 40) -> Use:
    """A candidate of a version with so many sealed cases of each class is judged; its use."""
    candidate = candidate_with(record, line, sealed=sealed)
    use = spent(workshop, record, candidate)
    candidates.record_gate_report(record, **factories.gate_report_values(record, candidate, use=use, verdict=verdict))
    record.commit()
    return sealed_tests.get(record, use.sealed_test_use_id)


def candidate_with(record: db.Connection, line: Line, *, sealed: int, strategy: str | None = None) -> Candidate:
    """A candidate of a version with so many sealed cases of each class."""
    run = runs.start_run(record, line_id=line.line_id, requested_by=None, reason="a test asked", strategy=strategy)
    newest = datasets.latest(record, line.line_id)
    number = 1 if newest is None else newest.number + 1
    version = datasets.record_version(
        record,
        line_id=line.line_id,
        number=number,
        protocol_id=run.protocol_id,
        digest=f"{number:064x}",
        git_tag=f"{line.name}/v{number:04d}",
        git_commit="0" * 40,
        manifest={"counts": {"sealed_test": {"normal": sealed, "pneumonia": sealed}}},
        submitter_shares={},
        waiting={},
        last_confirmation_id=0,
    )
    runs.attach_dataset(
        record, run_id=run.run_id, dataset_version_id=version.dataset_version_id, base_candidate_id=None
    )
    made = candidates.record_candidate(
        record,
        run_id=run.run_id,
        weights_digest=factories.blob(record),
        metadata_digest=factories.blob(record),
        metadata={},
    )
    record.commit()
    return made


def test_the_levels_are_those_of_the_graph_whatever_the_answers(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record)
    history: list[bool] = []
    for verdict in ("pass", "insufficient", "pass", "fail", "fail", "pass"):
        use = judged(workshop, record, line, verdict=verdict)
        assert use.level == pytest.approx(local_level(history, alpha=PLAN.wallet("recipe"), plan=PLAN))
        assert (use.epoch, use.after_version, use.wallet, use.place) == (1, 0, "recipe", len(history) + 1)
        history.append(verdict == "pass")
    assert [use.passed for use in sealed_tests.list_uses(record, line.line_id)] == history


def test_the_last_use_gets_all_that_is_left_and_then_there_is_none(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record, uses=2)
    assert [judged(workshop, record, line, verdict="fail").level for _ in range(2)] == pytest.approx([0.024, 0.006])
    with pytest.raises(ScienceRefused, match="worn out: epoch 1"):
        spent(workshop, record, candidate_with(record, line, sealed=40))


def test_what_has_no_answer_has_failed(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record)
    candidate = candidate_with(record, line, sealed=40)
    use = spent(workshop, record, candidate)
    runs.cancel(record, run_id=candidate.run_id, actor=None)
    record.commit()
    following = spent(workshop, record, candidate_with(record, line, sealed=40))
    assert (following.wallet_before, following.place) == (use.wallet_after, 2)


def test_a_tinkerer_spends_another_wallet_than_the_declared_recipe(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record)
    factories.champion(record, line)
    declared = candidate_with(record, line, sealed=40)
    assert spent(workshop, record, declared).wallet == "recipe"
    runs.cancel(record, run_id=declared.run_id, actor=None)
    use = spent(workshop, record, candidate_with(record, line, sealed=40, strategy="warm"))
    assert (use.wallet, use.place) == ("adaptive", 1)
    assert use.level == pytest.approx(0.05 * 0.4 * 0.8)


def test_a_step_of_the_declared_ladder_is_no_tinkering(workshop: Workshop, record: db.Connection) -> None:
    line = factories.line(record, recipe={"strategy": "auto", "escalation": ["warm"]})
    factories.champion(record, line)
    use = spent(workshop, record, candidate_with(record, line, sealed=40, strategy="warm"))
    assert (use.wallet, use.place) == ("recipe", 1)


def test_a_protocol_that_sets_nothing_aside_for_tinkering_says_so(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record, recipe_share=1.0)
    factories.champion(record, line)
    with pytest.raises(ScienceRefused, match="sets nothing aside for candidates of the adaptive wallet"):
        spent(workshop, record, candidate_with(record, line, sealed=40, strategy="warm"))


def test_a_protocol_without_a_plan_is_judged_at_alpha_each_time_and_on_record(
    workshop: Workshop, record: db.Connection
) -> None:
    gates = {name: rule for name, rule in factories.protocol_document()["gates"].items() if name != "sealed_test"}
    line = factories.line(record, gates={**gates, "alpha": 0.05})
    uses = [judged(workshop, record, line, verdict="fail") for _ in range(3)]
    assert [(use.wallet, use.level, use.wallet_before, use.place) for use in uses] == [
        ("unlimited", 0.05, None, place) for place in (1, 2, 3)
    ]


def test_a_repeated_job_pays_once_and_a_stale_one_not_at_all(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record)
    candidate = candidate_with(record, line, sealed=40)
    stale = lease_of(workshop, record, candidate)
    _, use = sealing.grant(stale, candidate=candidate)
    record.execute("UPDATE jobs SET lease_expires_at = now() - interval '1 s' WHERE job_id = %s", (stale.job.job_id,))
    assert jobs.reap(record, job_id=stale.job.job_id) is not None
    assert sealing.grant(lease_of(workshop, record, candidate), candidate=candidate) == (None, use)
    with pytest.raises(LeaseLost):
        sealing.grant(stale, candidate=candidate)
    assert sealed_tests.list_uses(record, line.line_id) == [use]


def test_the_way_out_of_a_worn_test_is_a_new_epoch_of_new_cases(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record)
    for sealed in (40, 50, 60, 70):
        last = judged(workshop, record, line, verdict="fail", sealed=sealed)
    assert last.level == pytest.approx(0.03 * 0.8 * 0.2**3)
    refused = candidate_with(record, line, sealed=169)
    with pytest.raises(ScienceRefused, match=r"100 newly confirmed sealed cases of each class; there are 99 of normal"):
        spent(workshop, record, refused)
    runs.cancel(record, run_id=refused.run_id, actor=None)
    fresh = spent(workshop, record, candidate_with(record, line, sealed=170))
    newest = datasets.get(record, last.dataset_version_id)
    assert (fresh.epoch, fresh.after_version, fresh.place) == (2, newest.number, 1)
    assert fresh.level == pytest.approx(0.024)


def test_an_amended_protocol_brings_nothing_back(workshop: Workshop, record: db.Connection) -> None:
    line = line_with(record)
    first = judged(workshop, record, line, verdict="fail")
    document = lines.current_protocol(record, line.line_id).document
    bolder = {**document["gates"], "alpha": 0.4, "sealed_test": {**STATED, "success_weight": 0.5}}
    factories.new_protocol(record, line, gates=bolder)
    second = spent(workshop, record, candidate_with(record, line, sealed=40))
    assert second.wallet_before == first.wallet_after
    assert second.level == pytest.approx(0.5 * 0.006)


def test_a_worn_test_ends_the_run_in_words_and_nothing_is_scored(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    gates = {"minimum_cases_per_class": 5, "sealed_test": {**STATED, "uses": 1}}
    line, person = make_line(record, gates=gates)
    confirm_cases(record, settings, line=line, person=person, count=160)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    candidate = untrained(record, settings, line)
    as_holder(  # what is left after the only use that this protocol allows
        record,
        "INSERT INTO sealed_test_uses (line_id, epoch, after_version, wallet, place, candidate_id,"
        " champion_candidate_id, dataset_version_id, protocol_id, wallet_before, level, wallet_after)"
        " SELECT line_id, 1, 0, 'recipe', 1, candidate_id, candidate_id, dataset_version_id, protocol_id, 0.03, 0.03, 0"
        " FROM candidates",
    )
    work(workshop, record, "gate_candidate")
    assert state_of(record, "runs", run_id=run.run_id) == "refused", story(record)
    assert "the way out is a new epoch" in str(runs.get(record, run.run_id).outcome).lower()
    assert candidates.latest_report(record, candidate.candidate_id) is None
    assert state_of(record, "candidates", candidate_id=candidate.candidate_id) == "trained"


@pytest.mark.parametrize("stopping", ["minimum_cases", "submitters"])
def test_what_its_data_stop_is_reported_and_spends_nothing(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, stopping: str
) -> None:
    verdict = {"minimum_cases": "insufficient", "submitters": "fail"}[stopping]
    gates = {"minimum_cases_per_class": 400 if stopping == "minimum_cases" else 5, "submitters": {"minimum_labels": 10}}
    line, person = make_line(record, gates={**gates, "sealed_test": STATED})
    confirm_cases(record, settings, line=line, person=person, count=160)
    if stopping == "submitters":
        contradict(record, line, count=60)
    run = start_run(record, line)
    work(workshop, record, "freeze_dataset")
    candidate = untrained(record, settings, line)
    work(workshop, record, "gate_candidate")
    report = candidates.latest_report(record, candidate.candidate_id)
    assert report is not None, story(record)
    assert (report.verdict, report.sealed_test_use_id) == (verdict, None)
    rows = {row["name"]: row["verdict"] for row in report.document["results"]}
    assert rows[stopping] == verdict
    assert rows["sealed_test"] == verdict
    assert set(rows) <= {*disclosure.OPEN_GATES, "sealed_test"}
    assert "nothing of it was spent" in " ".join(report.text.split())
    assert sealed_tests.list_uses(record, line.line_id) == []
    assert state_of(record, "runs", run_id=run.run_id) == "finished"
    assert state_of(record, "candidates", candidate_id=candidate.candidate_id) == "gates_failed"
    assert not list(settings.jobs.iterdir())


def test_what_the_screen_stops_is_reported_with_its_numbers_and_spends_nothing(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings
) -> None:
    anything = {"floor": 0.0, "margin": 0.4}
    floors = {"auroc": anything, "sensitivity": anything, "specificity": anything, "calibration": {"maximum_ece": 1.0}}
    gates = {**floors, "minimum_cases_per_class": 5, "submitters": {"minimum_labels": 1000}, "sealed_test": STATED}
    gates |= {"screen": {"confidence": 1.0 - 1e-12}}
    line, person = make_line(record, gates=gates)
    for cases in (160, 20):
        confirm_cases(record, settings, line=line, person=person, count=cases, seed=cases)
        start_run(record, line)
        work(workshop, record, "freeze_dataset")
        candidate = untrained(record, settings, line, seed=cases)
        if candidate.number == 1:
            promote(record, candidate)
    work(workshop, record, "gate_candidate")
    report = candidates.latest_report(record, candidate.candidate_id)
    assert report is not None, story(record)
    rows = {row["name"]: row for row in report.document["results"]}
    assert {name for name, row in rows.items() if row["verdict"] != "pass"} == {"screen", "sealed_test"}
    assert rows["screen"]["difference"]["n"] < 60  # of the tune split, in which a fifth of the patients are
    assert "auroc" not in rows
    assert (report.verdict, report.sealed_test_use_id) == (rows["screen"]["verdict"], None)
    assert len(sealed_tests.list_uses(record, line.line_id)) == 1  # the first model's
    shown = disclosure.latest_report(record, candidate.candidate_id, reader=factories.user(record, "submitter"))
    assert shown is not None
    assert (shown.withheld, shown.report.document) == (False, report.document)


def contradict(record: db.Connection, line: Line, *, count: int) -> None:
    """A board reads what the line's submitter has read, and says the opposite."""
    board = factories.user(record, "submitter")
    read = record.execute(
        "SELECT case_id, finding FROM confirmations WHERE line_id = %s ORDER BY case_id LIMIT %s", (line.line_id, count)
    ).fetchall()
    for case_id, finding in read:
        diagnosis = confirmations.Diagnosis(
            case_id=case_id,
            finding="normal" if finding == "pneumonia" else "pneumonia",
            evidence="consensus",
            ai_exposure="blind",
            reader="board",
            confirmed_at=None,
            supersedes=None,
        )
        confirmations.confirm(record, diagnosis, actor=board)
    record.commit()


def test_the_gates_that_spend_nothing_are_those_that_anybody_may_read() -> None:
    assert SPEND_NOTHING == disclosure.OPEN_GATES


def test_the_use_is_on_record_before_a_score_is_computed_and_the_report_is_judged_at_its_level(
    workshop: Workshop, record: db.Connection, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, person = make_line(record, gates={"minimum_cases_per_class": 5, "sealed_test": STATED})
    confirm_cases(record, settings, line=line, person=person, count=160)
    start_run(record, line)
    work(workshop, record, "freeze_dataset")
    untrained(record, settings, line)
    run_science = Lease.run
    seen: list[Use] = []

    def looking(lease: Lease, module: str, **arguments: Any) -> Any:
        if module == "pipelines.gates":
            record.rollback()
            seen.extend(sealed_tests.list_uses(record, line.line_id))
        return run_science(lease, module, **arguments)

    monkeypatch.setattr(Lease, "run", looking)
    TASKS["gate_candidate"](workshop, job_id=only(record, "gate_candidate").job_id)
    (use,) = seen
    assert use.level == pytest.approx(0.024)
    record.rollback()
    report = candidates.latest_report(record, use.candidate_id)
    assert report is not None
    assert report.document["sealed_test"] == use.named()
    assert report.document["summary"]["alpha"] == use.level
    (area,) = [row for row in report.document["results"] if row["name"] == "auroc"]
    assert area["candidate"]["level"] == pytest.approx(1 - 2 * use.level)
    assert promotions.champion(record, line.line_id) is None
