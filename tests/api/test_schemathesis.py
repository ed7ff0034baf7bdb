"""Requests made up from the OpenAPI document, right ones and wrong ones, by each role: no answer surprises a client.

No 5xx, no undocumented status or media type, no body beside its schema. A wider search: `SCHEMATHESIS_EXAMPLES=50`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.service import ROLES, Service, free_port, start_api, wait_for
from tests.api.test_openapi import DOCUMENT

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "2"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
for media_type in ("application/x-ndjson", "application/dicom", "application/x-npy"):
    schemathesis.serializer.alias(media_type, "application/octet-stream")
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A process of its own beside the service's: made-up passwords use up what a name and an address may try."""
    log, port = tmp_path_factory.mktemp("schemathesis") / "api.log", free_port()
    with log.open("wb") as output:
        process = start_api(service.environment, port=port, log=output)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/live", process=process, log=log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=120)


@pytest.mark.parametrize("role", [*ROLES, None])
@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_answer_surprises_a_client(case: schemathesis.Case, service: Service, url: str, role: str | None) -> None:
    headers = {"Authorization": f"Bearer {service.keys[role]}"} if role else {}
    case.call_and_validate(base_url=url, headers=headers, checks=CHECKS)
