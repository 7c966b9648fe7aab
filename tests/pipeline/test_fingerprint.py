"""Whatever decides a result changes its fingerprint; whatever does not, must not cost a second generation."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Message
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline import Context, Graph, Plan, RowStep
from asyncsynth.pipeline.fingerprint import jsonable
from asyncsynth.records import Row
from asyncsynth.steps.loaders import LoadDataFromDicts
from asyncsynth.tasks import aspects, base, templates
from asyncsynth.tasks.text_generation import TextGeneration
from asyncsynth.tasks.ultra_feedback import UltraFeedback


def plan_of(make: Callable[[], Any], **options: Any) -> Plan:
    with Graph() as graph:
        LoadDataFromDicts(data=[{"instruction": "a", "prompt": "b", "generations": ["c"]}]) >> make()
    return graph.plan(**options)


def generation(*, llm: dict[str, Any] | None = None, **settings: Any) -> Callable[[], TextGeneration]:
    return lambda: TextGeneration(LLM(**{"model": "m", **(llm or {})}), **settings)


def key(make: Callable[[], Any], **options: Any) -> str:
    return plan_of(make, **options).nodes[1].fingerprint


BASE = key(generation())


@pytest.mark.parametrize(
    "changed",
    [
        generation(llm={"model": "other"}),
        generation(llm={"temperature": 0.8}),
        generation(llm={"top_p": 0.9}),
        generation(llm={"max_tokens": 5}),
        generation(llm={"stop": ["\n"]}),
        generation(llm={"presence_penalty": 0.1}),
        generation(llm={"frequency_penalty": 0.1}),
        generation(llm={"extra_body": {"top_k": 3}}),
        generation(llm={"is_embedded": True}),
        generation(system_prompt="Be brief."),
        generation(template="{{ instruction }}"),
        generation(num_generations=2),
        generation(group_generations=True),
        generation(input_mappings={"instruction": "prompt"}),
    ],
)
def test_what_decides_a_result_changes_the_fingerprint(changed: Callable[[], Any]) -> None:
    assert key(changed) != BASE


def test_the_run_seed_and_the_answering_model_change_it() -> None:
    assert key(generation(), run_seed=1) != BASE
    assert key(generation(), answering={"m": "tiny (embedded)"}) != BASE
    assert key(generation(), answering={"m": "a"}) != key(generation(), answering={"m": "b"})
    assert key(generation(), answering={"another": "tiny"}) == BASE


@pytest.mark.parametrize(
    "same",
    [
        generation(name="renamed"),
        generation(max_reasks=7),
        generation(output_mappings={"generation": "response"}),
        generation(llm={"base_url": "http://127.0.0.1:1/v1"}),
        generation(llm={"api_key_env": "OTHER_KEY"}),
    ],
)
def test_what_does_not_decide_a_result_leaves_it(same: Callable[[], Any]) -> None:
    assert key(same) == BASE


def test_the_version_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextGeneration, "version", 2)
    assert key(generation()) != BASE


def judge(**settings: Any) -> Callable[[], UltraFeedback]:
    return lambda: UltraFeedback(LLM(model="m"), **settings)


def test_prompt_text_and_aspect_text_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(judge())
    keys = {before, key(judge(rationales=False)), key(judge(aspect="helpfulness")), key(judge(one_call=False))}
    keys.add(key(judge(expected_rating=True)))
    assert len(keys) == 5
    text = templates.prompt_source("ultra_feedback")
    with monkeypatch.context() as patch:
        patch.setattr(base, "prompt_source", lambda name: text + " Think twice.")
        assert key(judge()) not in keys
    old = aspects.ASPECTS["overall-rating"]
    monkeypatch.setitem(aspects.ASPECTS, "overall-rating", aspects.Aspect("q", old.question, old.scale))
    assert key(judge()) not in keys


def test_equal_steps_are_two_samples_and_keep_their_numbers() -> None:
    def fingerprints() -> list[str]:
        with Graph() as graph:
            data = LoadDataFromDicts(data=[{"instruction": "a"}])
            data >> [generation()() for _ in range(3)]
        return [node.fingerprint for node in graph.plan().model_steps]

    assert len(set(fingerprints())) == 3
    assert fingerprints() == fingerprints()
    assert fingerprints()[0] == BASE


def test_fields_name_every_step_and_what_stands_before_it() -> None:
    fields = plan_of(generation(system_prompt="x")).fields
    assert list(fields["steps"]) == ["load_data_from_dicts_0", "text_generation_0"]
    assert fields["steps"]["text_generation_0"]["system_prompt"] == "x"
    assert fields["steps"]["text_generation_0"]["after"] == ["load_data_from_dicts_0"]
    assert plan_of(generation(), run_seed=3).fingerprint != plan_of(generation()).fingerprint


def load(tmp_path: Path, name: str, source: str) -> Any:
    """A user's file, read as a pipeline file is: compiled under its own path."""
    path = tmp_path / f"{name}.py"
    path.write_text(source)
    scope: dict[str, Any] = {"__name__": name}
    exec(compile(source, str(path), "exec"), scope)
    return scope["it"]


def test_an_edited_function_changes_it(tmp_path: Path) -> None:
    first = load(tmp_path, "first", "def it(row):\n    return row['x'] > 3\n")
    edited = load(tmp_path, "edited", "def it(row):\n    return row['x'] > 4\n")
    again = load(tmp_path, "again", "def it(row):\n    return row['x'] > 3\n")
    assert jsonable(first, where="") == jsonable(again, where="") != jsonable(edited, where="")


def above(limit: int) -> Callable[[int], bool]:
    return lambda value: value > limit


def scaled(value: int, *, by: int = 2) -> int:
    return value * by


class Judge:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, row: Row) -> bool:
        return bool(row["x"] > self.limit)


def test_functions_made_over_other_values_are_other_functions() -> None:
    for make in (above, lambda by: functools.partial(scaled, by=by), Judge):
        assert jsonable(make(3), where="") == jsonable(make(3), where="") != jsonable(make(4), where="")


def test_a_function_without_source_is_known_by_its_code_in_every_process() -> None:
    program = (
        "from asyncsynth.pipeline.fingerprint import jsonable\n"
        "scope = {}\n"
        'exec(\'def f(row):\\n    return row in {"a", "b", "c"}\', scope)\n'
        "print(jsonable(scope['f'], where=''))\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(seen) == 1


class Own(TextGeneration):
    not_fingerprinted = frozenset({"note"})

    def __init__(self, llm: LLM, *, note: str = "", **settings: Any) -> None:
        self.note = note
        super().__init__(llm, **settings)

    def messages(self, row: Row, ctx: Context) -> list[Message]:
        return [{"role": "user", "content": "One: " + row["instruction"]}]


def test_a_users_own_task_is_known_by_its_source() -> None:
    class Edited(Own):
        def messages(self, row: Row, ctx: Context) -> list[Message]:
            return [{"role": "user", "content": "Two: " + row["instruction"]}]

    Edited.__name__ = "Own"
    assert "code" not in generation()().settings()
    assert key(lambda: Own(LLM(model="m"))) != key(lambda: Edited(LLM(model="m")))
    # What a subclass leaves out is left out beside what its base leaves out.
    assert key(lambda: Own(LLM(model="m"), note="a", max_reasks=0)) == key(lambda: Own(LLM(model="m")))


@pytest.mark.parametrize("value", [object(), float("nan"), 2**70, "\ud800", b"bytes"])
def test_settings_without_a_stable_form_are_refused_with_their_place(value: Any) -> None:
    class Step(RowStep):
        def __init__(self) -> None:
            self.odd = value
            super().__init__()

        def apply(self, row: Row) -> Row:
            return row

    with pytest.raises(PipelineError, match="setting 'odd'"):
        plan_of(Step)


def test_a_constant_is_known_however_deep_it_is_nested() -> None:
    def step_over(value: Any) -> Any:
        for _ in range(300):
            value = [value]

        class Reads(RowStep):
            def apply(self, row: Row) -> Row:
                return {"x": value}

        return Reads

    first, again, other = (plan_of(step_over(value)).fingerprint for value in (1, 1, 2))
    assert first == again != other
