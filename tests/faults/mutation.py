"""Takes one protection out of one function, so that a test can show that it is missed."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from typing import Any

Mutation = tuple[str, str, str, str]
"""Module, function (or `Class.method`), words of its source, and what stands in their place."""


def mutated(mutation: Mutation) -> tuple[Any, str, Any]:
    """Compile the function with the words replaced; returns where it belongs, its name, and the changed one."""
    name, path, words, instead = mutation
    module = importlib.import_module(name)
    owner: Any = module
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = inspect.unwrap(getattr(owner, last))
    source = textwrap.dedent(inspect.getsource(original))
    assert source.count(words) == 1, f"{words!r} stands {source.count(words)} times in {name}.{path}: mend the test"
    made: dict[str, Any] = {}
    code = compile(source.replace(words, instead), f"<{name}.{path} without a protection>", "exec")
    exec(code, vars(module), made)  # noqa: S102 - our own source
    return owner, last, made[last]


def apply(mutation: Mutation) -> None:
    """Take the protection out of this process for good: for children that end soon."""
    owner, name, changed = mutated(mutation)
    setattr(owner, name, changed)
