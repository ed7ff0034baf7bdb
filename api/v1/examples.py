"""One story, told in the examples of the API: case 4711 of hospital North, and the model that came of it.

Every example is checked against its model by the tests.
"""

from __future__ import annotations

from typing import Any

Example = dict[str, Any]

LINE_NAME = "cxr-pneumonia"
_IMAGE, _PATIENT = "3f79bb7b435b05321651daefd374cdc681dc06faa65e374e38337b88ca046dea", "5e884898da280471" * 4
_WEIGHTS, _METADATA = "9b74c9897bac770ffc029102a200c5de" * 2, "81dc9bdb52d04dc20036dbd8313ed055" * 2
_DATASET, _PROTOCOL = "d8578edf8458ce06fbc5bb76a58c5ca4" * 2, "25d55ad283aa400af464c76d713c07ad" * 2
_REPORT, _BOUND = "5f4dcc3b5aa765d61d8327deb882cf99" * 2, "827ccb0eea8a706c4c34a16891f84e7b" * 2

NEW_CONFIRMATION: Example = {
    "finding": "pneumonia",
    "evidence": "consensus",
    "ai_exposure": "blind",
    "reader": "radiologist-17",
    "confirmed_at": "2026-03-02T09:30:00+01:00",
}
BULK_ROW: Example = {"external_id": "north-2026-000123", **NEW_CONFIRMATION}
CONFIRMATION: Example = {
    **NEW_CONFIRMATION,
    "confirmation_id": 9001,
    "case_id": 4711,
    "kind": "confirmation",
    "supersedes": None,
    "superseded_by": None,
    "reason": None,
    "created_at": "2026-03-02T08:31:07.214Z",
}
NEW_ADJUDICATION: Example = {
    "finding": "pneumonia",
    "ai_exposure": "blind",
    "reason": "The lateral view shows the consolidation that the frontal view hides.",
    "last_seen": 9002,
}
NEW_RETRACTION: Example = {"reason": "Read from the images of another patient."}
DISCORDANCE: Example = {
    "case_id": 4711,
    "since": 9002,
    "since_at": "2026-03-02T08:52:40.118Z",
    "last_confirmation": 9002,
    "standing": [
        CONFIRMATION,
        {
            **CONFIRMATION,
            "confirmation_id": 9002,
            "finding": "normal",
            "reader": "radiologist-4",
            "created_at": "2026-03-02T08:52:40.118Z",
        },
    ],
}
CASE: Example = {
    "case_id": 4711,
    "line": LINE_NAME,
    "external_id": "north-2026-000123",
    "image_digest": _IMAGE,
    "patient": _PATIENT,
    "site": "north",
    "scanner": "dx-2",
    "sex": "female",
    "age_band": "1-5",
    "attributes": {"Modality": "DX", "Rows": 2048, "Columns": 2048, "ViewPosition": "PA"},
    "created_at": "2026-03-02T08:12:44.051Z",
    "erasure_id": None,
}
CASE_WITH_CONFIRMATIONS: Example = {**CASE, "confirmations": [CONFIRMATION]}
WORKLIST: Example = {
    "line": LINE_NAME,
    "ranked_at": "2026-03-02T08:15:00.000Z",
    "number": 2,
    "shares": {"blind": 0.05, "random": 0.19, "diverse": 0.475, "disagreement": 0.285},
    "ranked": 340,
    "cases": [
        {
            "case_id": 4711,
            "place": 1,
            "arm": "diverse",
            "reason": "uncertain: .52 for pneumonia",
            "site": "north",
            "scanner": "dx-2",
            "external_id": "north-2026-000123",
            "created_at": "2026-03-02T08:12:44.051Z",
        }
    ],
}
BULK_RESULT: Example = {
    "accepted": 1,
    "rejected": 1,
    "rows": [
        {"row": 1, "status": "accepted", "confirmation_id": 9001},
        {
            "row": 2,
            "status": "rejected",
            "problem": {
                "type": "/problems/unknown-finding",
                "title": "Unknown finding",
                "status": 422,
                "detail": "'pneumonitis' is not a finding of this line; it knows normal, pneumonia",
            },
        },
    ],
}
RECORDED_ROW: Example = {"idempotency_key": "ris-2026-03-02-000123", "confirmation_id": 9001}
OPERATING_POINT: Example = {
    "rule": "youden",
    "target": None,
    "threshold": 0.41,
    "sensitivity": {"value": 0.93, "low": 0.88, "high": 0.96, "n": 158, "level": 0.95},
    "specificity": {"value": 0.9, "low": 0.82, "high": 0.95, "n": 81, "level": 0.95},
    "chosen_on": "tune",
}
PREDICTION: Example = {
    "prediction_id": 31,
    "line": LINE_NAME,
    "case_id": 4711,
    "candidate_id": 7,
    "number": 2,
    "weights_digest": _WEIGHTS,
    "scores": {"normal": 0.08, "pneumonia": 0.92},
    "decision": "pneumonia",
    "threshold": 0.41,
    "operating_point": OPERATING_POINT,
    "second_look": False,
    "latency_seconds": 0.012,
}
DATASET_VERSION: Example = {
    "dataset_version_id": 3,
    "number": 2,
    "protocol_id": 1,
    "digest": _DATASET,
    "git_tag": "cxr-pneumonia/v0002",
    "git_commit": "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15",
    "manifest": {"number": 2, "counts": {"train": {"normal": 120, "pneumonia": 330}}},
    "submitter_shares": {"pacs-north": 0.5, "pacs-south": 0.5},
    "waiting": {"evidence too weak": 4},
    "last_confirmation_id": 9001,
    "erasures": [],
    "created_at": "2026-03-02T08:40:10.300Z",
}
NEW_RUN: Example = {"reason": "200 new confirmations from the north site"}
RUN: Example = {
    **NEW_RUN,
    "run_id": 5,
    "protocol_id": 1,
    "strategy": "replay",
    "seed": 0,
    "requested_by": 4,
    "dataset_version_id": 3,
    "base_candidate_id": 3,
    "state": "training",
    "outcome": None,
    "progress": {"epoch": 3, "epochs": 8},
    "created_at": "2026-03-02T08:40:02.118Z",
    "history": [{"epoch": 1, "train_loss": 0.31, "tune_loss": 0.29}],
    "finished_at": None,
}
CANDIDATE: Example = {
    "candidate_id": 7,
    "number": 2,
    "run_id": 5,
    "dataset_version_id": 3,
    "dataset_version": 2,
    "protocol_id": 1,
    "weights_digest": _WEIGHTS,
    "metadata_digest": _METADATA,
    "metadata": {"architecture": {"network": "small_cnn"}, "operating_point": OPERATING_POINT},
    "state": "gates_passed",
    "mlflow_model_version": "2",
    "erasures": [],
    "created_at": "2026-03-02T08:41:33.902Z",
}
GATE_REPORT: Example = {
    "gate_report_id": 6,
    "candidate_id": 7,
    "champion_candidate_id": 3,
    "dataset_version_id": 3,
    "protocol_id": 1,
    "verdict": "pass",
    "withheld": False,
    "sealed_test_use_id": 2,
    "digest": _REPORT,
    "document": {
        "verdict": "pass",
        "results": [
            {
                "name": "auroc",
                "requirement": "at least 0.80, and not worse than the champion by more than 0.03",
                "verdict": "pass",
                "reason": "0.968, 0.021 better than the champion",
                "candidate": {"value": 0.968, "low": 0.951, "high": 0.985, "n": 315, "level": 0.95},
            }
        ],
    },
    "text": "PASS  cxr-pneumonia candidate 2 against champion 1, on 315 sealed-test cases …",
    "created_at": "2026-03-02T08:42:01.007Z",
}
SEALED_TEST_USE: Example = {
    "sealed_test_use_id": 2,
    "epoch": 1,
    "after_version": 0,
    "wallet": "recipe",
    "place": 2,
    "candidate_id": 7,
    "champion_candidate_id": 3,
    "protocol_id": 1,
    "wallet_before": 0.024,
    "level": 0.0192,
    "wallet_after": 0.0048,
    "passed": True,
    "created_at": "2026-03-02T08:41:35.114Z",
}
_APPROVED: Example = {"decision": "approve", "reason": "Gates passed; I reviewed the flips of the north site."}
DECISION: Example = {**_APPROVED, "password": "correct horse battery staple"}
APPROVAL: Example = {
    **_APPROVED,
    "approval_id": 11,
    "candidate_id": 7,
    "gate_report_id": 6,
    "printed_name": "Dr Anna Approver",
    "meaning": "I have read the gate report and approve that this candidate becomes the champion.",
    "bound_digest": _BOUND,
    "created_at": "2026-03-02T10:05:00.000Z",
}
NEW_COMMENT: Example = {"text": "Eleven of the lost cases come from the new scanner.", "asks": "anna"}
COMMENT: Example = {
    **NEW_COMMENT,
    "comment_id": 4,
    "candidate_id": 7,
    "printed_name": "Rita Reviewer",
    "created_at": "2026-03-02T09:12:00.000Z",
}
SIGNER: Example = {"name": "anna", "printed_name": "Dr Anna Approver"}
EXPORT: Example = {"reason": "Asked for by the notified body, reference 26-117."}
NEW_REJECTION: Example = {"reason": "That is a skin fold, and no pneumothorax."}
REJECTION: Example = {
    **NEW_REJECTION,
    "rejection_id": 2,
    "prediction_id": 501,
    "case_id": 4711,
    "printed_name": "Dr Clara Clinician",
    "decision": "pneumonia",
    "created_at": "2026-03-02T09:02:00.000Z",
}
PROMOTE: Example = {"expected_champion": 3, "reason": "Two signatures; better at the north site, equal elsewhere."}
ROLL_BACK: Example = {"expected_champion": 7, "reason": "Alarm: sensitivity at the north site fell since Monday."}
PROMOTION: Example = {
    "promotion_id": 2,
    "candidate_id": 7,
    "kind": "promotion",
    "replaced_candidate_id": 3,
    "gate_report_id": 6,
    "bound_digest": _BOUND,
    "reason": PROMOTE["reason"],
    "promoted_by": 6,
    "promoted_at": "2026-03-02T10:20:00.000Z",
    "ended_at": None,
}
JOB: Example = {
    "job_id": 12,
    "kind": "train_candidate",
    "state": "running",
    "attempts": 1,
    "maximum_attempts": 3,
    "lease_owner": "worker-1",
    "lease_expires_at": "2026-03-02T08:41:15.000Z",
    "progress": {"epoch": 3, "epochs": 8},
    "cancel_requested": False,
    "error": None,
    "created_at": "2026-03-02T08:40:10.301Z",
    "started_at": "2026-03-02T08:40:11.020Z",
    "finished_at": None,
}
AUDIT_EVENT: Example = {
    "audit_event_id": 812,
    "at": "2026-03-02T10:05:00.000Z",
    "actor": "anna",
    "action": "candidate:approve",
    "subject": "candidate/7",
    "details": {"approval": 11, "bound_digest": _BOUND},
    "previous_digest": _DATASET,
    "digest": _REPORT,
}
PROTOCOL_YAML = """\
line: cxr-pneumonia
title: Pneumonia on a frontal chest radiograph
intended_use: Second reader for frontal chest radiographs of children aged one to five.
classes: [normal, pneumonia]
input: {rows: 28, columns: 28}
"""
WATCH: Example = {
    "watch_id": 31,
    "candidate_id": 7,
    "protocol_id": 1,
    "sample": 140,
    "n": 131,
    "errors": 33,
    "risk": 0.252,
    "lower_bound": 0.155,
    "risk_limit": 0.15,
    "raised_at": 131,
    "verified_share": 0.936,
    "weighted_risk": {"value": 0.247, "low": 0.171, "high": 0.323, "n": 131, "level": 0.95},
    "mature_after_days": 12.5,
    "verdict": "alarm",
    "reason": "errs in more than 15.0% of cases, shown after 131 labels",
    "cases_to_see": [4711, 4698],
    "what_to_do": "look at the newest cases of which it was wrong (4711, 4698); unless they are explained, "
    '`overread roll-back --line cxr-pneumonia --reason "…"`',
    "shadow": {
        "candidate_id": 9,
        "verdict": "insufficient",
        "reason": "evidence 4.2 of 20 after 96 cases",
        "n": 96,
        "passed_at": None,
        "difference": 0.031,
    },
    "created_at": "2026-03-02T03:00:00.000Z",
}
PROTOCOL: Example = {
    "protocol_id": 1,
    "version": 1,
    "digest": _PROTOCOL,
    "document": {"line": LINE_NAME, "classes": ["normal", "pneumonia"]},
    "created_at": "2026-02-01T08:00:00.000Z",
}
LINE: Example = {
    "line_id": 1,
    "name": LINE_NAME,
    "created_at": "2026-02-01T08:00:00.000Z",
    "protocol": PROTOCOL,
    "champion": {**CANDIDATE, "state": "champion"},
    "counts": {"cases": 900, "confirmed_cases": 890, "confirmations": 912, "dataset_versions": 2},
    "next_trigger": {"new_confirmations": 120, "needed": 200, "every_hours": 168},
    "monitoring": WATCH,
}
NEW_AMENDMENT: Example = {
    "protocol": PROTOCOL_YAML,
    "reason": "The line has grown: its sealed test can show a smaller margin.",
}
AMENDMENT_SIGNATURE: Example = {
    "amendment_approval_id": 3,
    "amendment_id": 2,
    "printed_name": "Dr Anna Approver",
    "decision": "approve",
    "meaning": "I have read what this amendment changes and approve that it takes the place of the protocol in force.",
    "reason": "A smaller margin asks for more evidence, and 900 sealed cases can show it.",
    "bound_digest": _BOUND,
    "created_at": "2026-03-02T11:05:00.000Z",
}
AMENDMENT: Example = {
    "amendment_id": 2,
    "state": "proposed",
    "protocol_id": 1,
    "changes": ["gates.auroc.margin: 0.03 -> 0.02"],
    "document": {"line": LINE_NAME, "classes": ["normal", "pneumonia"]},
    "digest": _REPORT,
    "reason": NEW_AMENDMENT["reason"],
    "proposer": "olga",
    "created_at": "2026-03-02T10:45:00.000Z",
    "required": 2,
    "approvals": [AMENDMENT_SIGNATURE],
}
NEW_SESSION: Example = {"name": "anna", "password": DECISION["password"]}
SESSION: Example = {
    "name": "anna",
    "printed_name": "Dr Anna Approver",
    "roles": ["approver"],
    "signed_in_seconds_ago": 0.0,
    "idle_limit_seconds": 900,
    "absolute_limit_seconds": 28800,
}
READ: Example = {
    "read_id": 4711,
    "at": "2026-03-02T10:01:00.000Z",
    "reader": "anna",
    "action": "heat_map:draw",
    "line_id": 1,
    "case_id": 17,
    "purpose": "tumour board of 2 March",
    "details": {"finding": "pneumonia"},
}
