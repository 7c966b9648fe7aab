"""Settings given beside the pipeline file."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from asyncsynth import LLM, LoadDataFromDicts, Magpie, Pipeline, StructuredGeneration, TextGeneration, UltraFeedback
from asyncsynth.engine.overrides import apply_settings
from asyncsynth.errors import AsyncsynthError
from tests.kit.pipelines import preference, rows


def pipeline() -> Pipeline:
    with Pipeline(name="p") as made:
        load = LoadDataFromDicts(data=[{"instruction": "a", "generations": ["b"]}])
        gen = TextGeneration(
            llm=LLM(model="model-a"), name="gen.v1", output_mappings={"generation": "g"}, num_generations=2
        )
        judge = UltraFeedback(llm=LLM(model="judge"), name="judge")
        load >> gen >> judge
    return made


def step(made: Pipeline, name: str) -> Any:
    return next(step for step in made.steps if step.name == name)


def test_settings_take_the_place_of_the_files_and_the_rest_stays() -> None:
    made, plain = pipeline(), pipeline()
    apply_settings(
        made,
        [
            "gen.v1.llm.temperature=1",
            "gen.v1.llm.stop=[\"END\"]",
            "gen.v1.system_prompt=Be brief. No = signs.",
            "judge.expected_rating=true",
            "judge.aspect=honesty",
        ],
    )  # fmt: skip
    gen, judge = step(made, "gen.v1"), step(made, "judge")
    assert gen.llm == LLM(model="model-a", temperature=1.0, stop=["END"])
    assert (gen.system_prompt, gen.num_generations, gen.output_mappings) == (
        "Be brief. No = signs.", 2, {"generation": "g"}
    )  # fmt: skip
    assert "expected_ratings" in judge.outputs  # columns follow
    assert [node.step.name for node in made.plan().nodes] == [node.step.name for node in plain.plan().nodes]
    assert made.plan().fingerprint != plain.plan().fingerprint
    apply_settings(plain, ["gen.v1.max_reasks=2"])  # as it was
    assert plain.plan().fingerprint == pipeline().plan().fingerprint


def test_edges_of_fan_outs_stay() -> None:
    made = preference(rows(2))
    before = [(left.name, right.name) for left, right in made.edges]
    apply_settings(made, ["text_generation_1.llm.temperature=0.1", "ultra_feedback_0.rationales=true"])
    assert [(left.name, right.name) for left, right in made.edges] == before
    made.plan()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("judge", "STEP.SETTING=VALUE"),
        ("judge=x", "STEP.SETTING=VALUE"),
        ("jugde.aspect=honesty", "did you mean 'judge'"),
        ("judge.aspekt=honesty", "did you mean 'aspect'"),
        ("judge.aspect=honest", "did you mean 'honesty'"),
        ("judge.llm.temprature=1", "did you mean 'temperature'"),
        ("judge.llm.base_url=http://x", "no field 'base_url'"),
        ("judge.llm.temperature=warm", "float or null was expected"),
        ("judge.max_reasks=1.5", "int was expected"),
        ("judge.rationales=1", "bool was expected"),
        ("judge.aspect.x=1", "no single LLM"),
        ("judge.num_generations=0", "1 or more"),
        ("load_data_from_dicts_0.data=[]", "cannot be changed by --set"),
    ],
)
def test_what_is_wrong_is_named(setting: str, words: str) -> None:
    with pytest.raises(AsyncsynthError) as caught:
        apply_settings(pipeline(), [setting])
    assert words in str(caught.value)


def test_a_step_that_does_not_keep_its_settings_as_given_is_refused() -> None:
    with Pipeline(name="p") as made:
        LoadDataFromDicts(data=[{}]) >> Magpie(llm=LLM(model="Qwen/x"), system_prompt="About the sea.", name="m")
    with pytest.raises(AsyncsynthError, match="cannot be changed by --set"):
        apply_settings(made, ["m.n_turns=2"])


class Person(BaseModel):
    name: str


@pytest.mark.parametrize("schema", [{"type": "integer"}, Person, list[Person], TypeAdapter(Person), None])
def test_a_structured_generation_keeps_its_schema(schema: Any) -> None:
    def structured(**settings: Any) -> Pipeline:
        with Pipeline(name="p") as made:
            load = LoadDataFromDicts(data=[{"instruction": "a", "schema": {}}])
            load >> StructuredGeneration(llm=LLM(model="m"), schema=schema, name="gen", **settings)
        return made

    changed = structured()
    apply_settings(changed, ["gen.llm.temperature=0.2", "gen.show_schema=false"])
    assert changed.plan().fields != structured().plan().fields
    apply_settings(changed, ["gen.llm.temperature=0.7", "gen.show_schema=true"])
    assert changed.plan().fields == structured().plan().fields
    apply_settings(changed, ['gen.schema={"type": "string"}'])
    assert step(changed, "gen").json_schema == {"type": "string"}
