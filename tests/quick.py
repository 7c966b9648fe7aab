"""`python -m tests --quick`: which tests are pure or simulated, and a guard that holds them to it.

A test is quick when nothing that it runs in this repository's tests (its own code, its fixtures, the helpers they
call) names what opens sockets, starts processes or takes long to import, it is no Hypothesis test, and it is marked
neither `slow` nor `embedded`. So the rule reads code and keeps no list of files. What the rule cannot see, the guard
does: in every run of the tests, quick or not, a quick test that connects, binds or starts a process fails.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
import types
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

#: Seconds of CPU that `python -m tests --quick` may take.
BUDGET_S = 30
#: A quick test that takes more is named at the end.
LONG_S = 1.0
#: Markers of tests that are never quick; Hypothesis sets its own.
MARKERS = ("slow", "embedded", "hypothesis")
#: Modules that open sockets or start processes, and those whose import alone takes a second.
OUTSIDE_MODULES = frozenset(
    {"asyncio.subprocess", "datasets", "http.server", "multiprocessing", "pyarrow", "socket", "subprocess"}
)
#: Names, of attributes or imports, that do the same.
OUTSIDE_NAMES = frozenset(
    {
        "FaultServer",
        "create_connection",
        "create_server",
        "create_subprocess_exec",
        "create_subprocess_shell",
        "executable",
        "fault_server",
        "fork",
        "kill",
        "open_connection",
        "start_server",
    }
)
#: What Python reports before a socket connects or binds, and before a process starts.
OUTSIDE_EVENTS = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "pty.spawn",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.sendto",
        "subprocess.Popen",
    }
)


class NotQuick(RuntimeError):
    """A quick test reached outside of its process."""


# --- the rule ----------------------------------------------------------------------------------------------------


def reaches_outside(*roots: Any) -> str | None:
    """What of the code that `roots` (functions, classes, values) lead to opens sockets or starts processes."""
    todo = list(roots)
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, functools.partial):
            todo += [one.func, *one.args, *one.keywords.values()]
        elif isinstance(one, (list, tuple)):
            todo += one
        elif isinstance(one, types.ModuleType):
            if one.__name__ in OUTSIDE_MODULES:
                return one.__name__
        elif isinstance(one, type):
            if one.__name__ in OUTSIDE_NAMES:
                return one.__name__
            if _is_ours(one):
                todo += [*one.__bases__, *vars(one).values()]
        elif (function := _function(one)) is not None:
            if _is_ours(function):
                found = outside_names(function.__code__)
                if found is not None:
                    return found
                todo += _values(function)
        elif _is_ours(type(one)):
            todo.append(type(one))
    return None


def outside_names(code: types.CodeType) -> str | None:
    """The first name in a function, or in one inside it, that leads outside."""
    for name in code.co_names:
        if name in OUTSIDE_NAMES or name in OUTSIDE_MODULES:
            return name
    inner = (outside_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return next((name for name in inner if name is not None), None)


def _function(one: Any) -> types.FunctionType | None:
    """The function in a decorated or bound one, a property or a class method."""
    if isinstance(one, property):
        one = one.fget
    one = getattr(one, "__func__", one)
    hypothesis = getattr(one, "hypothesis", None)
    one = getattr(hypothesis, "inner_test", one)
    with_wrapped = inspect.unwrap(one) if callable(one) else one
    return with_wrapped if isinstance(with_wrapped, types.FunctionType) else None


def _values(function: types.FunctionType) -> list[Any]:
    """The globals, free variables and defaults that a function reads."""
    names = _all_names(function.__code__)
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    known = [function.__globals__[name] for name in names if name in function.__globals__]
    # `helpers.start(...)`: an attribute of a module of ours.
    modules = [one for one in known if isinstance(one, types.ModuleType) and one.__name__.startswith("tests.")]
    attributes = [getattr(module, name) for module in modules for name in names if hasattr(module, name)]
    return [*known, *attributes, *cells, *defaults]


def _all_names(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_all_names, inner))


def _is_ours(one: Any) -> bool:
    module = getattr(one, "__module__", None) or ""
    return module.split(".")[0] in ("tests", "benchmarks", "conftest") or "/tests/" in module


def why_not_quick(item: pytest.Item) -> str | None:
    """Why a test is not quick; None if it is."""
    for name in MARKERS:
        if item.get_closest_marker(name) is not None:
            return f"marked {name}"
    if not isinstance(item, pytest.Function):
        return "not a function"
    named = OUTSIDE_NAMES.intersection(item.fixturenames)
    if named:
        return f"fixture {min(named)}"
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - pytest has no public way
    fixtures = [definition.func for several in definitions for definition in several]
    values = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    return reaches_outside(item.obj, *fixtures, *values)


# --- the guard ---------------------------------------------------------------------------------------------------


class Guard:
    """Makes sockets and processes fail inside `with guard.closed():`, and remembers them: code may catch the error.

    Python's audit events report them. uvloop's sockets raise none, so uvloop cannot be imported meanwhile. Threads
    that an earlier test left behind may continue.
    """

    def __init__(self) -> None:
        self._is_closed = False
        self._seen: list[str] = []
        self._is_hooked = False
        self._earlier: frozenset[int | None] = frozenset()  #: idents of threads

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_closed and event in OUTSIDE_EVENTS and threading.get_ident() not in self._earlier:
            self._seen.append(f"{event}{arguments!r:.200}")
            raise NotQuick(f"a quick test called {event}{arguments!r:.200}; mark the test `slow`")

    @contextmanager
    def closed(self) -> Iterator[list[str]]:
        """Yields the list of what was tried, which grows."""
        if not self._is_hooked:
            sys.addaudithook(self._hear)  # for the life of the process: there is no way to remove it
            self._is_hooked = True
        self._seen = []
        self._earlier = frozenset({thread.ident for thread in threading.enumerate()} - {threading.get_ident()})
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "uvloop", None)
            self._is_closed = True
            try:
                yield self._seen
            finally:
                self._is_closed = False


GUARD = Guard()


@pytest.fixture(autouse=True)
def only_quick_things(request: pytest.FixtureRequest) -> Iterator[None]:
    """Holds each quick test to what a quick test is, in every run."""
    if request.node.stash.get(REASON, "not collected") is not None:
        yield
        return
    with GUARD.closed() as seen:
        yield
    if seen:
        pytest.fail(f"a quick test reached outside of its process, mark it `slow`: {'; '.join(seen)}", pytrace=False)


# --- pytest's side -----------------------------------------------------------------------------------------------

#: Why a test is not quick; None if it is.
REASON = pytest.StashKey[str | None]()


class Chooser:
    """Tells quick tests from the others, and with `--quick` keeps only these."""

    def __init__(self, config: pytest.Config) -> None:
        self._is_quick = bool(config.getoption("--quick"))
        self._shows_why = bool(config.getoption("--why-not-quick"))
        self._took: dict[str, float] = {}  #: seconds of CPU by test

    @pytest.hookimpl(trylast=True)  # after Hypothesis has marked its tests
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            item.stash[REASON] = why_not_quick(item)
        if self._is_quick:
            config.hook.pytest_deselected(items=[item for item in items if item.stash[REASON] is not None])
            items[:] = [item for item in items if item.stash[REASON] is None]

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        if not self._shows_why:
            return []
        return [f"{item.nodeid}: {item.stash[REASON]}" for item in items if item.stash[REASON] is not None]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        began = time.process_time()
        try:
            return (yield)
        finally:
            self._took[item.nodeid] = time.process_time() - began

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._is_quick:
            return
        for took, name in sorted(((took, name) for name, took in self._took.items()), reverse=True):
            if took > LONG_S:
                terminalreporter.write_line(f"{took:.1f} s of CPU, make it cheaper or mark it `slow`: {name}")
        terminalreporter.write_line(f"CPU of this process: {time.process_time():.1f} s")


def add_options(parser: pytest.Parser) -> None:
    """For `pytest_addoption`."""
    group = parser.getgroup("quick tests")
    group.addoption("--quick", action="store_true", help="only pure and simulated tests: no sockets, no processes")
    group.addoption("--why-not-quick", action="store_true", help="say of each test that is not quick why")


def configure(config: pytest.Config) -> None:
    """For `pytest_configure`."""
    config.pluginmanager.register(Chooser(config), "asyncsynth-quick")
