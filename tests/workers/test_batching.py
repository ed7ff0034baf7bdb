"""Micro-batches: everybody gets their own answer, together where there is company, at once where there is none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.waiting import PATIENCE_SECONDS
from workers.batching import Batcher, Closed, Scores

AN_HOUR = 3600.0
"""Whoever waits for so long is ended before."""


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
    batcher = Batcher(means, wait_seconds=AN_HOUR)
    assert batcher.score(lambda: image(1.0)).batch == 1
    batcher.close()


def test_company_on_its_way_is_waited_for_but_not_for_long() -> None:
    batcher = Batcher(means, wait_seconds=0.1)
    begun, late = threading.Event(), threading.Event()

    def slowly() -> Scores:
        begun.set()
        late.wait(AN_HOUR)
        return image(2.0)

    with ThreadPoolExecutor(2) as clients:
        straggler = clients.submit(batcher.score, slowly)
        try:
            assert begun.wait(PATIENCE_SECONDS)
            assert clients.submit(batcher.score, lambda: image(1.0)).result(timeout=PATIENCE_SECONDS).batch == 1
        finally:
            late.set()
        assert straggler.result(timeout=PATIENCE_SECONDS).scores[0] == 2.0
    batcher.close()


def test_company_that_comes_soon_shares_the_batch() -> None:
    batcher = Batcher(means, wait_seconds=AN_HOUR)
    begun, soon = threading.Event(), threading.Event()

    def slowly() -> Scores:
        begun.set()
        soon.wait(AN_HOUR)
        return image(2.0)

    with ThreadPoolExecutor(2) as clients:
        straggler = clients.submit(batcher.score, slowly)
        try:
            assert begun.wait(PATIENCE_SECONDS)
            first = clients.submit(batcher.score, lambda: image(1.0))
            time.sleep(0.1)  # long enough to be scored alone, where it is not waited for
        finally:
            soon.set()
        assert [one.result(timeout=PATIENCE_SECONDS).batch for one in (first, straggler)] == [2, 2]
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
    batcher = Batcher(means, wait_seconds=AN_HOUR)
    with pytest.raises(ZeroDivisionError):
        batcher.score(lambda: image(1 / 0))
    assert batcher.score(lambda: image(1.0)).batch == 1
    batcher.close()


def test_closing_answers_what_was_taken_and_takes_no_more() -> None:
    batcher, begun = Batcher(slow_means), threading.Event()

    def prepare() -> Scores:
        begun.set()
        return image(3.0)

    with ThreadPoolExecutor(8) as clients:
        taken = [clients.submit(batcher.score, prepare) for _ in range(8)]
        assert begun.wait(PATIENCE_SECONDS)
        batcher.close()
        for answer in taken:
            try:
                assert answer.result(timeout=PATIENCE_SECONDS).scores[0] == 3.0
            except Closed:
                continue
    assert sum(answer.exception() is None for answer in taken) > 0
    with pytest.raises(Closed):
        batcher.score(lambda: image(1.0))
