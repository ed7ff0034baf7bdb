"""Change one sign, number or level of a module at a time, and see whether its tests notice: the mutation score.

The changes are cosmic-ray's (comparisons, arithmetic, numbers, `and` and `or`, `not`), and one of ours, because levels
and margins are names and not numbers: each use of one is made a quarter larger. Annotations are left alone. Every
mutant has a process of its own, forked from one in which the libraries are loaded; no file is touched.

    pip install cosmic-ray      # not one of our dependencies
    python -m benchmarks.mutants pipelines.gates tests/pipelines/test_gates.py [--skip EXPRESSION] [--results FILE]

With `--results` what was killed is not run again: add the missing tests, run it again, and see what still survives.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np  # noqa: F401 - loaded once, for all mutants
import pytest
import scipy.stats  # noqa: F401 - the same
import torch  # noqa: F401 - the same
from hypothesis import strategies  # noqa: F401 - the same
from sklearn import metrics  # noqa: F401 - the same

SIGNS = "Eq|NotEq|Lt|LtE|Gt|GtE"
CHANGES = re.compile(
    rf"core/(ReplaceComparisonOperator_(({SIGNS})_({SIGNS})|Is_IsNot|IsNot_Is)"
    r"|ReplaceBinaryOperator_((Add|Sub|Mul|Div)_(Add|Sub|Mul|Div)|Pow_Mul|BitAnd_BitOr|BitOr_BitAnd)"
    r"|ReplaceUnaryOperator_(USub_UAdd|Delete_Not|Delete_USub|Delete_Invert)"
    r"|NumberReplacer|AddNot|ReplaceAndWithOr|ReplaceOrWithAnd)"
)
LEVELS = {"alpha", "harm_alpha", "local", "level", "margin", "floor", "minimum", "maximum", "maximum_ece", "rate"}
LEVELS |= {"minimum_cases_per_class", "minimum_labels", "maximum_disagreement", "minimum_cases", "above", "target"}
FACTOR = 1.25


def main() -> int:
    """Print the survivors and the score; exit code 1 where the tests fail without a change."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--skip", help="tests that take long, as pytest's -k would name them")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--seconds", type=int, default=120)
    asked = parser.parse_args()
    file = Path(*asked.module.split(".")).with_suffix(".py")
    source = file.read_text(encoding="utf-8")
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--assert=plain", *asked.tests]
    arguments += ["-k", f"not ({asked.skip})"] if asked.skip else []
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    importlib.import_module("tests.conftest")
    load_all_but(asked.module, tests=asked.tests)
    if killed(asked.module, source, arguments=arguments, seconds=10 * asked.seconds):
        print("the tests fail without any change; mend them first", file=sys.stderr)
        return 1
    before = known(asked.results)
    began, outcomes = time.monotonic(), {}
    for change, mutant in mutants(source):
        name = f"{change} {told(source, mutant)}"
        outcomes[name] = before.get(name) or killed(asked.module, mutant, arguments=arguments, seconds=asked.seconds)
        if asked.results and not before.get(name):
            with asked.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps([name, outcomes[name]]) + "\n")
    survivors = [name for name, dead in outcomes.items() if not dead]
    print("\n".join(survivors))
    share = 1.0 - len(survivors) / len(outcomes)
    print(f"{asked.module}: {len(outcomes)} mutants, {len(survivors)} survive, {share:.1%} killed", end="")
    print(f", {time.monotonic() - began:.0f} s")
    return 0


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Yield the kind of each change and the changed source; each differs in what runs, not in annotations alone."""
    from cosmic_ray import mutating, plugins  # noqa: PLC0415 - named in the docstring, and no dependency of ours

    seen = {_running(source)}
    for kind in filter(CHANGES.fullmatch, plugins.operator_names()):
        occurrence = 0
        while (mutant := mutating.mutate_code(source, plugins.get_operator(kind)(), occurrence)) is not None:
            occurrence += 1
            with contextlib.suppress(SyntaxError):  # the `*` before keyword-only arguments is no multiplication
                if (running := _running(mutant)) not in seen:
                    seen.add(running)
                    yield kind.removeprefix("core/"), mutant
    for mutant in _larger(source):
        yield "Larger", mutant


def killed(module: str, source: str, *, arguments: list[str], seconds: int) -> bool:
    """Run the tests in a child in which `module` has this source; whether any of them failed, or took too long."""
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        signal.alarm(seconds)  # the default action ends the child
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        try:
            _load(module, source)
            os._exit(int(pytest.main(arguments)))
        except BaseException:  # noqa: BLE001 - a module that cannot be imported is noticed by whoever imports it
            os._exit(1)
    return os.waitpid(child, 0)[1] != 0


def load_all_but(module: str, *, tests: list[str]) -> None:
    """Import what the tests import of ours, once for all mutants, and forget the module and whatever is built on it."""
    for test in tests:
        for found in re.findall(
            r"^from (pipelines\S*) import (.*)$", Path(test).read_text(encoding="utf-8"), re.MULTILINE
        ):
            for name in [found[0], *(f"{found[0]}.{word.strip()}" for word in found[1].split(","))]:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
    built = {module}
    while more := {name for name in sys.modules if name not in built and _rests_on(sys.modules[name], built)}:
        built |= more
    for name in built & set(sys.modules):
        del sys.modules[name]
        delattr(sys.modules["pipelines"], name.rpartition(".")[2])


def told(source: str, mutant: str) -> str:
    """The changed line, as it was and as it is."""
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), n=0, lineterm="")
    return " ".join(line.strip() for line in list(lines)[2:])


def known(results: Path | None) -> dict[str, bool]:
    """What an earlier run has found killed."""
    if results is None or not results.exists():
        return {}
    return {name: True for name, dead in map(json.loads, results.read_text(encoding="utf-8").splitlines()) if dead}


def _rests_on(loaded: Any, built: set[str]) -> bool:
    """Whether one of our modules has taken anything from any of `built`."""
    if not getattr(loaded, "__name__", "").startswith("pipelines."):
        return False
    kept = [value for name, value in vars(loaded).items() if not name.startswith("__")]
    return any(
        getattr(value, "__module__", None) in built or getattr(value, "__name__", None) in built for value in kept
    )


def _load(module: str, source: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None, "the module is there"
    assert spec.origin is not None, "and is a file"
    sys.modules[module] = made = importlib.util.module_from_spec(spec)
    exec(compile(source, spec.origin, "exec"), vars(made))  # noqa: S102 - our own source
    setattr(sys.modules["pipelines"], module.rpartition(".")[2], made)


def _running(source: str) -> str:
    """The source as a tree, without annotations and docstrings' places."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):  # how arguments are passed is no sign, though `*` looks like one
            node.args, node.posonlyargs, node.kwonlyargs = node.posonlyargs + node.args + node.kwonlyargs, [], []
            node.defaults, node.kw_defaults = node.defaults + [one for one in node.kw_defaults if one], []
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(value=None)
    return ast.dump(tree)


def _larger(source: str) -> Iterator[str]:
    """The source with one use of a level, margin, floor or minimum made larger."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if name in LEVELS and isinstance(getattr(node, "ctx", None), ast.Load) and node.lineno == node.end_lineno:
            line = lines[node.lineno - 1]
            data = line.encode()
            words = data[node.col_offset : node.end_col_offset].decode()
            changed = data[: node.col_offset] + f"({words} * {FACTOR})".encode() + data[node.end_col_offset :]
            mutant = "".join([*lines[: node.lineno - 1], changed.decode(), *lines[node.lineno :]])
            if _running(mutant) != _running(source):
                yield mutant


if __name__ == "__main__":
    sys.exit(main())
