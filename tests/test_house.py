"""The laws of the house: what lives where, which way arrows point, and that nothing is left out of the docs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "registry", "workers", "pipelines")
TOP_LEVEL = {
    *PACKAGES, "tests", "benchmarks", "docs",
    "docker-compose.yml", "pyproject.toml", "README.md", "Dockerfile", "LICENSE", "CHANGELOG.md", "Makefile",
}  # fmt: skip


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name]


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stat().st_size)


def test_nothing_lives_at_the_top_that_was_not_asked_for() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_the_arrows_between_the_packages_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_owns_and_stays_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module needs a docstring that says what it owns"
    assert len(text.splitlines()) <= 400


def test_every_public_name_of_the_science_and_the_record_is_documented() -> None:
    bare = []
    for path in modules():
        if path.relative_to(ROOT).parts[0] in {"pipelines", "registry"}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            inside = [node for owner in tree.body if isinstance(owner, ast.ClassDef) for node in owner.body]
            bare += [
                f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                for node in [*tree.body, *inside]
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and node.name != "forward"  # torch's own name, documented by its class
                and not ast.get_docstring(node)
            ]
    assert bare == []


def test_every_job_kind_has_a_task_and_every_task_a_job_kind() -> None:
    script = (
        "from registry.jobs import JOB_KINDS\nfrom workers import app, tasks\n"
        "names = {n.removeprefix('workers.') for n in app.celery.tasks if n.startswith('workers.')}\n"
        "print(sorted(set(JOB_KINDS) - names)); print(sorted(JOB_KINDS))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, env=science_environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[]"


def test_starting_a_door_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'monai', 'mlflow', 'celery', 'dvc', 'pydicom', 'PIL', 'scipy', 'sklearn'}"
    for door in ("api.app", "api.cli"):
        script = f"import sys, {door}; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", door


def test_every_setting_is_documented() -> None:
    named = {
        name for path in modules() for name in re.findall(r"OVERREAD_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))
    } - {"OVERREAD_"}  # fmt: skip
    documented = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert sorted(name for name in named if name not in documented) == []


def test_every_gate_and_every_field_of_the_protocol_is_documented() -> None:
    from pipelines.protocol import Protocol  # noqa: PLC0415 - the science is not needed by the other laws

    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")

    def fields(model: type) -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            found.append(name)
            if isinstance(info.annotation, type) and hasattr(info.annotation, "model_fields"):
                found += fields(info.annotation)
        return found

    assert sorted({name for name in fields(Protocol) if name not in text}) == []


def test_every_row_of_the_fault_matrix_names_a_test_that_exists() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    numbers = [row[1].strip() for row in rows if row[1].strip().isdecimal()]
    assert numbers == [str(number) for number in range(1, 32)]
    named = {name for row in rows for name in re.findall(r"`([\w/]+/(?:test_\w+\.py)?)`", row[3])}
    assert len(named) > 15
    assert sorted(name for name in named if not (ROOT / "tests" / name).exists()) == []


def test_links_in_the_docs_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_no_path_of_a_developers_machine_is_in_the_tree() -> None:
    pattern = re.compile(r"/(work|home/[a-z]+|Users/[A-Za-z]+|opt/wheels)/")
    texts = {".py", ".md", ".yml", ".yaml", ".toml", ".sql", ".txt"}
    found = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix in texts and path.exists() and path != Path(__file__)
        and pattern.search(path.read_text(encoding="utf-8"))
    ]  # fmt: skip
    assert found == []


def science_environment() -> dict[str, str]:
    """An environment in which workers can be imported without a running service."""
    return os.environ | {
        "OVERREAD_DATABASE_URL": "postgresql://localhost/none",
        "OVERREAD_BROKER_URL": "memory://",
        "OVERREAD_MLFLOW_URL": "http://127.0.0.1:9",
        "OVERREAD_INFERENCE_TOKEN": "not-a-secret",
    }
