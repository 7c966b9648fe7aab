"""The cycle collector's thresholds belong to the host: a run gives them back."""

import gc
from collections.abc import Iterator

import pytest

from asyncsynth.engine.garbage_collection import THRESHOLD, fewer_collections


@pytest.fixture(autouse=True)
def _own_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_thresholds_are_raised_for_the_run_and_given_back_after_the_last() -> None:
    gc.set_threshold(701, 11, 12)
    with fewer_collections():
        assert gc.get_threshold() == (THRESHOLD, 11, 12)
        with fewer_collections():
            pass
        assert gc.get_threshold() == (THRESHOLD, 11, 12)  # one run is still going on
    assert gc.get_threshold() == (701, 11, 12)


@pytest.mark.parametrize("chosen", [0, THRESHOLD + 1])
def test_a_host_that_collects_less_or_never_keeps_its_choice(chosen: int) -> None:
    gc.set_threshold(chosen, 10, 10)
    with fewer_collections():
        assert gc.get_threshold()[0] == chosen
