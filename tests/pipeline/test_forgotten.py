"""A method that a subclass forgot is an error when the step is made, not at the first record."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pytest

from asyncsynth import LLM, GlobalStep, JoinStep, LoadDataFromDicts, RowStep, Task
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline import Graph, ModelStep, SourceStep, Step
from asyncsynth.records import Row


class A:
    def messages(self, row: Row, ctx: Any) -> Any:
        return [{"role": "user", "content": "x"}]


class B:
    def parse(self, choice: Any, row: Row) -> Row:
        return {}


class C:
    async def sample(self, row: Row, ctx: Any, number: int) -> Row:
        return {}


class D:
    def models(self) -> Any:
        return ()


class E:
    def conversation(self, row: Row, ctx: Any) -> Any:
        return []


@pytest.mark.parametrize(
    ("bases", "method", "hint"),
    [
        ((RowStep,), "apply", "def apply(self, row):"),
        ((JoinStep,), "join", "def join(self, rows):"),
        ((GlobalStep,), "decide", "def decide(self, rows):"),
        ((SourceStep,), "open", "def open(self):"),
        ((D, ModelStep), "generate", "async def generate(self, row, ctx):"),
        ((ModelStep,), "generate", "async def generate(self, row, ctx):"),
        ((Task,), "messages", "def messages(self, row, ctx):"),
        ((B, Task), "messages", "def messages(self, row, ctx):"),
        ((A, Task), "parse", "def parse(self, choice, row):"),
        ((E, Task), "parse", "def parse(self, choice, row):"),
    ],
)
def test_a_forgotten_method_is_told_by_class_and_name(bases: tuple[type, ...], method: str, hint: str) -> None:
    mine: Any = type("Mine", bases, {})
    arguments = {"llm": LLM(model="m")} if Task in bases else {}
    message = rf"Mine does not define {method}\(\), which every {bases[-1].__name__} must"
    with pytest.raises(PipelineError, match=message) as error:
        mine(**arguments)
    assert hint in error.value.hint
    assert "class Mine" in error.value.hint


@pytest.mark.parametrize("bases", [(A, B, Task), (C, Task), (E, B, Task)])
def test_a_task_that_answers_in_its_own_way_needs_no_other(bases: tuple[type, ...]) -> None:
    mine: Any = type("Mine", bases, {})
    assert isinstance(mine(llm=LLM(model="m")), Step)


def test_an_abstract_attribute_is_told_by_name() -> None:
    class Styled(RowStep):
        @property
        @abstractmethod
        def style(self) -> str: ...

        def apply(self, row: Row) -> Row:
            return row

    with pytest.raises(PipelineError, match="Plain does not define style, which every Styled must"):
        type("Plain", (Styled,), {})()


def test_a_constructor_that_does_not_call_its_bases_is_told() -> None:
    class Alone(RowStep):
        def __init__(self) -> None:
            self.x = 1

        def apply(self, row: Row) -> Row:
            return row

    with Graph("g"), pytest.raises(PipelineError, match=r"Alone.__init__ does not call super\(\).__init__\(\)"):
        LoadDataFromDicts(data=[{}]) >> Alone()
