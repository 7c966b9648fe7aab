"""Rows are conserved: for every step, the rows that come in are those that go out, failed, or were dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from asyncsynth import LLM, CombineOutputs, Dropped, ExpandColumns, Filter, GroupColumns, MergeBranches, TextGeneration
from asyncsynth.engine.joins import related
from asyncsynth.errors import PipelineError, ServerRefused
from asyncsynth.pipeline import Graph, JoinStep, RowStep, Step
from asyncsynth.pipeline.step import RowCount
from asyncsynth.records import Row, canonical_json, stable_seed
from tests.kit.walking import Model, Source, Watched, walk


def fate(step: Step, row: Row, of: int) -> int:
    """A number below `of` that depends on the step and the row alone."""
    return stable_seed(step.name, canonical_json(row)) % of


class Quick(Step):
    """Reading the source of a class for its fingerprint takes longer than a walk."""

    def settings(self) -> dict[str, Any]:
        return {"step": type(self).__name__, "name": self.name}


class Expand(Quick, RowStep):
    """One row, none, several, or an error: what a step of a user's may do."""

    def apply(self, row: Row) -> Row | list[Row]:
        match fate(self, row, 7):
            case 0:
                raise Dropped("unfit")
            case 1:
                raise ZeroDivisionError
            case 2:
                return []
            case 3 | 4:
                return {**row, "y": 1}
            case number:
                return [{**row, "y": child} for child in range(number - 3)]


class Sampled(Quick, Model):
    """`n` answers; one row in five fails, one is left out."""

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__()

    def row_count(self) -> RowCount:
        return self.n

    def answer(self, row: Row, ctx: Any) -> Any:
        match fate(self, row, 5):
            case 0:
                raise ValueError("no answer")
            case 1:
                raise Dropped("unfit")
            case _:
                return [{"z": number} for number in range(self.n)]


class Uneven(Quick, Model):
    """As many answers as it likes."""

    def answer(self, row: Row, ctx: Any) -> Any:
        return [{"z": number} for number in range(fate(self, row, 4))]


class Some(Quick, RowStep):
    """Drops one row in four; keeps their number."""

    def row_count(self) -> RowCount:
        return 1

    def apply(self, row: Row) -> Row:
        if fate(self, row, 4):
            return row
        raise Dropped("filtered")


class Picky(Quick, JoinStep):
    """A join that fails and drops."""

    def __init__(self, missing: Any) -> None:
        self.missing = missing
        super().__init__()

    def join(self, rows: Sequence[Row]) -> Row:
        match fate(self, {"rows": list(rows)}, 5):
            case 0:
                raise Dropped("unfit")
            case 1:
                return rows[0]["no such column"]
            case _:
                return {column: value for row in rows for column, value in row.items()}


missing = st.sampled_from(["drop", "none"])
one_step = st.one_of(
    st.just(Some),
    st.just(Expand),
    st.just(lambda: ExpandColumns("xs")),
    st.sampled_from([1, 1, 2, 3]).map(lambda n: lambda: Sampled(n)),
    st.just(Uneven),
)
a_join = st.one_of(
    missing.map(lambda how: lambda: GroupColumns("xs", "xs", missing=how)),
    missing.map(lambda how: lambda: CombineOutputs(missing=how)),
    missing.map(lambda how: lambda: Picky(how)),
    st.just(MergeBranches),
    st.none(),  # no join: each branch ends in a leaf of its own
)
#: A way is a list of steps and forks; a fork is its branches, which are ways, and the join.
ways = st.recursive(
    st.lists(one_step, max_size=3),
    lambda way: st.lists(st.one_of(one_step, st.tuples(st.lists(way, min_size=2, max_size=3), a_join)), max_size=3),
    max_leaves=12,
)


def build(way: Any, start: Step) -> Step | None:
    """Connects the steps of `way` after `start`; None when they have ended in several leaves."""
    here: Step | None = start
    for part in way:
        if here is None:
            return None
        if isinstance(part, tuple):
            branches, join = part
            ends = []
            for branch in branches:
                first = Some()
                here >> first
                ends.append(build(branch, first))
            whole = [end for end in ends if end is not None]
            here = None
            if join is not None and len(whole) == len(ends):
                here = join()
                whole >> here
        else:
            following = part()
            here >> following
            here = following
    return here


@pytest.mark.slow
@pytest.mark.row(30)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(ways, st.integers(0, 1000))
def test_every_row_that_goes_into_a_step_comes_out_or_is_counted(way: Any, seed: int) -> None:
    with Graph("random") as graph:
        source = Source()
        build(way, source)
    if refusal := refused(graph):
        assert "would have no partner" in refusal
        event("refused")
        return
    walked, watched = walk(graph, {"seed": seed, "xs": [[1, 2], [3, 4, 5]]})
    check(graph, walked, watched)
    again, watched_again = walk(graph, {"seed": seed, "xs": [[1, 2], [3, 4, 5]]}, [*watched.saved, *walked.unsaved])
    assert (again.rows, again.dropped) == (walked.rows, walked.dropped)
    assert sorted(map(repr, again.failed)) == sorted(map(repr, walked.failed))
    assert watched_again.came_out == watched.came_out


def refused(graph: Graph) -> str:
    try:
        graph.plan()
    except PipelineError as error:
        return str(error)
    return ""


def check(graph: Graph, walked: Any, watched: Watched) -> None:
    """The promise, for every step of a walk."""
    makers = {step.name: [left for left, right in graph.edges if right is step] for step in graph.steps}
    for step in graph.steps:
        if isinstance(step, Source):
            continue
        went_in, came_out = watched.went_in[step.name], watched.came_out[step.name]
        failed = [row.key for row in walked.failed if row.step == step.name]
        dropped = sum(walked.dropped.get(step.name, {}).values())
        assert went_in == [watched.came_out.get(maker.name, ["7"]) for maker in makers[step.name]]
        assert len(set(came_out)) == len(came_out)
        if isinstance(step, JoinStep):
            rows = [key for branch in went_in for key in branch]
            keys = rows if step.whichever else set(rows)
            assert set(came_out) <= set(keys)
            assert len(keys) == len(came_out) + len(failed) + dropped
            for key in came_out:
                assert sum(related(key, other) for other in came_out) == 1
            event("a join with rows" if came_out else "a join without")
        else:
            (keys_in,) = went_in
            expanded = [key for key in keys_in if any(related(key, made) for made in came_out)]
            assert len(keys_in) == len(expanded) + len(failed) + dropped
            if isinstance(step, Sampled):
                assert len(came_out) == step.n * len(expanded)


# --- single cases ----------------------------------------------------------------------------------


class Tagged(Model):
    """Writes its name to a column, and fails the rows of which `fails` is true."""

    def __init__(self, column: str, fails: Any = None, count: int | None = None, name: str | None = None) -> None:
        self.column = column
        self.count = count
        self._fails = fails
        super().__init__(name=name)

    def answer(self, row: Row, ctx: Any) -> Any:
        if self._fails is not None and self._fails(row):
            raise ValueError("no answer")
        count = self.count if self.count is not None else 1
        return [{self.column: f"{self.name}{number}"} for number in range(count)]


def joined(join: JoinStep, *branches: Step | list[Step], source: Step | None = None) -> Graph:
    """A fork of `branches`, each a step or a chain of steps, and a join."""
    with Graph("joined") as graph:
        first = source or Source()
        ends = []
        for branch in branches:
            chain = branch if isinstance(branch, list) else [branch]
            here = first
            for step in chain:
                here = here >> step
            ends.append(here)
        ends >> join
    return graph


@pytest.mark.row(30)
@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (lambda: Tagged("b", fails=lambda row: True), "partner_failed"),
        (lambda: Filter(lambda row: False), "partner_dropped"),
        (lambda: Tagged("b", count=2), "no_partner"),
        (lambda: Tagged("b", count=0), "partner_dropped"),
    ],
)
def test_a_row_without_a_partner_is_counted_with_the_reason(lose: Any, reason: str) -> None:
    walked, watched = walk(joined(CombineOutputs(name="join"), Tagged("a"), lose()), {"x": 1})
    assert watched.came_out["join"] == []
    assert walked.dropped["join"] == {reason: 3 if reason == "no_partner" else 1}


@pytest.mark.row(30)
def test_a_part_of_a_row_that_failed_accounts_for_its_partner() -> None:
    lists = joined(
        CombineOutputs(name="join"),
        [ExpandColumns({"xs": "x"}), Tagged("a", fails=lambda row: row["x"] == 2)],
        [ExpandColumns({"xs": "x"}), Filter(lambda row: row["x"] != 3)],
    )
    walked, watched = walk(lists, {"xs": [1, 2, 3, 4]})
    assert watched.came_out["join"] == ["7.0", "7.3"]
    assert walked.dropped["join"] == {"partner_failed": 1, "partner_dropped": 1}


@pytest.mark.row(30)
def test_a_row_may_keep_none_for_the_branch_that_lost_it() -> None:
    fails = Tagged("generation", fails=lambda row: True)
    group = GroupColumns("generation", "generations", missing="none")
    walked, _ = walk(joined(group, Tagged("generation", name="a"), fails, Tagged("generation", name="c")), {"x": 1})
    assert walked.rows["default"] == [{"x": 1, "generations": ["a0", None, "c0"]}]
    assert (len(walked.failed), walked.dropped) == (1, {})
    # A branch that made another number of rows has no row to be kept.
    group = GroupColumns("generation", "generations", missing="none")
    walked, _ = walk(joined(group, Tagged("generation"), Tagged("generation", count=2)), {"x": 1})
    assert walked.rows["default"] == []
    assert walked.dropped == {"group_columns_0": {"no_partner": 3}}


@pytest.mark.row(30)
def test_the_rows_of_an_expansion_that_a_branch_failed_before_it_are_all_kept() -> None:
    combine = CombineOutputs(missing="none")
    failing = [Tagged("b", fails=lambda row: True), ExpandColumns({"xs": "x"})]
    walked, _ = walk(joined(combine, ExpandColumns({"xs": "x"}), failing), {"xs": [1, 2]})
    assert walked.rows["default"] == [{"x": 1}, {"x": 2}]


@pytest.mark.row(30)
def test_a_row_is_not_kept_beside_the_rows_made_of_it() -> None:
    expanding = [ExpandColumns({"xs": "x"}), Filter(lambda row: row["x"] > 1)]
    walked, watched = walk(joined(CombineOutputs(name="join", missing="none"), Tagged("a"), expanding), {"xs": [1, 2]})
    assert watched.came_out["join"] == []
    assert walked.dropped["join"] == {"no_partner": 2}


@pytest.mark.row(30)
def test_merged_branches_keep_the_order_of_the_input_and_the_first_branch_wins() -> None:
    with Graph("routed") as graph:
        rows = ExpandColumns({"xs": "x"})
        short, long_ = Filter(lambda row: row["x"] <= 10), Filter(lambda row: row["x"] > 9)
        every = Filter(lambda row: True)
        a, b, c = Tagged("a"), Tagged("b", count=2), Tagged("c")
        Source() >> rows >> [short, long_, every]
        short >> a
        long_ >> b
        every >> c
        [a, b, c] >> MergeBranches() >> Tagged("d", count=2)
    walked, watched = walk(graph, {"xs": list(range(12))})
    # 0 to 10 come by the first branch, 11 twice by the second; the second's 10 and all of the third's lose.
    numbers = [*range(11), 11, 11]
    assert [row["x"] for row in walked.rows["default"]] == [x for x in numbers for _ in range(2)]
    assert watched.came_out["merge_branches_0"] == [*(f"7.{x}" for x in range(11)), "7.11.0", "7.11.1"]
    assert walked.dropped["merge_branches_0"] == {"other_branch": 14}


def test_merged_rows_have_the_columns_of_all_branches() -> None:
    merge = MergeBranches()
    flow = merge.flow([{"x": "load", "text": "a", "score": "a"}, {"x": "load", "text": "b"}])
    assert flow == {"x": "load", "text": merge.name, "score": "a"}
    assert merge.join([{}, {"x": 1, "text": "t"}]) == {"x": 1, "text": "t", "score": None}


def test_columns_of_a_branch_without_the_row_are_none() -> None:
    combine = CombineOutputs(missing="none")
    combine.flow([
        {"x": "load", "a": "s", "model_name": "s"},
        {"x": "load", "b": "t", "model_name": "t"},
        {"x": "load", "b": "t", "c": "u", "model_name": "t"},
    ])  # fmt: skip
    a, b, c = {"x": 1, "a": 2, "model_name": "m"}, {"x": 1, "b": 3, "model_name": "n"}, {"x": 1, "b": 3, "c": 4}
    assert combine.join([{}, b, {**b, **c}]) == {"x": 1, "a": None, "b": 3, "c": 4, "model_name": "n"}
    assert combine.join([a, b, {}]) == {"x": 1, "a": 2, "b": 3, "c": None, "model_name": "n"}
    # The name of the model is the last branch's: another's would be taken for it.
    assert combine.join([a, {}, {}]) == {"x": 1, "a": 2, "b": None, "c": None, "model_name": None}
    group = GroupColumns("g", "gs", missing="none")
    group.flow([{"x": "load", "g": "s", "p": "s"}, {"x": "load", "g": "t", "q": "t"}])
    assert group.join([{}, {"x": 1, "g": 2, "q": 3}]) == {"x": 1, "p": None, "q": 3, "gs": [None, 2]}


def test_missing_is_drop_or_none_and_no_setting_of_a_run_that_does_not_use_it() -> None:
    with pytest.raises(PipelineError, match="missing is 'keep'"):
        CombineOutputs(missing="keep")  # type: ignore[arg-type]
    assert "missing" not in GroupColumns("x").settings()
    assert GroupColumns("x", missing="none").settings()["missing"] == "none"


# --- the check before the run ----------------------------------------------------------------------


def text(n: int = 1, group: bool = False) -> TextGeneration:
    return TextGeneration(llm=LLM(model="m"), num_generations=n, group_generations=group)


def expand() -> ExpandColumns:
    return ExpandColumns("xs")


REFUSED: list[list[list[Any]]] = [
    [[text], [lambda: text(2)]],
    [[lambda: text(3)], [lambda: text(2)]],
    [[text], [expand]],
    [[], [expand]],
    [[lambda: text(6)], [lambda: text(2), lambda: text(3)]],
    [[lambda: text(2), lambda: text(3)], [lambda: text(3), lambda: text(2)]],
    [[expand], [lambda: text(2)], [lambda: text(3)]],
]
FITTING: list[list[list[Any]]] = [
    [[lambda: text(2)], [lambda: text(2)]],
    [[text], [lambda: text(2, group=True)]],
    [[expand], [expand]],
    [[expand], [lambda: text(2)]],
    [[text], [Expand]],
    [[lambda: Filter(lambda row: True)], [text]],
    [[lambda: text(2), lambda: Filter(lambda row: True)], [lambda: text(2)]],
]


def forked(branches: list[list[Any]], join: JoinStep) -> Graph:
    with Graph("forked") as graph:
        source = Source()
        ends: list[Step] = []
        for branch in branches:
            here: Step = source
            for make in branch:
                here = here >> make()
            ends.append(here)
        ends >> join
    return graph


@pytest.mark.row(30)
@pytest.mark.parametrize("branches", REFUSED)
@pytest.mark.parametrize("join", [CombineOutputs, lambda: GroupColumns("x"), lambda: Picky("none")])
def test_branches_that_are_known_to_multiply_differently_are_refused(branches: Any, join: Any) -> None:
    with pytest.raises(PipelineError, match="joins branches that make different numbers of rows") as caught:
        forked(branches, join()).plan()
    assert "group_generations=True" in caught.value.hint
    assert "MergeBranches" in caught.value.hint
    forked(branches, MergeBranches()).plan()


@pytest.mark.row(30)
@pytest.mark.parametrize("branches", FITTING)
def test_branches_that_may_match_are_taken(branches: Any) -> None:
    forked(branches, CombineOutputs()).plan()


def test_a_join_of_joins_is_checked_too() -> None:
    with Graph("nested") as graph:
        source = Source()
        inner, outer = CombineOutputs(), CombineOutputs()
        pair = [expand(), text(2)]
        source >> pair
        pair >> inner
        last = text(3)
        source >> last
        [inner, last] >> outer
    # A list that matches two rows has two items.
    with pytest.raises(PipelineError, match=r"'combine_outputs_0' makes 2 rows of each .* 3 rows of each"):
        graph.plan()


def test_a_bare_step_is_refused_before_the_run() -> None:
    class Mine(Step):
        pass

    with Graph("bare") as graph:
        Source() >> Mine()
    with pytest.raises(PipelineError, match="'mine_0' is a Mine, which is no kind of step"):
        graph.plan()


# --- what must stop the run ------------------------------------------------------------------------


class Refused(Model):
    def answer(self, row: Row, ctx: Any) -> Any:
        raise ServerRefused("the key is wrong")


class Forgetful(Model):
    """Waits for something that another cancelled, as when a connection is closed under a library."""

    async def generate(self, row: Row, ctx: Any) -> list[Row]:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        return [{}]


def test_what_must_stop_the_run_comes_out_of_a_branch() -> None:
    with pytest.raises(ServerRefused, match="the key is wrong"):
        walk(joined(CombineOutputs(), Tagged("a"), Refused()), {"x": 1})


@pytest.mark.row(30)
def test_a_cancelled_future_of_the_steps_own_fails_its_row() -> None:
    walked, _ = walk(joined(CombineOutputs(), Tagged("a"), [Tagged("b"), Forgetful(name="f")]), {"x": 1})
    assert [(row.step, row.reason) for row in walked.failed] == [("f", "step_error")]
    assert walked.failed[0].message.startswith("CancelledError: the step's own code cancelled")
    assert walked.rows == {"default": []}
    assert walked.dropped == {"combine_outputs_0": {"partner_failed": 1}}


@pytest.mark.parametrize("count", [0, -1, None, "lists", 2.0, True])
def test_a_number_of_rows_that_is_none_is_refused(count: Any) -> None:
    class Counts(RowStep):
        def row_count(self) -> Any:
            return count

        def apply(self, row: Row) -> Row:
            return row

    with pytest.raises(PipelineError, match=r"Counts\.row_count\(\) returned"):
        joined(CombineOutputs(), Counts(), Tagged("a")).plan()


def test_a_join_of_the_users_says_drop_or_none() -> None:
    class Keeps(JoinStep):
        missing = "keep"  # type: ignore[assignment]

        def join(self, rows: Sequence[Row]) -> Row:
            return {}

    with pytest.raises(PipelineError, match=r"Keeps\.missing is 'keep'"):
        joined(Keeps(), Tagged("a"), Tagged("b")).plan()
