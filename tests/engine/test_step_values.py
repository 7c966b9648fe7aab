"""What a step returns is JSON from then on: the same value after an interruption as without one, or a failed row."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncsynth import LLM, CombineOutputs, Dropped, Filter, LoadDataFromDicts, Pipeline, TextGeneration, step, task
from asyncsynth.errors import InputError, RecordError
from asyncsynth.inputs.reader import BadRow, Reader, SourceRow
from asyncsynth.pipeline import Graph, JoinStep, RowStep, SourceStep, Step
from asyncsynth.pipeline.seen import SeenRow
from asyncsynth.records import Row
from asyncsynth.storage.entries import FailedRow
from tests.kit.loops import run_async
from tests.kit.pipelines import MODELS, server
from tests.kit.values import REFUSED, Colour, Text, anything
from tests.kit.walking import Model, Source, walk


class _Made:
    """The value that a step returns is no setting of it."""

    not_fingerprinted = frozenset({"value"})

    def __init__(self, value: Any) -> None:
        self.value = value
        super().__init__()

    def settings(self) -> dict[str, Any]:
        return {"step": type(self).__name__}


class Row1(_Made, RowStep):
    def apply(self, row: Row) -> Row:
        return {**row, "v": self.value}


class Rows(_Made, RowStep):
    def apply(self, row: Row) -> list[Row]:
        return [{**row, "v": 0}, {**row, "v": self.value}]


class InPlace(_Made, RowStep):
    def apply(self, row: Row) -> Row:
        row["v"] = self.value
        return row


class Asked(_Made, Model):
    def answer(self, row: Row, ctx: Any) -> Any:
        return [{"v": self.value}]


class Noted(_Made, Model):
    def answer(self, row: Row, ctx: Any) -> Any:
        ctx.notes["v"] = self.value
        return [{"v": 1}]


class Joined(_Made, JoinStep):
    def join(self, rows: Sequence[Row]) -> Row:
        return {**rows[0], "v": self.value}


class Probe(Model):
    """Sees the value, and journals what it saw."""

    def settings(self) -> dict[str, Any]:
        return {"step": "Probe"}

    def answer(self, row: Row, ctx: Any) -> Any:
        return [{"seen": repr(row["v"])}]


def graph_of(middle: Step) -> Graph:
    with Graph("values") as graph:
        Source() >> middle >> Probe() >> Probe()
    return graph


KINDS = [Row1, Rows, InPlace, Asked, Noted, Joined]


@pytest.mark.slow
@pytest.mark.row(31)
@settings(max_examples=200, deadline=None)
@given(anything | st.sampled_from([value for value, _, _ in REFUSED]) | st.sampled_from([Text("é"), (1, 2)]), st.data())
def test_an_interrupted_walk_has_the_values_of_a_straight_one(value: Any, data: Any) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    straight, watched = walk(graph_of(kind(value)), {"x": 1})
    done = [*watched.saved, *straight.unsaved]
    for finished in range(len(done) + 1):
        resumed, _ = walk(graph_of(kind(value)), {"x": 1}, done[:finished])
        assert repr(resumed.rows) == repr(straight.rows)
        assert resumed.failed == straight.failed
        assert resumed.reused == sum(len(results) for _, results in done[:finished])
    assert all(failed.reason == "not_json" for failed in straight.failed)
    for row in straight.rows["default"]:
        assert row["seen"] == repr(row["v"])  # what the later steps saw is what is on the disk
        assert repr(orjson.loads(orjson.dumps(row))) == repr(row)
    came_out = len(straight.rows["default"])
    assert came_out + len(straight.failed) == (2 if kind is Rows and came_out else 1)


@pytest.mark.row(31)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tuple_is_a_list_for_the_next_step(kind: Any) -> None:
    straight, watched = walk(graph_of(kind((1, 2))), {"x": 1})
    resumed, _ = walk(graph_of(kind((1, 2))), {"x": 1}, [*watched.saved, *straight.unsaved])
    assert straight.failed == []
    assert repr(resumed.rows) == repr(straight.rows)
    assert all(row["seen"] == repr(row["v"]) for row in straight.rows["default"])
    assert "(1, 2)" not in repr(straight.rows)


@pytest.mark.row(31)
@pytest.mark.parametrize("kind", KINDS)
def test_the_message_names_the_place_the_type_and_the_way_out(kind: Any) -> None:
    value = [{}, {"when": datetime.datetime(2024, 1, 1)}]
    walked, _ = walk(graph_of(kind(value)), {"x": 1})
    (failed,) = walked.failed
    place = "ctx.notes.v[1].when" if kind is Noted else "v[1].when"
    assert (failed.step, failed.reason) == (graph_of(kind(value)).steps[1].name, "not_json")
    assert failed.message == (
        f"the output {place!r} is of type datetime, which JSON cannot carry unchanged. Write value.isoformat()."
    )


def test_a_task_of_this_packages_own_is_checked_too() -> None:
    class Rated(TextGeneration):
        def parse(self, choice: Any, row: Row) -> Row:
            raise NotImplementedError

        async def generate(self, row: Row, ctx: Any) -> list[Row]:
            return [{"generation": "é", "model_name": float("inf")}]

    Rated.__module__ = "asyncsynth.tasks.rated"
    with Graph("own") as graph:
        Source() >> Rated(llm=LLM(model="m"))
    walked, _ = walk(graph, {"instruction": "x"})
    assert walked.failed[0].message.startswith("the output 'model_name' is inf")


class Kind(enum.IntEnum):
    GOOD = 1


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, "of type set"),
        (float("nan"), "NaN"),
        (Kind.GOOD, "of type Kind, an enum"),
        (Colour.RED, "of type Colour, an enum"),
        ("\ud83d", "lone surrogate"),
        (2**70, "over 64 bits"),
    ],
)
def test_a_bad_value_in_the_middle_costs_its_row_and_no_run(tmp_path: Path, value: Any, message: str) -> None:
    @task(llm=LLM(model=MODELS[0]), inputs=["instruction"], outputs=["out"])
    async def middle(row: Row, ctx: Any) -> Row:
        return {"out": value if row["instruction"] == "n 3" else "x"}

    with Pipeline(name="middle") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": f"n {number}"} for number in range(6)])
        load >> middle() >> TextGeneration(llm=LLM(model=MODELS[0]))

    async def main() -> None:
        async with server() as fake:
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
        counts = result.report.counts
        assert (counts.ok, counts.failed, dict(counts.failures)) == (5, 1, {"not_json": 1})
        journal = b"".join(path.read_bytes() for path in sorted((tmp_path / "run").rglob("*.jsonl")))
        assert message.encode() in journal

    run_async(main())


class OwnReader(Reader):
    """A reader that gives what it likes."""

    kind = "own"

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.name = "own"
        self._made = made

    def placed(self, limit: int | None = None, shard: Any = None) -> Iterator[tuple[int, SourceRow | BadRow]]:
        yield 0, SourceRow(0, None, {"instruction": "x"})
        yield 1, SourceRow(1, None, self._made)

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "head_bytes": 0, "head_sha256": ""}


class OwnSource(SourceStep):
    def __init__(self, made: Any) -> None:
        self._made = made
        super().__init__()

    def open(self) -> Reader:
        return OwnReader(self._made)


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"instruction": "y", "when": [datetime.date(2024, 1, 1)]}, r"record 1: when\[0\] is of type date; a plain"),
        ({"instruction": "y", "score": float("nan")}, "record 1: score is NaN; a plain JSON"),
        (["instruction"], "record 1: the source returned list; a dict was expected"),
    ],
)
def test_a_source_of_the_users_follows_the_rule_for_input(tmp_path: Path, made: Any, message: str) -> None:
    with Pipeline(name="source") as pipeline:
        OwnSource(made) >> TextGeneration(llm=LLM(model=MODELS[0]))

    async def main() -> None:
        async with server() as fake:
            with pytest.raises(InputError, match=message):
                await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    run_async(main())


# --- the cause of an error -------------------------------------------------------------------------

PRICES: dict[str, int] = {}


@step(inputs=["instruction"], outputs=["price"])
def looked_up(row: Row) -> Row:
    return {"price": PRICES["gold"]}


@step(inputs=["instruction"], outputs=["price"])
def mistyped(row: Row) -> Row:
    return {"price": row["instrction"]}


class LooksUp(RowStep):
    def apply(self, row: Row) -> Row:
        return {**row, "price": PRICES["gold"]}


class Mistypes(RowStep):
    def apply(self, row: Row) -> Row:
        return {**row, "price": row["instrction"]}


class AsksLookingUp(Model):
    def answer(self, row: Row, ctx: Any) -> Any:
        return [{"price": PRICES["gold"]}]


class AsksMistyping(Model):
    def answer(self, row: Row, ctx: Any) -> Any:
        return [{"price": row["instrction"]}]


class JoinsLookingUp(JoinStep):
    def join(self, rows: Sequence[Row]) -> Row:
        return {"price": PRICES["gold"]}


class JoinsMistyping(JoinStep):
    def join(self, rows: Sequence[Row]) -> Row:
        return {"price": rows[0]["instrction"]}


@task(llm=LLM(model="m"), inputs=["instruction"], outputs=["price"])
async def asked_looking_up(row: Row, ctx: Any) -> Row:
    return {"price": PRICES["gold"]}


@task(llm=LLM(model="m"), inputs=["instruction"], outputs=["price"])
async def asked_mistyping(row: Row, ctx: Any) -> Row:
    return {"price": row["instrction"]}


def only(middle: Step) -> FailedRow:
    """The failed row of a graph of this one step."""
    with Graph("errors") as graph:
        Source() >> middle
    walked, _ = walk(graph, {"instruction": "x", "tags": ["a"]})
    (failed,) = walked.failed
    assert failed.step == middle.name
    return failed


@pytest.mark.parametrize(
    "make",
    [looked_up, LooksUp, AsksLookingUp, JoinsLookingUp, asked_looking_up, lambda: Filter(lambda row: PRICES["gold"])],
)
def test_a_key_error_of_the_users_code_is_no_missing_column(make: Any) -> None:
    failed = only(make())
    assert failed.reason == "step_error"
    assert failed.message.startswith("KeyError: 'gold' (")
    path, _, line = failed.message.removeprefix("KeyError: 'gold' (").removesuffix(")").rpartition(":")
    assert path.endswith("tests/engine/test_step_values.py")
    assert 'PRICES["gold"]' in Path(__file__).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize(
    "make",
    [mistyped, Mistypes, AsksMistyping, JoinsMistyping, asked_mistyping, lambda: Filter(lambda row: row["instrction"])],
)
def test_a_mistyped_column_is_told_with_the_nearest_one(make: Any) -> None:
    failed = only(make())
    assert failed.reason == "missing_column"
    assert failed.message.startswith(
        "the row has no column 'instrction' (did you mean 'instruction'?); this step sees instruction"
    )
    assert "test_step_values.py:" in failed.message


def test_an_input_that_the_row_lacks_is_a_missing_column() -> None:
    @step(inputs=["instrction"], outputs=["v"])
    def needs(row: Row) -> Row:
        return {"v": 1}

    for middle in (needs(), TextGeneration(llm=LLM(model="m"), input_mappings={"instruction": "instrction"})):
        failed = only(middle)
        assert (failed.reason, failed.message) == (
            "missing_column",
            "the row has no column 'instrction' (did you mean 'instruction'?); this step sees instruction, tags",
        )


@pytest.mark.parametrize("change", [lambda row: row.update(instruction="y"), lambda row: row["tags"].append("b")])
def test_a_filter_that_changes_its_row_is_told(change: Any) -> None:
    failed = only(Filter(lambda row: change(row) or True))
    assert (failed.reason, "a @step changes them" in failed.message) == ("step_error", True)


@pytest.mark.row(31)
def test_what_a_step_changes_in_its_row_no_other_branch_sees() -> None:
    class Changes(RowStep):
        def apply(self, row: Row) -> Row:
            row["tags"].append({"a": 1})
            return {"mine": row["tags"]}

    class Asks(Model):
        def answer(self, row: Row, ctx: Any) -> Any:
            row["tags"].append("c")
            return [{"asked": row["tags"]}]

    row = {"tags": ["x"]}
    with Graph("changes") as graph:
        source = Source()
        ends = [Changes(), Asks(), Changes()]
        source >> ends
        ends >> CombineOutputs()
    walked, _ = walk(graph, row)
    assert walked.rows["default"] == [{"tags": ["x"], "mine": ["x", {"a": 1}], "asked": ["x", "c"]}]
    assert row == {"tags": ["x"]}


@pytest.mark.parametrize("made", [None, 3, "text", [1], [None]])
def test_what_is_no_row_fails_the_row(made: Any) -> None:
    class Wrong(RowStep):
        def apply(self, row: Row) -> Any:
            return made

    failed = only(Wrong())
    assert failed.reason == "bad_output"
    assert "Wrong.apply returned " in failed.message


class Declares(TextGeneration):
    def __init__(self, made: Any, **settings: Any) -> None:
        self._made = made
        super().__init__(llm=LLM(model="m"), **settings)

    async def sample(self, row: Row, ctx: Any, number: int) -> Row:
        return dict(self._made)


@pytest.mark.parametrize("settings", [{}, {"num_generations": 2}, {"num_generations": 2, "group_generations": True}])
def test_a_task_returns_the_columns_that_it_declares(settings: dict[str, Any]) -> None:
    failed = only(Declares({"generation": "x", "modle_name": "m"}, **settings))
    assert failed.reason == "bad_output"
    assert failed.message.endswith("lacks model_name and has modle_name, which outputs= does not declare")


def test_a_row_step_returns_the_columns_that_it_declares() -> None:
    class Forgets(RowStep):
        outputs = ("x",)

        def apply(self, row: Row) -> list[Row]:
            return [{**row, "y": 1}, row]

    failed = only(Forgets(output_mappings={"x": "y"}))
    assert failed.reason == "bad_output"
    assert "returned a row without 'y'" in failed.message


@pytest.mark.parametrize("prompt", ["text", None, ["text"], {"role": "user", "content": "text"}])
def test_a_prompt_that_is_no_list_of_messages_is_not_sent(prompt: Any) -> None:
    class Asks(TextGeneration):
        def messages(self, row: Row, ctx: Any) -> Any:
            return prompt

    failed = only(Asks(llm=LLM(model="m")))
    assert (failed.reason, "a list of messages was expected" in failed.message) == ("bad_prompt", True)


def test_a_method_that_must_not_wait_is_told() -> None:
    class Waits(RowStep):
        async def apply(self, row: Row) -> Row:  # type: ignore[override]
            return row

    class JoinWaits(JoinStep):
        async def join(self, rows: Sequence[Row]) -> Row:  # type: ignore[override]
            return {}

    for made in (Waits(), JoinWaits()):
        assert "must be no `async def`" in only(made).message


@pytest.mark.parametrize(
    "look",
    [
        lambda row: row.pop("instrction"),
        lambda row: row.copy()["instrction"],
        lambda row: row.__delitem__("instrction"),
    ],
)
def test_a_column_is_missing_however_it_is_looked_up(look: Any) -> None:
    assert only(Filter(look)).reason == "missing_column"


def test_a_seen_row_is_a_dict_otherwise() -> None:
    row = SeenRow({"a": [1], "b": 2})
    assert row.pop("c", None) is None
    assert (row.copy(), row.copy()["a"] is row["a"]) == ({"a": [1], "b": 2}, True)
    assert (row.pop("b"), dict(row)) == (2, {"a": [1]})
    del row["a"]
    assert not row


def test_no_rows_are_a_drop_with_a_reason() -> None:
    class Empty(RowStep):
        def apply(self, row: Row) -> list[Row]:
            return []

    class Unfit(Model):
        def answer(self, row: Row, ctx: Any) -> Any:
            raise Dropped("unfit")

    for middle, reason in ((Empty(), "no_rows"), (Unfit(), "unfit")):
        with Graph("drops") as graph:
            Source() >> middle
        walked, _ = walk(graph, {"x": 1})
        assert (walked.rows, walked.failed) == ({"default": []}, [])
        assert walked.dropped == {middle.name: {reason: 1}}


def test_a_join_may_drop_and_its_faults_cost_their_row() -> None:
    class Drops(JoinStep):
        def join(self, rows: Sequence[Row]) -> Row:
            raise Dropped("unfit")

    class Breaks(JoinStep):
        def join(self, rows: Sequence[Row]) -> Row:
            raise ZeroDivisionError("my bug")

    with Graph("drops") as graph:
        Source() >> Drops(name="join")
    walked, _ = walk(graph, {"x": 1})
    assert walked.dropped == {"join": {"unfit": 1}}
    assert only(Breaks()).message.startswith("ZeroDivisionError: my bug (")


def test_the_cause_is_kept_whatever_it_holds() -> None:
    class Raises(RowStep):
        def apply(self, row: Row) -> Row:
            raise ValueError("\ud83d")

    class Leaves(RowStep):
        def apply(self, row: Row) -> Row:
            raise Dropped(7)  # type: ignore[arg-type]

    class Speechless(Exception):
        def __str__(self) -> str:
            raise KeyError("words")

    class RaisesSpeechless(RowStep):
        def apply(self, row: Row) -> Row:
            raise Speechless

    class Refuses(RowStep):
        def apply(self, row: Row) -> Row:
            raise RecordError("m\ud83d", reason="r\ud83d")

    class LeavesOddly(RowStep):
        def apply(self, row: Row) -> Row:
            raise Dropped("\ud83d")

    assert only(Raises()).message.startswith("ValueError: \\ud83d (")
    assert only(RaisesSpeechless()).message.startswith("Speechless (")
    assert [getattr(only(Refuses()), name) for name in ("reason", "message")] == ["r\\ud83d", "m\\ud83d"]
    with Graph("drops") as graph:
        Source() >> Leaves(name="leaves")
    walked, _ = walk(graph, {"x": 1})
    assert walked.dropped == {"leaves": {"7": 1}}
    with Graph("drops") as graph:
        Source() >> LeavesOddly(name="leaves")
    walked, _ = walk(graph, {"x": 1})
    assert (walked.dropped, walked.failed) == ({"leaves": {"\\ud83d": 1}}, [])
