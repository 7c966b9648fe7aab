"""A pipeline is checked before anything is sent; a refusal names the step, the column and the nearest match."""

import re
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline import Graph, RowStep, current_graph
from asyncsynth.records import Row
from asyncsynth.steps.group import GroupColumns
from asyncsynth.steps.loaders import LoadDataFromDicts
from asyncsynth.tasks.text_generation import TextGeneration
from asyncsynth.tasks.ultra_feedback import UltraFeedback

A = LLM(model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
B = LLM(model="Qwen/Qwen2.5-1.5B-Instruct", temperature=1.0)


class Upper(RowStep):
    inputs = ("text",)
    outputs = ("text",)

    def apply(self, row: Row) -> Row:
        return {"text": row["text"].upper()}


def source(**columns: Any) -> LoadDataFromDicts:
    return LoadDataFromDicts(data=[columns or {"instruction": "What is synthetic data?"}])


def refused(graph: Graph, *words: str) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        graph.plan()
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_the_pool_of_models() -> None:
    with Graph("pool") as graph:
        data = source()
        gen_a, gen_b = TextGeneration(llm=A), TextGeneration(llm=B)
        group = GroupColumns(columns=["generation"])
        judge = UltraFeedback(llm=B, input_mappings={"generations": "grouped_generation"})
        data >> [gen_a, gen_b] >> group >> judge
    plan = graph.plan()
    assert [node.step for node in plan.nodes] == [data, gen_a, gen_b, group, judge]
    assert [node.before for node in plan.nodes] == [[], [0], [0], [1, 2], [3]]
    assert [node.after for node in plan.nodes] == [[1, 2], [3], [3], [4], []]
    assert [node.depth for node in plan.nodes] == [0, 1, 1, 2, 3]
    assert plan.leaves == {"default": 4}
    assert plan.source is data
    assert graph.llms() == [A, B, B]
    assert [node.step for node in plan.model_steps] == [gen_a, gen_b, judge]


def test_a_chain_where_an_output_overwrites_its_input() -> None:
    with Graph() as graph:
        data = source()
        gen_a = TextGeneration(llm=A, output_mappings={"generation": "instruction"})
        gen_b = TextGeneration(llm=A, output_mappings={"generation": "response"})
        data >> gen_a >> gen_b
    plan = graph.plan()
    assert [node.step.name for node in plan.nodes[1:]] == ["text_generation_0", "text_generation_1"]
    # The steps differ only in where they write; still neither may be answered from the other's results.
    assert plan.nodes[1].fingerprint != plan.nodes[2].fingerprint
    row = gen_a.merge({"instruction": "Ask something."}, {"generation": "What is 2 + 2?", "model_name": "m"})
    assert gen_b.view(row) == {"instruction": "What is 2 + 2?"}
    done = gen_b.merge(row, {"generation": "4", "model_name": "m"})
    assert done == {"instruction": "What is 2 + 2?", "model_name": "m", "response": "4"}


def test_leaves_are_named_by_their_steps_when_there_are_several() -> None:
    with Graph() as graph:
        source() >> [TextGeneration(A, name="left"), TextGeneration(B, name="right")]
    assert graph.plan().leaves == {"left": 1, "right": 2}


def test_no_steps() -> None:
    refused(Graph(), "no steps")


@pytest.mark.parametrize("sources", [0, 2])
def test_one_source(sources: int) -> None:
    with Graph() as graph:
        for _ in range(sources):
            source() >> TextGeneration(A)
        if not sources:
            TextGeneration(A)
    refused(graph, f"has {sources}")


def test_nothing_stands_before_the_source() -> None:
    with Graph() as graph:
        first, data = source(), TextGeneration(A)
        data >> first
    refused(graph, "nothing can come before it")


def test_a_cycle_is_shown() -> None:
    with Graph() as graph:
        data, one, two, three = source(text="a"), Upper(name="one"), Upper(name="two"), Upper(name="three")
        data >> three
        one >> two >> one
        two >> three
    error = refused(graph, "cycle")
    assert re.search("one -> two -> one|two -> one -> two", str(error))
    assert error.step in ("one", "two")


def test_a_step_before_itself() -> None:
    with Graph() as graph:
        data, one = source(text="a"), Upper(name="one")
        data >> one >> one
    refused(graph, "one -> one")


def test_a_step_that_nothing_flows_into() -> None:
    with Graph() as graph:
        source() >> TextGeneration(A)
        TextGeneration(B, name="alone")
    assert refused(graph, "'alone' is not connected").step == "alone"


def test_branches_need_a_join() -> None:
    with Graph() as graph:
        source() >> [TextGeneration(A), TextGeneration(B)] >> UltraFeedback(A)
    refused(graph, "does not join branches", "GroupColumns")


def test_a_missing_column_and_its_nearest_match() -> None:
    with Graph() as graph:
        source(instructions="a") >> TextGeneration(A)
    error = refused(graph, "needs the column 'instruction'", "did you mean 'instructions'?")
    assert (error.step, error.column) == ("text_generation_0", "instruction")


def test_a_mapped_input_that_is_missing() -> None:
    with Graph() as graph:
        source(prompt="a") >> TextGeneration(A, input_mappings={"instruction": "promt"})
    refused(graph, "needs the column 'promt'", "did you mean 'prompt'?")


def test_a_mapped_optional_input_is_meant_to_be_there() -> None:
    with Graph() as graph:
        source(instruction="a", persona="b") >> TextGeneration(A, input_mappings={"system_prompt": "personna"})
    refused(graph, "needs the column 'personna'", "did you mean 'persona'?")


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({"input_mappings": {"instructions": "prompt"}}, "instruction"),
        ({"output_mappings": {"generations": "answer"}}, "generation"),
    ],
)
def test_mappings_name_what_the_step_has(settings: dict[str, Any], known: str) -> None:
    with Graph() as graph:
        source() >> TextGeneration(A, **settings)
    refused(graph, f"did you mean {known!r}?")


def test_two_outputs_in_one_column() -> None:
    with Graph() as graph:
        source() >> TextGeneration(A, output_mappings={"generation": "x", "model_name": "x"})
    assert refused(graph, "two of its outputs").column == "x"


def test_no_column_is_overwritten_silently() -> None:
    with Graph() as graph:
        source() >> TextGeneration(A) >> TextGeneration(B)
    error = refused(graph, "would overwrite the column 'generation' made by 'text_generation_0'")
    assert error.column == "generation"
    with Graph() as graph:  # reading the column does not mean replacing it
        source() >> TextGeneration(A) >> TextGeneration(B, input_mappings={"instruction": "generation"})
    refused(graph, "would overwrite the column 'generation'")


def test_columns_are_overwritten_when_told_or_when_a_step_is_made_for_it() -> None:
    with Graph() as graph:
        told = TextGeneration(B, output_mappings={"generation": "generation"})
        source(text="a", instruction="b") >> TextGeneration(A) >> told >> Upper()
    assert graph.plan().leaves == {"default": 3}


def test_columns_of_a_template_become_inputs() -> None:
    with Graph() as graph:
        template = "{% for i in range(2) %}{{ topic }}{{ system_prompt }}{% endfor %}"
        step = TextGeneration(A, template=template)
        source(topics="x") >> step
    assert step.inputs == ("topic",)
    refused(graph, "needs the column 'topic'")


def test_names() -> None:
    with Graph() as graph:
        TextGeneration(A, name="same")
        with pytest.raises(PipelineError, match="two steps are named 'same'"):
            TextGeneration(A, name="same")
    for bad in ("", "a/b", "a\x1b[2J"):
        with graph, pytest.raises(PipelineError, match="cannot name a step"):
            TextGeneration(A, name=bad)
    for bad in ("", "a/b", "..", "a\0"):
        with pytest.raises(PipelineError):
            Graph(bad)


def test_wiring_mistakes() -> None:
    outside = TextGeneration(A)
    with pytest.raises(PipelineError, match="outside a pipeline"):
        outside >> TextGeneration(B)
    with Graph("one"):
        elsewhere = TextGeneration(A)
    with Graph("two"):
        data = source()
        with pytest.raises(PipelineError, match="belongs to another pipeline \\('one'\\)"):
            data >> elsewhere
        with pytest.raises(PipelineError, match="joins steps"):
            data >> 3
        here = TextGeneration(A)
        data >> here
        with pytest.raises(PipelineError, match="written twice"):
            data >> here
    assert current_graph() is None


def test_a_step_made_outside_is_taken_in_when_it_is_joined() -> None:
    outside = TextGeneration(A)
    with Graph() as graph:
        source() >> outside
    assert graph.plan().nodes[1].step is outside
