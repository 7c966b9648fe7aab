"""A call whose arguments do not fit is answered in words of our own, with the nearest right name."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import re
from abc import ABC
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import asyncsynth
from asyncsynth import (
    LLM,
    Deduplicate,
    EvolComplexity,
    GroupColumns,
    Jury,
    MagpieGenerator,
    MergeBranches,
    Pipeline,
    RetryPolicy,
    RowStep,
    RunOptions,
    Step,
    TaskContext,
    TextGeneration,
    step,
    task,
)
from asyncsynth.calling import nearest
from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.errors import EXIT_USAGE, CallError, ConfigurationError
from asyncsynth.records import Row

llm: Any = LLM(model="m")
LIMIT = 3


class Same(RowStep):
    """A step without a constructor of its own."""

    inputs: tuple[str, ...] = ("text",)

    def apply(self, row: Row) -> Row:
        return row


class Passing(TextGeneration):
    """A user's task that passes on what it does not know."""

    def __init__(self, llm: LLM, *, mine: int = LIMIT, **settings: Any) -> None:
        super().__init__(llm, **settings)
        self.mine = mine * LIMIT


class Closed(TextGeneration):
    """A user's task that takes its own keywords only."""

    def __init__(this, llm: LLM, *, mine: int = 1) -> None:
        super().__init__(llm)


class Stray(TextGeneration):
    """A user's task that itself writes a wrong name."""

    def __init__(self, llm: LLM) -> None:
        base: Any = super()
        base.__init__(llm, nmae="x")


class Broken(Same):
    """A user's step whose constructor raises."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        int(value)


class Inner(Same):
    """A user's step whose constructor calls something else wrongly."""

    def __init__(self, value: int = 1) -> None:
        super().__init__()
        dict.fromkeys(values=value)  # type: ignore[call-arg]


@step(inputs=["text"], outputs=["words"])
def words(row: Row) -> Row:
    return {"words": len(row["text"].split())}


@task(llm=llm, inputs=["text"], outputs=["title"])
async def title(row: Row, ctx: TaskContext) -> dict[str, Any]:
    return {"title": row["text"]}


def named(function: Any) -> list[str]:
    """The names that a function takes, those of its TypedDict included."""
    names: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += get_type_hints(get_args(get_type_hints(function, include_extras=True)[parameter.name])[0])
        elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.name not in ("self", "cls"):
            names.append(parameter.name)
    return names


PUBLIC = [getattr(asyncsynth, name) for name in asyncsynth.__all__]
KINDS: list[Any] = [each for each in PUBLIC if inspect.isclass(each) and issubclass(each, Step)]
CALLED: list[tuple[str, Any, list[str]]] = [
    *((kind.__name__, kind, named(kind.__init__)) for kind in [*KINDS, LLM, RunOptions, RetryPolicy, Jury, Pipeline]),
    *((f"Pipeline.{name}", getattr(Pipeline(), name), named(getattr(Pipeline, name))) for name in ("run", "stream")),
    ("LLM.embedded", LLM.embedded, named(LLM.embedded)),
    ("words", words, named(Step.__init__)),
    ("title", title, named(title.__init__)),
    ("step", step, named(step)),
    ("task", task, named(task)),
]


def test_all_kinds_of_steps_are_among_them() -> None:
    assert len(KINDS) > 35
    assert {"TextGeneration", "MagpieGenerator", "FormSFT", "Step", "Task"} <= {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize(("name", "call", "names"), CALLED, ids=[each[0] for each in CALLED])
def test_a_misspelt_keyword_is_answered_with_the_nearest(name: str, call: Any, names: list[str]) -> None:
    assert names
    for right in names:
        if len(right) < 3:
            continue
        with pytest.raises(CallError) as error:
            call(**{right[1:]: None})
        assert error.value.message == f"{name}() has no keyword {right[1:]!r} (did you mean {right!r}?)"
        assert re.findall(r"\w+", error.value.hint.removeprefix("It takes "))[: len(names)] == names


def test_arun_is_answered_when_it_is_awaited() -> None:
    with pytest.raises(CallError, match=re.escape("Pipeline.arun() has no keyword 'outptu' (did you mean 'output'?)")):
        asyncio.run(Pipeline().arun(**{"outptu": "x"}))


CASES: dict[str, tuple[Any, str, str]] = {
    "missing": (lambda: TextGeneration(**{}), "TextGeneration() needs 'llm'", "Write TextGeneration(llm=...)."),
    "missing, the last": (lambda: MagpieGenerator(llm, **{}), "MagpieGenerator() needs 'num_rows'", "num_rows=..."),
    "missing, of a dataclass": (lambda: LLM(**{}), "LLM() needs 'model'", "Write LLM(model=...)."),
    "missing, of a user's": (lambda: Passing(**{}), "Passing() needs 'llm'", "It takes llm, mine, template, "),
    "two missing": (lambda: step(**{}), "step() needs 'inputs' and 'outputs'", "step(inputs=..., outputs=...)"),
    "by position": (
        lambda: TextGeneration(llm, *["{{ text }}"]),
        "TextGeneration() takes arguments by name, at most 1 by position (llm); 2 were given",
        "Write each as name=value. It takes llm, template, ",
    ),
    "by position, of two": (
        lambda: GroupColumns("a", "b", *["none"]),
        "GroupColumns() takes arguments by name, at most 2 by position (columns, output_columns); 3 were given",
        "missing",
    ),
    "none by position": (
        lambda: MergeBranches(*["either"]),
        "MergeBranches() takes arguments by name, none by position; 1 was given",
        "It takes name.",
    ),
    "run by position": (
        lambda: Pipeline().run(*["out"]),
        "Pipeline.run() takes arguments by name, none by position; 1 was given",
        "output",
    ),
    "twice": (
        lambda: TextGeneration(llm, **{"llm": llm}),
        "TextGeneration() is given 'llm' twice, by position and by name",
        "It takes llm",
    ),
    "several": (
        lambda: Deduplicate("a", **{"metod": 1, "zzz": 2}),
        "Deduplicate() has no keyword 'metod' (did you mean 'method'?), 'zzz'",
        "It takes columns, method, ",
    ),
    "inherited": (
        lambda: EvolComplexity(llm, **{"num_evolution": 1}),
        "EvolComplexity() has no keyword 'num_evolution' (did you mean 'num_evolutions'?)",
        "check_gain",
    ),
    "passed on": (
        lambda: Passing(llm, templat="x"),
        "Passing() passes 'templat' (did you mean 'template'?) on to TextGeneration.__init__(), which has no such "
        "keyword",
        "It takes llm, mine, template, ",
    ),
    "passed on, its own": (
        lambda: Passing(llm, mne=1),
        "Passing() passes 'mne' (did you mean 'mine'?) on to TextGeneration.__init__(), which has no such keyword",
        "It takes llm, mine, template, ",
    ),
    "a user's own": (
        lambda: Closed(llm, **{"mne": 1}),
        "Closed() has no keyword 'mne' (did you mean 'mine'?)",
        "It takes llm, mine.",
    ),
    "written by a user's class": (
        lambda: Stray(llm),
        "Stray() passes 'nmae' (did you mean 'name'?) on to TextGeneration.__init__(), which has no such keyword",
        "system_prompt",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_call_that_does_not_fit_says_what_is_wanted(case: str) -> None:
    call, message, hint = CASES[case]
    with pytest.raises(CallError) as error:
        call()
    assert error.value.message == message
    assert hint in error.value.hint
    assert error.value.exit_code == EXIT_USAGE
    # Code that catches Python's own error still works.
    assert isinstance(error.value, TypeError)
    assert isinstance(error.value, ConfigurationError)


@pytest.mark.parametrize(("kind", "value", "said"), [(Broken, [], "int() argument must be"), (Inner, 1, "fromkeys")])
def test_a_type_error_in_a_users_constructor_stays_as_it_is(kind: Any, value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)) as error:
        kind(value)
    assert type(error.value) is TypeError


def test_a_right_keyword_that_a_users_class_takes_out_is_passed() -> None:
    class Taking(TextGeneration):
        def __init__(self, llm: LLM, **settings: Any) -> None:
            self.extra = settings.pop("extra")
            super().__init__(llm, **settings)

    assert Taking(llm, extra=3, max_reasks=0).extra == 3


def test_what_a_users_decorator_takes_decides() -> None:
    def doubled(init: Any) -> Any:
        @functools.wraps(init)
        def taking(self: Any, *args: Any, twice: int, **settings: Any) -> None:
            init(self, *args, num_generations=twice * LIMIT, **settings)

        return taking

    class Decorated(TextGeneration):
        __init__ = doubled(TextGeneration.__init__)

    made: Any = Decorated
    assert made(llm, twice=2).num_generations == 2 * LIMIT
    assert "LIMIT" in made(llm, twice=2).settings()["code"]
    with pytest.raises(CallError, match="needs 'twice'"):
        made(llm)
    with pytest.raises(CallError, match=re.escape("'templat' (did you mean 'template'?)")):
        made(llm, twice=2, templat="x")


def test_classes_that_mix_in_others_are_made_as_before() -> None:
    class Abstract(Same, ABC):
        def __init__(self, value: int) -> None:
            super().__init__(name="x")
            self.value = value

    class Concrete(Abstract):
        pass

    made = Concrete(3)
    assert (made.value, copy.copy(made).value) == (3, 3)
    with pytest.raises(CallError, match=re.escape("Concrete() needs 'value'")):
        Concrete(**{})


def test_a_signature_is_still_the_class_own() -> None:
    assert list(inspect.signature(TextGeneration).parameters) == ["llm", "template", "tools", "tool_choice", "settings"]
    assert list(inspect.signature(Passing).parameters) == ["llm", "mine", "settings"]
    assert inspect.iscoroutinefunction(Pipeline().arun)


def test_the_code_of_a_users_constructor_still_decides_results() -> None:
    code = Passing(llm).settings()["code"]
    assert {"LIMIT", "Passing", "Passing.__init__", "Passing.__init__(mine)"} <= set(code)


def test_a_pipeline_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "job.py"
    file.write_text('from asyncsynth import *\n\nTextGeneration(LLM(model="m"), templat="x")\n')
    with pytest.raises(ConfigurationError, match=r"job.py:3: TextGeneration\(\) has no keyword 'templat' \(did you"):
        load_pipeline(str(file))


def test_nothing_is_near_to_what_is_far() -> None:
    assert nearest("zzz", ["name", "llm"]) == ""
