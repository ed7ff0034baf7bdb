"""The champion's opinion over HTTP: from a real network in a real inference process, logged with its digest."""

from __future__ import annotations

import hashlib

import httpx
import pytest
import torch

from pipelines import network
from pipelines.protocol import from_document
from registry import blobs, candidates, lines, predictions, reads
from tests import factories
from tests.api.pictures import dicom, npy, png
from tests.api.service import Service
from tests.waiting import until


def crown(service: Service, line: str) -> str:
    """Promote a network with fresh weights to champion of a line; return the digest of its weights."""
    with service.connect() as connection:
        row = lines.get_line(connection, line)
        protocol = from_document(lines.current_protocol(connection, row.line_id).document)
        architecture = network.architecture_for(protocol)
        torch.manual_seed(0)
        weights = network.save_weights(network.build(architecture))
        metadata = {
            "architecture": architecture.document(),
            "classes": list(protocol.classes),
            "positive": protocol.positive,
            "temperature": 1.0,
            "log_prior": [0.0] * len(protocol.classes),
            "operating_point": {"rule": "youden", "threshold": 0.25},
            "operating_points_by_site": {"north": {"rule": "youden", "threshold": 0.75}},
            "decides_by_site": True,
            "second_look": {"low": 0.0, "high": 1.0},
        }
        if protocol.several:
            points = {name: {"rule": "youden", "threshold": 0.0} for name in protocol.classes}
            metadata |= {"several": True, "operating_point": None, "operating_points": points, "second_look": None}
        made = candidates.record_candidate(
            connection,
            run_id=factories.training_run(connection, row).run_id,
            weights_digest=blobs.put(connection, service.blob_root, weights, media_type="application/octet-stream"),
            metadata_digest=factories.blob(connection),
            metadata=metadata,
        )
        factories.gate_report(connection, made)
        factories.signatures(
            connection, made, [factories.user(connection, "approver"), factories.user(connection, "approver")]
        )
        factories.promotion(connection, made)
    return made.weights_digest


@pytest.fixture(scope="module")
def served(service: Service) -> tuple[str, str]:
    """A line with a champion that serves, and the digest of its weights."""
    line = service.new_line()
    digest = crown(service, line)
    with service.client("submitter") as client:
        until(lambda: predict(client, line, png()).status_code != 409, what="the first prediction")
        answer = predict(client, line, png())
    assert answer.status_code == 200, answer.text
    return line, digest


def predict(client: httpx.Client, line: str, image: bytes, **parameters: object) -> httpx.Response:
    return client.post("/v1/predictions", params={"line": line, **parameters}, files={"image": ("x.png", image)})


def test_an_image_is_scored_by_the_champion_and_not_kept(
    service: Service, submitter: httpx.Client, served: tuple[str, str]
) -> None:
    line, digest = served
    answer = predict(submitter, line, png(5000), shown=False)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["weights_digest"] == digest
    assert (body["line"], body["case_id"], body["number"], body["threshold"]) == (line, None, 1, 0.25)
    assert set(body["scores"]) == {"normal", "pneumonia"}
    assert sum(body["scores"].values()) == pytest.approx(1.0, abs=1e-5)
    assert body["decision"] == ("pneumonia" if body["scores"]["pneumonia"] >= 0.25 else "normal")
    assert body["operating_point"]["rule"] == "youden"
    assert body["second_look"] is True
    assert body["latency_seconds"] > 0
    assert not blobs.path_of(service.blob_root, hashlib.sha256(npy(5000)).hexdigest()).exists()
    with service.connect() as connection:
        found = connection.execute(
            "SELECT shown, weights_digest, image_digest FROM predictions WHERE prediction_id = %s",
            (body["prediction_id"],),
        ).fetchone()
    assert found == (False, digest, hashlib.sha256(npy(5000)).hexdigest())


def test_form_and_bare_body_png_npy_and_dicom_score_alike(submitter: httpx.Client, served: tuple[str, str]) -> None:
    line, _ = served
    answers = [predict(submitter, line, png(6))]
    for image, media_type in ((png(6), "image/png"), (npy(6), "application/x-npy"), (dicom(6), "application/dicom")):
        headers = {"Content-Type": media_type}
        answers.append(submitter.post("/v1/predictions", params={"line": line}, content=image, headers=headers))
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    scores = [answer.json()["scores"]["pneumonia"] for answer in answers]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-6)


def test_a_case_is_scored_from_its_stored_image(
    service: Service, submitter: httpx.Client, served: tuple[str, str]
) -> None:
    line, digest = served
    case = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png(7)}).json()
    answer = submitter.post(f"/v1/cases/{case['case_id']}/predictions")
    assert answer.status_code == 200, answer.text
    assert answer.json()["scores"] == pytest.approx(predict(submitter, line, png(7)).json()["scores"], abs=1e-6)
    with service.connect() as connection:
        (logged,) = predictions.list_for_case(connection, case["case_id"])
        (look,) = reads.list_reads(connection, case_id=case["case_id"])
    assert (look.reader, look.action, look.details) == (
        "submitter",
        "prediction:make",
        {"prediction": logged.prediction_id},
    )
    assert (logged.weights_digest, logged.image_digest, logged.shown) == (digest, case["image_digest"], True)
    assert logged.threshold == answer.json()["operating_point"]["threshold"] == 0.75  # of its site
    assert predict(submitter, line, png(7)).json()["threshold"] == 0.25  # nobody said where this one is from


def test_a_heat_map_is_a_png_and_its_finding_must_be_known(
    service: Service, submitter: httpx.Client, served: tuple[str, str]
) -> None:
    line, _ = served
    case = submitter.post("/v1/cases", data={"line": line, "site": "north"}, files={"image": png(8)}).json()["case_id"]
    picture = submitter.get(f"/v1/cases/{case}/heat-map", params={"finding": "pneumonia"})
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
    assert picture.content.startswith(b"\x89PNG")
    same = submitter.post(
        "/v1/predictions/heat-map",
        params={"line": line, "finding": "pneumonia"},
        content=png(8),
        headers={"Content-Type": "image/png"},
    )
    assert (same.status_code, same.content) == (200, picture.content)
    unknown = submitter.get(f"/v1/cases/{case}/heat-map", params={"finding": "fracture"})
    assert (unknown.status_code, unknown.json()["type"]) == (422, "/problems/unknown-finding")
    looks = [look["case_id"] for look in service.looks() if look["action"] == "heat_map:draw"]
    assert looks[-2:] == [case, None]


def test_a_line_without_a_champion_says_so(submitter: httpx.Client, line: str) -> None:
    answer = predict(submitter, line, png())
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/no-champion")


def test_what_cannot_be_scored_is_refused_by_name(submitter: httpx.Client, served: tuple[str, str]) -> None:
    line, _ = served
    assert predict(submitter, "no-such-line", png()).json()["type"] == "/problems/not-found"
    assert predict(submitter, line, b"garbage").json()["type"] == "/problems/image-refused"
    empty = submitter.post(
        "/v1/predictions", params={"line": line}, data={"comment": "no image"}, files={"scan": png()}
    )
    assert (empty.status_code, empty.json()["errors"][0]["field"]) == (422, "image")
    assert submitter.post("/v1/cases/999999/predictions").json()["type"] == "/problems/not-found"
