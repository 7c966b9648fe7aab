"""Cut answers and system prompts through whole pipelines: whatever happens to a text's column on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import (
    LLM,
    ComplexityScorer,
    Deduplicate,
    EvolQuality,
    ExpandColumns,
    FormPreference,
    FormSFT,
    GroupColumns,
    InstructionBacktranslation,
    KeepColumns,
    LoadDataFromDicts,
    Magpie,
    PairwiseJudge,
    Pipeline,
    QualityScorer,
    RenameColumns,
    Task,
    TextClassification,
    TextGeneration,
    UltraFeedback,
    step,
    task,
)
from asyncsynth.client.messages import Choice, Message
from asyncsynth.engine.report import RunReport
from asyncsynth.engine.result import Result
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.step import Step
from asyncsynth.storage.exports import export
from asyncsynth.storage.extent import Completeness
from asyncsynth.testing import FaultServer
from tests.kit.loops import run_async
from tests.kit.pipelines import rows, server

#: The fault server's answers have 16 words; a lower limit cuts them.
CUTTER = LLM(model="model-a", max_tokens=5)
WHOLE = LLM(model="model-b", max_tokens=64)
JUDGE = LLM(model="judge")


@step(inputs=["generation"], outputs=["response"])
def labelled(row: dict[str, Any]) -> dict[str, Any]:
    return {"response": f"Answer: {row['generation']}"}


@step(inputs=["generation"], outputs=["response"])
def ended(row: dict[str, Any]) -> dict[str, Any]:
    return {"response": row["generation"].rsplit(" ", 1)[0] + "."}


@step(inputs=["generation"], outputs=["response"])
def closed(row: dict[str, Any]) -> dict[str, Any]:
    return {"response": row["generation"] + "<|im_end|>"}


class Persona(Task):
    """Sends a system message of its own, which only the request shows."""

    inputs = ("instruction",)
    outputs = ("generation",)

    def messages(self, row: dict[str, Any], ctx: Context) -> list[Message]:
        persona = ctx.rng("persona").choice([f"You are number {number}." for number in range(1000)])
        return [{"role": "system", "content": persona}, {"role": "user", "content": row["instruction"]}]

    def parse(self, choice: Choice, row: dict[str, Any]) -> dict[str, Any]:
        return {"generation": choice.text}


class Both(Task):
    """Makes its rows itself, whatever `group_generations` says."""

    inputs = ("instruction",)
    outputs = ("generation",)

    async def generate(self, row: dict[str, Any], ctx: Context) -> list[dict[str, Any]]:
        completion = await ctx.send(self.llm.chat([{"role": "user", "content": row["instruction"]}]))
        return [{"generation": completion.text}]


@task(inputs=["instruction"], outputs=["generation"], llm=CUTTER)
async def asked(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
    head = {"role": "system", "content": "Sent by a function."}
    return {"generation": (await ctx.chat([head, {"role": "user", "content": row["instruction"]}])).text.strip()}


RESPONSE = {"input_mappings": {"generation": "response"}}

#: Steps between the rows and the training examples; every answer is cut.
WAYS: dict[str, Callable[[], list[Step]]] = {
    "straight": lambda: [TextGeneration(llm=CUTTER), FormSFT()],
    "an output mapped": lambda: [
        TextGeneration(llm=CUTTER, output_mappings={"generation": "response"}),
        FormSFT(**RESPONSE),
    ],
    "renamed": lambda: [TextGeneration(llm=CUTTER), RenameColumns({"generation": "response"}), FormSFT(**RESPONSE)],
    "kept alone": lambda: [TextGeneration(llm=CUTTER), KeepColumns(["instruction", "generation"]), FormSFT()],
    "several answers, a row each": lambda: [TextGeneration(llm=CUTTER, num_generations=2), FormSFT()],
    "several answers, expanded": lambda: [
        TextGeneration(llm=CUTTER, num_generations=2, group_generations=True),
        ExpandColumns({"generation": "response"}),
        FormSFT(**RESPONSE),
    ],
    "a label in front": lambda: [TextGeneration(llm=CUTTER), labelled(), FormSFT(**RESPONSE)],
    "something put behind": lambda: [TextGeneration(llm=CUTTER), closed(), FormSFT(**RESPONSE)],
    "rows of the task's own making": lambda: [Both(llm=CUTTER, num_generations=3, group_generations=True), FormSFT()],
    "over a barrier": lambda: [TextGeneration(llm=CUTTER), Deduplicate(columns=["instruction"]), FormSFT()],
    "over two barriers": lambda: [
        TextGeneration(llm=CUTTER),
        Deduplicate(columns=["instruction"]),
        RenameColumns({"generation": "response"}),
        Deduplicate(columns=["instruction"]),
        FormSFT(**RESPONSE),
    ],
    "a function's task": lambda: [asked(), FormSFT()],
    "rewritten in vain": lambda: [
        TextGeneration(llm=CUTTER, output_mappings={"generation": "response"}),
        EvolQuality(llm=CUTTER),
        FormSFT(input_mappings={"generation": "evolved_response"}),
    ],
    "a conversation": lambda: [
        Magpie(
            llm=LLM(model="model-a", max_tokens=5), chat_template="chatml", output_mappings={"instruction": "asked"}
        ),
        FormSFT(),
    ],
}


def chain(steps: Callable[[], list[Step]], count: int = 4) -> Pipeline:
    with Pipeline(name="made") as pipeline:
        last: Step = LoadDataFromDicts(data=rows(count))
        for following in steps():
            last = last >> following
    return pipeline


def run(folder: Path, make: Callable[[], Pipeline], **options: Any) -> Result:
    async def main() -> Result:
        async with server() as fake:
            return await make().arun(servers=[fake.base_url], output=folder, **options)

    return run_async(main())


def made(result: Result) -> list[dict[str, Any]]:
    return list(result["default"]["train"])


@pytest.mark.row(33)
@pytest.mark.parametrize("way", WAYS)
def test_no_cut_answer_is_a_training_target(way: str, tmp_path: Path) -> None:
    result = run(tmp_path / "run", lambda: chain(WAYS[way]))
    counts = result.report.counts
    (reason,) = counts.dropped
    assert reason.endswith(": truncated")
    assert counts.dropped[reason] in (4, 8)
    assert made(result) == []
    assert counts.failed_rows == 0
    assert result.report.cut_answers()[0]["share"] > 0.4  # Magpie's user turns are whole


@pytest.mark.row(33)
def test_what_a_step_of_the_users_own_made_whole_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path / "run", lambda: chain(lambda: [TextGeneration(llm=CUTTER), ended(), FormSFT(**RESPONSE)]))
    assert len(made(result)) == 4


@pytest.mark.row(33)
def test_whole_answers_are_kept_beside_cut_ones(tmp_path: Path) -> None:
    def pool(**settings: Any) -> Pipeline:
        with Pipeline(name="pool") as pipeline:
            branches = [TextGeneration(llm=llm) for llm in (CUTTER, WHOLE, LLM(model="model-b", temperature=1.0))]
            group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "models"])
            pairs = FormPreference(ties="first", **settings)
            LoadDataFromDicts(data=rows(6)) >> branches >> group >> UltraFeedback(llm=JUDGE, rationales=False) >> pairs
        return pipeline

    for row in made(run(tmp_path / "drop", pool)):
        cut = row["generations"][0]
        assert cut not in (row["chosen"], row["rejected"])
    kept = made(run(tmp_path / "keep", lambda: pool(truncated="keep")))
    assert any(row["generations"][0] in (row["chosen"], row["rejected"]) for row in kept)


@pytest.mark.row(33)
def test_a_resumed_run_knows_it_from_the_journal(tmp_path: Path) -> None:
    """The answers are not paid again, and what is known of them comes from their provenance."""

    def make(truncated: Any) -> Pipeline:
        return chain(lambda: [TextGeneration(llm=CUTTER, num_generations=2), FormSFT(truncated=truncated)])

    assert len(made(run(tmp_path / "run", lambda: make("keep")))) == 8
    again = run(tmp_path / "run", lambda: make("drop"), update=True)
    assert again.report.requests == 0
    assert again.report.counts.dropped == {"form_sft_0: truncated": 8}
    assert made(again) == []


# --- told ------------------------------------------------------------------------------------------


def report(answers: int, cut: int, limit: str = "max_tokens=160") -> RunReport:
    found = run_report()
    found.counts.answers["gen"] += answers
    if cut:
        found.counts.cut[f"gen: {limit}"] += cut
    return found


def run_report() -> RunReport:
    from asyncsynth.engine.report import Counts

    return RunReport(
        pipeline="p",
        directory=Path("runs"),
        completeness=Completeness(True, 0, 0),
        elapsed_s=1.0,
        counts=Counts(),
        answered_by={},
        requests=0,
        prompt_tokens=0,
        completion_tokens=0,
        retries={},
        latency_p50_s=None,
        latency_p99_s=None,
    )


def test_the_report_warns_from_one_percent_on() -> None:
    assert report(1000, 9).cut_answers() == []
    assert report(1000, 0).as_json()["cut"] == []
    assert report(1000, 430).as_json()["cut"] == [
        {"step": "gen", "limit": "max_tokens=160", "cut": 430, "answers": 1000, "share": 0.43}
    ]


def test_the_setting_that_cut_is_named() -> None:
    magpie = Magpie(llm=LLM(model="m", max_tokens=7), chat_template="chatml", max_instruction_tokens=9)
    assert magpie.limit_of(LLM(model="m", max_tokens=7).chat([])) == "max_tokens=7"
    assert magpie.limit_of(LLM(model="m").complete("x", max_tokens=9)) == "max_instruction_tokens=9"
    alike = Magpie(llm=LLM(model="m", max_tokens=9), chat_template="chatml", max_instruction_tokens=9)
    assert alike.limit_of(LLM(model="m", max_tokens=9).chat([])) == "max_tokens=9"


# --- system prompts --------------------------------------------------------------------------------

CAREFUL, CASUAL = "You are careful.", "You are casual."


def system_prompts(result: Result) -> list[str | None]:
    heads = [row["messages"][0] for row in made(result)]
    return [head["content"] if head["role"] == "system" else None for head in heads]


@pytest.mark.row(33)
@pytest.mark.parametrize("barrier", [False, True])
def test_a_tasks_system_prompt_reaches_the_training_rows(barrier: bool, tmp_path: Path) -> None:
    def steps() -> list[Step]:
        between: list[Step] = [Deduplicate(columns=["instruction"])] if barrier else []
        judge = UltraFeedback(
            llm=JUDGE, input_mappings={"generations": "all"}, rationales=False, system_prompt="You are strict."
        )
        return [
            TextGeneration(llm=WHOLE, system_prompt=CAREFUL, num_generations=2, group_generations=True),
            RenameColumns({"generation": "all"}),
            judge,
            *between,
            ExpandColumns({"all": "generation"}),
            FormSFT(),
        ]

    assert system_prompts(run(tmp_path / "run", lambda: chain(steps))) == [CAREFUL] * 8


@pytest.mark.row(33)
def test_the_judges_do_not_see_the_generators_system_prompt(tmp_path: Path) -> None:
    """What is known for the training rows is no column: no later step sends it."""

    async def main() -> None:
        async with FaultServer(models=("model-b", "judge"), keep_requests=True) as fake:
            pipeline = chain(
                lambda: [
                    TextGeneration(llm=WHOLE, system_prompt=CAREFUL, output_mappings={"generation": "response"}),
                    EvolQuality(llm=JUDGE),
                    FormSFT(input_mappings={"generation": "evolved_response"}),
                ]
            )
            result = await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")
            assert system_prompts(result) == [CAREFUL] * 4
            bodies = [info.body for info in fake.log or []]
            assert sum(CAREFUL.encode() in body for body in bodies if b'"judge"' in body) == 0

    run_async(main())


@pytest.mark.row(33)
def test_pools_under_two_system_prompts(tmp_path: Path) -> None:
    def pool() -> Pipeline:
        with Pipeline(name="pool") as pipeline:
            branches = [TextGeneration(llm=WHOLE, system_prompt=prompt) for prompt in (CAREFUL, CASUAL)]
            group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "models"])
            judge = UltraFeedback(llm=JUDGE, rationales=False)
            LoadDataFromDicts(data=rows(6)) >> branches >> group >> judge >> FormPreference(ties="first")
        return pipeline

    found = made(run(tmp_path / "run", pool))
    assert found
    for row in found:
        of = dict(zip(row["generations"], (CAREFUL, CASUAL), strict=True))
        assert (row["chosen_system_prompt"], row["rejected_system_prompt"]) == (of[row["chosen"]], of[row["rejected"]])
        assert row["prompt"] == row["instruction"]


@pytest.mark.row(33)
@pytest.mark.parametrize("generations", [1, 2])
def test_a_function_that_sends_several_system_prompts(generations: int, tmp_path: Path) -> None:
    def under(system: str, text: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    @task(llm=WHOLE, inputs=["instruction"], outputs=["draft", "generation", "mix"])
    async def two(row: Any, ctx: Any) -> Any:
        draft = (await ctx.chat(under(CASUAL, row["instruction"]))).text
        final = (await ctx.chat(under(CAREFUL, f"Improve: {draft}"))).text
        return {"draft": draft, "generation": final, "mix": "A text of neither answer, " + "but of the function."}

    def chosen(column: str) -> Pipeline:
        return chain(lambda: [two(num_generations=generations), FormSFT(input_mappings={"generation": column})])

    count = 4 * generations
    assert system_prompts(run(tmp_path / "final", lambda: chosen("generation"))) == [CAREFUL] * count
    assert system_prompts(run(tmp_path / "draft", lambda: chosen("draft"))) == [CASUAL] * count
    mixed = run(tmp_path / "mix", lambda: chosen("mix"))
    assert mixed.report.counts.failures == {"unknown_system_prompt": count}


def test_a_column_of_the_carriers_name_crosses_a_step_over_all_rows(tmp_path: Path) -> None:
    def steps() -> Any:
        return [TextGeneration(llm=WHOLE, system_prompt=CAREFUL), Deduplicate(["instruction"]), FormSFT()]

    def own() -> Pipeline:
        with Pipeline(name="own") as pipeline:
            before, middle, after = steps()
            data = [{"instruction": f"Hi {number}", "_asyncsynth_made": [1, number]} for number in range(3)]
            LoadDataFromDicts(data=data) >> before >> middle >> after
        return pipeline

    found = run(tmp_path / "run", own)
    assert [row["_asyncsynth_made"] for row in made(found)] == [[1, 0], [1, 1], [1, 2]]
    assert system_prompts(found) == [CAREFUL] * 3


@pytest.mark.row(33)
def test_a_functions_own_system_message_and_a_rows_own(tmp_path: Path) -> None:
    function = chain(lambda: [asked(llm=WHOLE), FormSFT()])
    assert system_prompts(run(tmp_path / "function", lambda: function)) == ["Sent by a function."] * 4

    def own() -> Pipeline:
        data = [{"instruction": "Hi", "system_prompt": "The row's own."}, {"instruction": "Ho", "system_prompt": None}]
        with Pipeline(name="own") as pipeline:
            generate = TextGeneration(llm=WHOLE, system_prompt=CAREFUL)
            LoadDataFromDicts(data=data) >> generate >> FormSFT(layout="standard", keep=())
        return pipeline

    prompts = [row["prompt"] for row in made(run(tmp_path / "own", own))]
    assert prompts == ["The row's own.\n\nHi", f"{CAREFUL}\n\nHo"]


@pytest.mark.row(33)
@pytest.mark.parametrize("barrier", [False, True])
def test_a_prompt_reaches_only_the_answers_made_under_it(barrier: bool, tmp_path: Path) -> None:
    def pool() -> Pipeline:
        with Pipeline(name="pool") as pipeline:
            branches = [TextGeneration(llm=WHOLE, system_prompt=CAREFUL), TextGeneration(llm=JUDGE)]
            group = GroupColumns(columns=["generation", "model_name"], output_columns=["generations", "models"])
            judge = UltraFeedback(llm=JUDGE, rationales=False)
            last: Step = LoadDataFromDicts(data=rows(6)) >> branches >> group
            last = last >> Deduplicate(columns=["instruction"]) if barrier else last
            last >> judge >> FormPreference(ties="first")
        return pipeline

    found = made(run(tmp_path / "run", pool))
    assert found
    for row in found:
        of = dict(zip(row["generations"], (CAREFUL, None), strict=True))
        assert (row["chosen_system_prompt"], row["rejected_system_prompt"]) == (of[row["chosen"]], of[row["rejected"]])


@pytest.mark.row(33)
@pytest.mark.parametrize("between", ["nothing", "a barrier", "a label in front"])
def test_a_judges_prompt_is_not_written_to_answers_of_the_input(between: str, tmp_path: Path) -> None:
    def judged() -> Pipeline:
        data = [{"instruction": "Tides?", "generation": "Water that moves, twice a day, in the sea."}]
        mapped = {"generation": "verdict", "model_name": "judge"}
        with Pipeline(name="judged") as pipeline:
            last: Step = LoadDataFromDicts(data=data) >> TextGeneration(
                llm=JUDGE, template="Judge: {{ generation }}", system_prompt="You are strict.", output_mappings=mapped
            )
            if between == "a barrier":
                last = last >> Deduplicate(columns=["instruction"])
            if between == "a label in front":
                last >> labelled() >> FormSFT(**RESPONSE)
            else:
                last >> FormSFT()
        return pipeline

    assert system_prompts(run(tmp_path / "run", judged)) == [None]


@pytest.mark.row(33)
def test_a_system_message_that_a_task_makes_for_each_row(tmp_path: Path) -> None:
    found = run(tmp_path / "run", lambda: chain(lambda: [Persona(llm=WHOLE), FormSFT()]))
    prompts = system_prompts(found)
    assert all(str(prompt).startswith("You are number ") for prompt in prompts)
    assert len(set(prompts)) == 4
    again = run(tmp_path / "run", lambda: chain(lambda: [Persona(llm=WHOLE), FormSFT(keep=())]), update=True)
    assert again.report.requests == 0
    assert system_prompts(again) == prompts


# --- provenance as columns -------------------------------------------------------------------------


def test_provenance_columns(tmp_path: Path) -> None:
    names = ("finish_reason", "completion_tokens", "model", "calls")
    result = run(
        tmp_path / "run", lambda: chain(lambda: [TextGeneration(llm=CUTTER, num_generations=2, provenance=names)])
    )
    found = made(result)
    assert len(found) == 8
    for row in found:
        assert (row["finish_reason"], row["model"], row["calls"]) == ("length", "model-a", 1)
        assert row["completion_tokens"] > 0


def test_provenance_in_exports(tmp_path: Path) -> None:
    import orjson

    def make() -> Pipeline:
        return chain(lambda: [TextGeneration(llm=WHOLE, num_generations=2), TextGeneration(
            llm=JUDGE, input_mappings={"instruction": "generation"}, output_mappings={"generation": "second"}
        )])  # fmt: skip

    run(tmp_path / "run", make)
    done = export(tmp_path / "run", tmp_path / "rows.jsonl", provenance=True)
    assert done.rows == 8
    lines = [orjson.loads(line) for line in (tmp_path / "rows.jsonl").read_bytes().splitlines()]
    for line in lines:
        facts = line["provenance"]
        assert [(fact["step"], fact["model"]) for fact in facts] == [
            ("text_generation_0", "model-b"),
            ("text_generation_1", "judge"),
            ("text_generation_1", "judge"),
        ]
        assert [fact["calls"] for fact in facts] == [2, 1, 1]
        assert all(fact["finish_reason"] == "stop" and fact["completion_tokens"] for fact in facts)
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    export(tmp_path / "run", tmp_path / "rows.parquet", provenance=True)
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.column("provenance").to_pylist() == [line["provenance"] for line in lines]


def test_a_judge_leaves_the_name_of_the_model_that_wrote_the_answer(tmp_path: Path) -> None:
    """Chains, groups and branches of judges: the row has the writers' names, and the last judge's beside them."""
    judge = LLM(model="judge")

    async def main() -> Result:
        with Pipeline(name="judged") as pipeline:
            load = LoadDataFromDicts(data=rows(3))
            several = TextGeneration(
                LLM(model="model-a"), num_generations=2, group_generations=True, name="several",
                output_mappings={"generation": "generations"},
            )  # fmt: skip
            rate = UltraFeedback(judge, rationales=False)
            compare = PairwiseJudge(
                LLM(model="model-b"),
                output_mappings={"ratings": "wins", "rationales": "why"},
            )
            load >> several >> rate >> compare >> FormPreference(ties="first")
            one = TextGeneration(LLM(model="model-a"), name="one")
            label = TextClassification(judge, labels=["good", "bad"], input_mappings={"text": "generation"})
            load >> one >> label >> FormSFT()
        async with server() as fake:
            return await pipeline.arun(servers=[fake.base_url], output=tmp_path / "run")

    result = run_async(main())
    leaves = {leaf: list(result[leaf]["train"]) for leaf in result}
    assert sorted(map(len, leaves.values())) == [3, 3]
    [pairs] = [made for made in leaves.values() if "chosen" in made[0]]
    [turns] = [made for made in leaves.values() if "label" in made[0]]
    for row in pairs:
        assert row["model_name"] == ["model-a", "model-a"]
        assert row["judge_model"] == "model-b"
        assert (row["chosen_model"], row["rejected_model"]) == ("model-a", "model-a")
    for row in turns:
        assert (row["model_name"], row["judge_model"]) == ("model-a", "judge")


def test_a_task_that_writes_no_text_names_its_model_beside_the_writer() -> None:
    judge = LLM(model="judge")
    for kind in (ComplexityScorer, InstructionBacktranslation, PairwiseJudge, QualityScorer, UltraFeedback):
        assert "judge_model" in kind(judge).outputs
        assert "model_name" not in kind(judge).outputs
    jury = UltraFeedback([judge, LLM(model="other")])
    assert "judge_model" in jury.outputs
    assert "model_name" not in jury.outputs
