"""The quick tests are what they promise: no sockets, no processes, nothing long."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.testing import FaultServer
from asyncsynth.testing.virtual_time import run_virtually
from tests.__main__ import commands
from tests.kit.pipelines import server
from tests.quick import GUARD, MARKERS, NotQuick, reaches_outside


def _bind() -> None:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))


def _connect() -> None:
    with socket.socket() as opened:
        opened.connect(("127.0.0.1", 9))


def _serve() -> None:
    async def main() -> None:
        async with FaultServer():
            pass

    asyncio.run(main())


OUTSIDE: list[Callable[[], Any]] = [
    _bind,
    _connect,
    _serve,
    lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    lambda: os.system("true"),
    lambda: asyncio.run(asyncio.create_subprocess_exec(sys.executable)),
]


@pytest.mark.parametrize("outside", OUTSIDE)
def test_the_guard_refuses_sockets_and_processes_and_remembers_them(outside: Callable[[], Any]) -> None:
    with GUARD.closed() as seen, pytest.raises(NotQuick, match="mark the test `slow`"):
        outside()
    assert seen, "code that catches the error does not hide it"


def test_the_guard_ends_with_its_block_and_keeps_uvloop_out() -> None:
    with GUARD.closed(), pytest.raises(ImportError):
        import uvloop  # noqa: F401
    _bind()


def test_the_guard_leaves_loops_and_files_alone(tmp_path: Path) -> None:
    async def main() -> str:
        await asyncio.sleep(100)
        await asyncio.to_thread((tmp_path / "file").write_text, "text")
        return (tmp_path / "file").read_text()

    with GUARD.closed() as seen:
        assert run_virtually(main()) == "text"
    assert not seen


def test_the_guard_holds_new_threads_and_leaves_earlier_ones_alone() -> None:
    with ThreadPoolExecutor(1) as earlier:
        earlier.submit(int).result()
        with GUARD.closed() as seen, ThreadPoolExecutor(1) as later:
            earlier.submit(_bind).result()
            assert not seen
            with pytest.raises(NotQuick):
                later.submit(_bind).result()


class _Kit:
    def begin(self) -> Any:
        return server()


def test_the_rule_follows_helpers_methods_closures_and_parameters() -> None:
    def plain() -> int:
        return len(os.sep)

    def calls_a_helper() -> Any:
        return server()

    def calls_a_method() -> Any:
        return _Kit().begin()

    def reads_a_closure() -> Any:
        return calls_a_helper()

    assert reaches_outside(plain) is None
    for function in (_bind, _serve, calls_a_helper, calls_a_method, reads_a_closure, OUTSIDE[3]):
        assert reaches_outside(function) is not None
    assert reaches_outside([plain, _connect]) == "socket"
    assert "embedded" in MARKERS


def test_quick_is_ruff_and_the_quick_tests() -> None:
    checks, is_quick = commands(["--quick", "--", "-k", "name"])
    assert is_quick
    assert [check[2] for check in checks] == ["ruff", "pytest"]
    assert checks[1][3:] == ["--quick", "-k", "name"]
    full, is_quick = commands([])
    assert not is_quick
    assert [check[2] for check in full[:2]] == ["ruff", "mypy"]
    assert Path(full[2][0]).name == "lint-imports"
    assert "not embedded" in commands(["--fast"])[0][-1]


def test_the_help_and_the_page_for_contributors_say_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands(["--help"])
    told = capsys.readouterr().out
    assert "--quick" in told
    assert "mypy" in told
    assert ".venv/bin/python -m tests --quick" in Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text()


def test_no_test_file_imports_from_another() -> None:
    """What two of them need is in `tests/kit`."""
    pattern = re.compile(r"^from (?:tests\.(?:\w+\.)?|\.)test_\w+ import", re.MULTILINE)
    files = sorted(Path(__file__).parent.rglob("*.py"))
    assert not [file.name for file in files if pattern.search(file.read_text(encoding="utf-8"))]
