"""Sums that repeat themselves: torch's global settings for one run, and only for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

FILLING: Any = deterministic
"""Where torch keeps whether it fills what it allocates; the attribute is made at run time."""


@contextmanager
def on(threads: int, *, device: torch.device) -> Iterator[None]:
    """Ask torch for repeatable sums on this many threads, and put its global settings back afterwards."""
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    filling = FILLING.fill_uninitialized_memory
    torch.set_num_threads(threads)
    # On CUDA a few layers have no deterministic form; torch then warns instead of stopping the run. What sets the same
    # by the name of use_deterministic_algorithms imports torch's compiler for it: two seconds of a processor.
    torch.set_deterministic_debug_mode("warn" if device.type == "cuda" else "error")
    FILLING.fill_uninitialized_memory = False  # a guard for code that reads it; 6 % of a step
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_deterministic_debug_mode(before[1])
            FILLING.fill_uninitialized_memory = filling
