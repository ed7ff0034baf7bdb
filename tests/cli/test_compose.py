"""docker-compose.yml and the table of processes describe one service; no secret of it has a default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.cli.processes import PROCESSES, Process, rendered
from api.cli.stack import SECRET_SETTINGS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = {"postgres", "broker"}  # services that run other people's images
OURS = [process for process in PROCESSES if process.name not in OWN]


def test_compose_runs_the_processes_of_the_table_and_a_broker() -> None:
    assert set(SERVICES) == {process.name for process in PROCESSES} | {"broker"}


@pytest.mark.parametrize("process", OURS, ids=lambda process: process.name)
def test_a_service_runs_the_same_command_as_the_table(process: Process) -> None:
    service = SERVICES[process.name]
    # Filled in but not read: the store's URL is looked at below.
    values = {"python": "python", "OVERREAD_MLFLOW_DATABASE_URL": "", **service["environment"]}
    assert tuple(service["command"]) == rendered(process, values=values).command


@pytest.mark.parametrize("process", OURS, ids=lambda process: process.name)
def test_a_service_waits_for_what_the_table_says(process: Process) -> None:
    waits = {name: condition["condition"] for name, condition in SERVICES[process.name].get("depends_on", {}).items()}
    for need in process.needs:
        assert waits[need] == ("service_completed_successfully" if need == "migrate" else "service_healthy")


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_a_service_restarts_as_the_table_says(process: Process) -> None:
    assert SERVICES[process.name]["restart"] == {"always": "unless-stopped", "never": "no"}[process.restart]


@pytest.mark.parametrize("process", OURS, ids=lambda process: process.name)
def test_a_service_is_given_the_secrets_that_the_table_names_and_no_others(process: Process) -> None:
    assert set(SERVICES[process.name]["environment"]) & set(SECRET_SETTINGS) == set(process.secrets)


def test_mlflow_holds_to_the_same_settings_in_both() -> None:
    mlflow = next(process for process in PROCESSES if process.name == "mlflow")
    told = SERVICES["mlflow"]["environment"]
    assert set(dict(mlflow.environment)) <= set(told)
    assert {name: told[name] for name, value in mlflow.environment if "{" not in value} == {
        name: value for name, value in mlflow.environment if "{" not in value
    }


def test_every_service_that_stays_has_a_health_check() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"migrate"}


def test_no_secret_has_a_default() -> None:
    for name, rule in re.findall(r"\$\{(\w+)([^}]*)\}", TEXT):
        if re.search("PASSWORD|TOKEN|KEY|SECRET", name):
            assert rule.startswith(":?"), f"{name} must be refused when it is not set"
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|_KEY|AUTH$", name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", value), f"{name} is written out"
            for password in re.findall(r"://\w*:([^@]+)@", str(value)):
                assert re.fullmatch(r"\$\{\w+:\?[^}]*\}", password), f"{name} holds a password"


def test_the_example_env_names_exactly_the_secrets_and_fills_in_none() -> None:
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.endswith("=") for line in lines)
    assert {line.rstrip("=") for line in lines} == set(re.findall(r"\$\{(\w+):\?", TEXT))


def test_nothing_is_published_beyond_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert all("doors" not in SERVICES[name]["networks"] for name in set(SERVICES) - set(published))


def test_what_must_last_lies_on_named_volumes() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_the_image_runs_as_nobody_special() -> None:
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert users == ["overread"]
