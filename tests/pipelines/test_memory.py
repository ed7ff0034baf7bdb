"""Where memory runs out: half the batch at a time, the same step, and words about it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import memory, teach, train
from tests.pipelines.toy import PROTOCOL, TRAIN, TUNE, cases, champion, joined

TOO_MUCH = 1 << 50


def test_the_parts_are_doubled_until_there_is_room() -> None:
    tried: list[int] = []

    def attempt(parts: int) -> str:
        tried.append(parts)
        torch.empty(TOO_MUCH if parts < 8 else 1, dtype=torch.uint8)  # a real want of memory
        return "done"

    assert memory.in_parts(attempt, largest=32) == "done"
    assert tried == [1, 2, 4, 8]


def test_where_nothing_has_room_it_says_so_and_another_error_passes_through() -> None:
    with pytest.raises(memory.NotEnoughMemory):
        memory.in_parts(lambda _parts: torch.empty(TOO_MUCH, dtype=torch.uint8), largest=3)
    with pytest.raises(RuntimeError, match="shapes"):
        memory.in_parts(lambda _parts: torch.ones(2, 3) @ torch.ones(2, 3), largest=8)
    assert memory.ran_out(MemoryError())
    assert memory.ran_out(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize(("cases", "parts"), [(64, 1), (64, 3), (5, 4), (1, 2)])
def test_the_parts_of_a_batch_are_all_of_it_and_none_is_a_single_case(cases: int, parts: int) -> None:
    cut = memory.parts_of(cases, parts)
    dealt = [np.arange(cases)[part] for part, _ in cut]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(cases))
    assert [share for _, share in cut] == [len(part) / cases for part in dealt]
    assert cases == 1 or min(map(len, dealt)) >= 2
    assert len(dealt) == 1 or max(part[0] for part in dealt) < len(dealt)  # old and new cases in each


def test_a_batch_in_parts_makes_as_many_steps_and_the_metadata_say_so() -> None:
    whole = train.fit(TRAIN, TUNE, protocol=PROTOCOL, strategy="full", seed=0)
    cut = train.fit(TRAIN, TUNE, protocol=PROTOCOL, strategy="full", seed=0, parts=4)
    assert "in 4 parts" in cut.metadata["notes"][0]
    assert cut.metadata["sample_gradients"] == whole.metadata["sample_gradients"]
    assert [row["loss"] for row in cut.history] == pytest.approx([row["loss"] for row in whole.history], abs=0.25)


LITTLE = """
import resource, sys
import numpy as np, torch
from pipelines import memory, network, train
from pipelines.protocol import from_document
from tests.pipelines.toy import DOCUMENT
document = {**DOCUMENT, "input": {"channels": 1, "rows": 256, "columns": 256}}
document["recipe"] = {"epochs": 4, "batch_size": 128, "threads": 1, "augment": False}
protocol = from_document(document)
n = 128
cases = train.Cases(
    images=np.zeros((n, 1, 256, 256), dtype=np.float32) + np.arange(n, dtype=np.float32)[:, None, None, None] % 2,
    labels=np.arange(n) % 2, sites=np.full(n, "a"), label_since=np.ones(n, dtype=np.int64),
)
tune = train.Cases(images=cases.images[:16], labels=cases.labels[:16], sites=cases.sites[:16],
                   label_since=cases.label_since[:16])
torch.optim.AdamW(network.build(network.architecture_for(protocol)).parameters()).zero_grad()  # loads what it needs
tried = []
class Enough(Exception): pass
def attempt(parts):
    steps = iter(range(3))
    tried.append(parts)
    def keep_going():
        if next(steps, None) is None:
            raise Enough  # three steps have had room
    return train.fit(cases, tune, protocol=protocol, strategy="full", seed=0, parts=parts, keep_going=keep_going)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
try:
    memory.in_parts(attempt, largest=32)
except Enough:
    print(tried)
"""


def test_a_process_with_little_memory_trains_in_parts() -> None:
    for mebibytes in (240, 160, 320, 120, 400, 200, 280, 140, 180):  # what the libraries take differs
        done = subprocess.run(
            [sys.executable, "-c", LITTLE, str(mebibytes)],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        tried = json.loads(done.stdout or "[1]")  # some of the libraries' own allocations end the process instead
        assert tried[0] == 1
        if len(tried) > 1:
            break
    assert 2 <= tried[-1] <= 32, done.stderr


def test_the_champion_teaches_as_much_in_parts_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train.fit(TRAIN, TUNE, protocol=PROTOCOL, strategy="full", seed=0)
    base = champion(first, tmp_path)
    counted: list[tuple[int, int, float]] = []

    def apart(
        logits: torch.Tensor, _images: torch.Tensor, *, held: torch.Tensor, part_weight: float, **_: object
    ) -> Any:
        counted.append((len(held), int(held.sum()), part_weight))
        return logits.sum() * 0.0

    monkeypatch.setattr(teach, "apart", apart)
    both = joined(TRAIN, cases(32, seed=3, since=2))
    train.fit(both, TUNE, protocol=PROTOCOL, strategy="derpp", seed=0, base=base, parts=4)
    steps = [counted[k : k + 4] for k in range(0, len(counted), 4)]
    for step in steps:
        assert min(held for _, held, _ in step) > 0  # each part has some of the old cases
        batch = sum(size for size, _, _ in step)
        assert sum(weight * size / batch for size, _, weight in step) == pytest.approx(1.0)
