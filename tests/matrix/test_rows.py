"""The matrix itself: every row has a test, and the table prints what the tests count."""

from __future__ import annotations

from tests.matrix.plugin import Result
from tests.matrix.rows import ROWS, files_of, groups, marked_files


def test_every_row_has_a_test() -> None:
    held = {row for markers in marked_files().values() for rows in markers for row in rows}
    assert held == set(ROWS), f"without a test: {set(ROWS) - held}; unknown: {held - set(ROWS)}"


def test_rows_that_share_a_test_are_run_together_and_none_is_left_out() -> None:
    made = groups(set(ROWS))
    assert sorted(row for group in made for row in group) == sorted(ROWS)
    for markers in marked_files().values():
        for rows in markers:
            assert sum(bool(rows & group) for group in made) == 1
    assert all(files_of({row}) for row in ROWS)


def test_a_row_is_told_in_one_line() -> None:
    result = Result(2, 1.25, tests=3, tried={"bits": 2000}, held=["1,999 refused"])
    assert result.line().startswith(" 2 ok ")
    assert "2,000 bits, 3 tests" in result.line()
    assert "1,999 refused" in result.line()
    assert Result.of_json(result.as_json()) == result
    result.failed.append("tests/x.py::test_y")
    assert "FAILED" in result.line()
    assert "tests/x.py::test_y" in result.line()
    assert Result(2, tests=1, skipped=["no tmpfs"]).verdict == "SKIPPED"
