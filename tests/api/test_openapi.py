"""The OpenAPI document: held against a golden file, and complete enough to be read by somebody who runs a PACS.

After a change that is meant, write the golden file anew and read its difference:

    python -m tests.api.test_openapi
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from api.app import TAGS, create_app
from api.auth import ROLES_KEY
from api.errors import PROBLEMS
from api.settings import ApiSettings
from api.v1 import (
    adjudications,
    amendments,
    audit,
    bulk,
    candidates,
    cases,
    confirmations,
    datasets,
    jobs,
    lines,
    predictions,
    promotions,
    runs,
    session,
    worklist,
)
from tests.api.service import Service

GOLDEN = Path(__file__).with_name("openapi.json")
MODULES = (
    *(adjudications, audit, bulk, candidates, cases, confirmations, datasets, jobs, lines, predictions, promotions),
    *(amendments, runs, session, worklist),
)


def document() -> dict[str, Any]:
    """The OpenAPI document, without the version of the package."""
    settings = ApiSettings(
        database_url="", blob_root=Path(), inference_url="http://127.0.0.1:9", inference_token="none", patient_key=b""
    )
    made = json.loads(json.dumps(create_app(settings).openapi()))
    made["info"]["version"] = "any"
    return dict(made)


DOCUMENT = document()
OPERATIONS = [
    pytest.param(operation, id=f"{method.upper()} {path}")
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_the_interface_is_as_the_golden_file_says() -> None:
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == DOCUMENT, "meant? then: python -m tests.api.test_openapi"


def test_the_service_serves_the_document_and_its_pages(service: Service) -> None:
    with service.client(None) as client:
        served = client.get("/openapi.json").json()
        assert served["paths"].keys() == DOCUMENT["paths"].keys()
        root, reference = client.get("/"), client.get("/docs")
    assert "A second reader for diagnostic images" in root.text
    for path in DOCUMENT["paths"]:
        assert path in reference.text
    assert "<script" not in reference.text
    assert "http" not in reference.headers["content-security-policy"]
    assert reference.text.count("//") == 0, "a page must not need anything from elsewhere"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_explains_itself(operation: dict[str, Any]) -> None:
    assert 5 <= len(operation["summary"]) <= 60
    assert len(operation["description"]) > 40
    assert operation["description"].split("\n")[0].endswith((".", "?"))
    assert set(operation["tags"]) <= TAGS.keys()
    assert len(operation["tags"]) == 1


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if ROLES_KEY in one.values[0]])
def test_an_operation_documents_how_it_refuses(operation: dict[str, Any]) -> None:
    shown = {
        slug: (int(status), DOCUMENT["components"]["examples"][example["$ref"].rpartition("/")[2]]["value"])
        for status, answer in operation["responses"].items()
        for slug, example in answer.get("content", {}).get("application/problem+json", {}).get("examples", {}).items()
    }
    assert {"unauthenticated", "forbidden", "invalid-request", "record-unavailable"} <= shown.keys()
    for slug, (status, example) in shown.items():
        assert PROBLEMS[slug].status == status == example["status"]
        assert example["type"] == f"/problems/{slug}"
    assert "HTTPValidationError" not in json.dumps(operation)
    assert "Needs the role" in operation["description"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_shows_what_it_takes_and_gives(operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", []):
        if parameter["in"] != "path":
            assert parameter.get("description"), parameter["name"]
    contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
    contents += [answer.get("content", {}) for status, answer in operation["responses"].items() if status < "300"]
    for content in contents:
        if "application/json" in content:
            schema = content["application/json"]["schema"]
            name = schema.get("$ref", schema.get("items", {}).get("$ref", "")).rpartition("/")[2]
            model = DOCUMENT["components"]["schemas"][name]
            assert model.get("examples") or set(operation["tags"]) == {"Health"}, name


@pytest.mark.parametrize(
    "model",
    sorted(
        {
            thing
            for module in MODULES
            for thing in vars(module).values()
            if isinstance(thing, type) and issubclass(thing, BaseModel) and "json_schema_extra" in thing.model_config
        },
        key=lambda model: model.__name__,
    ),
    ids=lambda model: model.__name__,
)
def test_an_example_is_one(model: type[BaseModel]) -> None:
    extra = model.model_config["json_schema_extra"]
    assert isinstance(extra, dict)
    (example,) = TypeAdapter(list[dict[str, Any]]).validate_python(extra["examples"])
    model.model_validate(example)
    missing = {name for name, field in model.model_fields.items() if field.is_required()} - example.keys()
    assert not missing
    assert example.keys() <= model.model_fields.keys()


def test_every_operation_has_a_name_of_its_own_for_generated_clients() -> None:
    names = [operation.values[0]["operationId"] for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_problem_types_are_stable_words_with_a_meaning() -> None:
    for slug, problem in PROBLEMS.items():
        assert problem.slug == slug
        assert slug == slug.lower().replace("_", "-")
        assert 400 <= problem.status < 600
        assert problem.title
        assert problem.meaning.endswith("."), slug
        assert f"| `{slug}` | {problem.status} |" in DOCUMENT["info"]["description"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
