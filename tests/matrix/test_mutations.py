"""Row 26: the code is broken on purpose, in a copy, and a row of the matrix must notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matrix.mutations import MUTATIONS, ROOT, Mutation, copy_of_the_repository, noticed_by
from tests.matrix.plugin import FULL, Tried
from tests.matrix.rows import ROWS

#: What the short form breaks for real: the quickest, each in another room.
QUICK = ("no lock", "a slot is held during backoff", "keep-alive above the server's", "a swallowed parse error")


def chosen() -> list[Mutation]:
    return [mutation for mutation in MUTATIONS if FULL or mutation.name in QUICK]


@pytest.mark.row(26)
@pytest.mark.parametrize("mutation", chosen(), ids=lambda mutation: mutation.name)
def test_a_row_notices(mutation: Mutation, tmp_path: Path, tried: Tried) -> None:
    copy = tmp_path / "copy"
    copy_of_the_repository(copy)
    noticed = noticed_by(mutation, copy)
    assert noticed, f"{mutation.name} ({mutation.file}): nothing noticed it"
    tried(1, "breaks", f"{mutation.name}: row {mutation.row} ({noticed})")


@pytest.mark.row(26)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_still_fits_the_code(mutation: Mutation) -> None:
    """The text that it breaks is there once, the replacement is Python, and its tests exist."""
    source = (ROOT / "asyncsynth" / mutation.file).read_text()
    assert source.count(mutation.old) == 1, f"{mutation.name}: {source.count(mutation.old)} times in {mutation.file}"
    assert mutation.old != mutation.new
    compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert mutation.row in ROWS
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text()


def test_there_are_enough_of_them() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 12
    assert set(QUICK) <= {mutation.name for mutation in MUTATIONS}
    assert len({mutation.row for mutation in MUTATIONS}) >= 12
