"""Each behaviour of the table, through `Pipeline.arun` and real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.rows import BEHAVIOURS, NOT_YET
from tests.conformance.run import wrong
from tests.conformance.table import Behaviour

WITHIN_S = 20.0
#: For those that do not work yet: many of them would wait for ever.
NOT_YET_WITHIN_S = 2.0


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.name)
def test_a_run_makes_of_it_what_the_table_says(behaviour: Behaviour, tmp_path: Path) -> None:
    not_yet = behaviour.name in NOT_YET
    found = wrong(behaviour, tmp_path, NOT_YET_WITHIN_S if not_yet else WITHIN_S)
    if not_yet:
        assert found, f"{behaviour.name} works now: take it out of NOT_YET in tests/conformance/rows.py"
    else:
        assert not found


def test_names_are_unique_and_not_yet_names_rows() -> None:
    names = [row.name for row in BEHAVIOURS]
    assert len(names) == len(set(names))
    assert set(names) >= NOT_YET


def test_a_wrong_outcome_is_noticed(tmp_path: Path) -> None:
    """The harness can fail: each kind of expectation, held against the outcome of another row."""
    by_name = {row.name: row for row in BEHAVIOURS}
    good, one, told = by_name["chunked"], by_name["refused_string"], by_name["all_401"]
    for number, (row, other) in enumerate([(good, one), (good, told), (one, good), (told, good)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert wrong(Behaviour(row.name, row.does, row.who, row.answer, other.expected), folder, 20.0)
