"""Micro-batches: everybody gets their own answer, together where there is company, at once where there is none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from workers.batching import Batcher, Closed, Scores


def image(value: float) -> Scores:
    return np.full((1, 4, 4), value, dtype=np.float32)


def means(images: Scores) -> Scores:
    return images.mean(axis=(1, 2, 3))[:, None]


def slow_means(images: Scores) -> Scores:
    time.sleep(0.01)
    return means(images)


def test_each_of_many_clients_gets_its_own_score() -> None:
    batcher = Batcher(slow_means)
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda value: batcher.score(lambda: image(value)), range(200)))
    assert [float(answer.scores[0]) for answer in answers] == list(range(200))
    assert max(answer.batch for answer in answers) > 4
    assert max(answer.batch for answer in answers) <= 16
    batcher.close()


def test_a_lone_client_does_not_wait_for_company() -> None:
    batcher = Batcher(means, wait_seconds=0.5)
    started = time.perf_counter()
    assert batcher.score(lambda: image(1.0)).batch == 1
    assert time.perf_counter() - started < 0.25
    batcher.close()


def test_company_on_its_way_is_waited_for_but_not_for_long() -> None:
    batcher = Batcher(means, wait_seconds=0.1)
    late = threading.Event()

    def slowly() -> Scores:
        late.wait(5)
        return image(2.0)

    with ThreadPoolExecutor(2) as clients:
        straggler = clients.submit(batcher.score, slowly)
        time.sleep(0.05)
        assert clients.submit(batcher.score, lambda: image(1.0)).result(timeout=2).batch == 1
        late.set()
        assert straggler.result(timeout=2).scores[0] == 2.0
    batcher.close()


def test_a_network_that_fails_fails_the_batch_and_not_the_next_one() -> None:
    def refuses_negatives(images: Scores) -> Scores:
        if images.min() < 0:
            raise ValueError("negative")
        return means(images)

    batcher = Batcher(refuses_negatives)
    with pytest.raises(ValueError, match="negative"):
        batcher.score(lambda: image(-1.0))
    assert batcher.score(lambda: image(1.0)).scores[0] == 1.0
    batcher.close()


def test_an_image_that_cannot_be_prepared_holds_nobody_up() -> None:
    batcher = Batcher(means, wait_seconds=0.5)
    with pytest.raises(ZeroDivisionError):
        batcher.score(lambda: image(1 / 0))
    started = time.perf_counter()
    batcher.score(lambda: image(1.0))
    assert time.perf_counter() - started < 0.25
    batcher.close()


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    batcher = Batcher(slow_means)
    with ThreadPoolExecutor(8) as clients:
        taken = [clients.submit(batcher.score, lambda: image(3.0)) for _ in range(8)]
        time.sleep(0.005)
        batcher.close()
        for answer in taken:
            try:
                assert answer.result(timeout=2).scores[0] == 3.0
            except Closed:
                continue
    assert sum(answer.exception() is None for answer in taken) > 0
    with pytest.raises(Closed):
        batcher.score(lambda: image(1.0))
