"""The evolving tasks: chains, what is eliminated, and the same choices after a resume."""

from collections.abc import Callable
from typing import Any

import pytest

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import ChatRequest, Choice
from asyncsynth.errors import ConfigurationError, TaskFailure
from asyncsynth.records import Row
from asyncsynth.tasks.evol_complexity import EvolComplexity
from asyncsynth.tasks.evol_instruct import EvolInstruct, is_no_answer, read_same
from asyncsynth.tasks.evol_quality import EvolQuality
from asyncsynth.tasks.evolution import Evolution
from asyncsynth.tasks.templates import prompt_source, render
from tests.kit.models import Model, generate

M = LLM(model="m")
FIRST = "Explain how the tides of the sea come about."
ROW: Row = {"instruction": FIRST}
BETTER = "Explain how the tides of the sea come about, in 90 words for children."
BEST = "Explain how the tides of the sea come about, in 90 words for children, with an experiment at home."
PAIR: Row = {"instruction": "What are tides?", "response": "Tides are water that moves up and down at the shore."}


def results(task: Evolution, row: Row, *texts: str) -> tuple[Row, list[str]]:
    """The outputs, and what became of every evolution."""
    model = Model(*texts)
    ctx = model.ctx()
    [outputs] = generate(task, row, model, ctx)
    return outputs, [entry["result"] for entry in ctx.notes["evolutions"]]


def test_each_evolution_works_on_the_one_before() -> None:
    model = Model(BETTER, f"Sure! Here is the rewritten instruction:\n\n**{BEST}**")
    [row] = generate(EvolInstruct(M, num_evolutions=2), ROW, model)
    assert row == {"evolved_instruction": BEST, "model_name": "model-that-answered"}
    assert FIRST in model.prompts()[0]
    assert BETTER in model.prompts()[1]
    assert len({request.params["seed"] for request in model.requests}) == 2


def test_all_of_them_are_kept_on_demand() -> None:
    task = EvolInstruct(M, num_evolutions=2, store_evolutions=True)
    assert results(task, ROW, BETTER, BEST)[0]["evolved_instructions"] == [BETTER, BEST]
    task = EvolInstruct(M, num_evolutions=2, store_evolutions=True, include_original_instruction=True)
    assert results(task, ROW, BETTER, BEST)[0]["evolved_instructions"] == [FIRST, BETTER, BEST]


ELIMINATED: dict[str, list[str]] = {
    "no_gain": [
        FIRST,
        FIRST.upper() + "!!",
        f"Here is a new, improved version of the instruction. {FIRST}",
        "How do the tides of the sea come about? Explain.",
        "Please explain to me how the tides of the sea come about, and do so.",
    ],
    "refusal": [
        "I'm sorry, but I can't rewrite this instruction for you.",
        "As an AI language model, I do not evolve instructions about tides.",
        "I cannot assist with that request, for it is about the sea.",
    ],
    "copied_prompt": [
        "The rewritten instruction is: explain the tides of the sea to sailors.",
        "Explain the tides of the sea, given prompt and all, to a sailor on board.",
        "Explain how the tides come. What stands between the tags is a text to work on.",
        f"{FIRST} Lengthen it by twenty words at most, for sailors.",
        "#Given Prompt#: explain the tides of the sea to sailors on their ships.",
        f"<instruction>Tides</instruction> {BEST}",
    ],
    "too_short": ["", "...", "Tides.", "Why tides, sailor?", "```\n```"],
    "too_long": [" ".join(["The tides of the sea come about in", *(f"story{n}" for n in range(90))])],
    "off_topic": ["Name three European cities with good museums, and say why."],
    "repetition": ["Explain the tides to a sailor who has never seen the open sea before. " * 8],
}


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, many in ELIMINATED.items() for text in many])
def test_a_failed_rewrite_leaves_what_was_there(reason: str, text: str) -> None:
    task = EvolInstruct(M, num_evolutions=3, store_evolutions=True, mutations=["constraints"])
    row, log = results(task, ROW, BETTER, text, BEST)
    assert log == ["kept", reason, "kept"]
    assert row["evolved_instructions"] == [BETTER, BEST]
    row, log = results(EvolInstruct(M, mutations=["deepen"]), ROW, text)
    assert (row["evolved_instruction"], log) == (FIRST, [reason])
    row, _ = results(EvolInstruct(M, mutations=["deepen"], store_evolutions=True), ROW, text)
    assert row["evolved_instructions"] == [FIRST]


def test_a_rewrite_cut_at_max_tokens_is_eliminated() -> None:
    model = Model(by=lambda request: Choice(BETTER, "length"))
    ctx = model.ctx()
    assert generate(EvolInstruct(M), ROW, model, ctx)[0]["evolved_instruction"] == FIRST
    assert ctx.notes["evolutions"][0]["result"] == "cut_short"


def test_what_the_text_said_before_is_no_fault_of_the_rewrite() -> None:
    odd = "Write the rewritten instruction of the game of chess for children."
    row, log = results(EvolInstruct(M), {"instruction": odd}, odd.replace("children", "grown people of eighty years"))
    assert log == ["kept"], row
    sorry = {"instruction": "How do I open a safe?", "response": "I'm sorry, but I can't help with that."}
    _, log = results(EvolQuality(M), sorry, "I'm sorry, but I can't help with that: ask a locksmith near you instead.")
    assert log == ["kept"]


def test_a_new_instruction_may_be_shorter() -> None:
    for mutation, result in (("breadth", "kept"), ("deepen", "too_short")):
        _, log = results(EvolInstruct(M, mutations=[mutation]), {"instruction": BEST}, "Why are rivers bent?")
        assert log == [result]


# --- answers -------------------------------------------------------------------------------------


def answering(answers: dict[str, str], rewrites: list[str]) -> Model:
    texts = iter(rewrites)

    def by(request: ChatRequest) -> str:
        content = request.messages[-1]["content"]
        return answers[content] if content in answers else next(texts)

    return Model(by=by)


ANSWERS = {FIRST: "By the moon.", BETTER: "The moon pulls at the sea.", BEST: "Take a bowl of water."}


def test_the_last_one_is_answered() -> None:
    task = EvolInstruct(M, num_evolutions=2, generate_answers=True, system_prompt="Be brief.")
    model = answering(ANSWERS, [BETTER, BEST])
    assert generate(task, ROW, model) == [
        {"evolved_instruction": BEST, "answer": ANSWERS[BEST], "model_name": "model-that-answered"}
    ]
    assert all(request.messages[0]["content"] == "Be brief." for request in model.requests)
    assert len({request.params["seed"] for request in model.requests}) == 3


def test_all_are_answered() -> None:
    task = EvolInstruct(
        M, num_evolutions=2, generate_answers=True, store_evolutions=True, include_original_instruction=True
    )
    [row] = generate(task, ROW, answering(ANSWERS, [BETTER, BEST]))
    assert row["evolved_instructions"] == [FIRST, BETTER, BEST]
    assert row["answers"] == [ANSWERS[FIRST], ANSWERS[BETTER], ANSWERS[BEST]]


@pytest.mark.parametrize("answer", ["I'm sorry, that is beyond me.", "...", "", "It is what it is."])
def test_what_cannot_be_answered_gives_way_to_the_one_before(answer: str) -> None:
    answers = {**ANSWERS, BEST: answer}
    for store in (False, True):
        task = EvolInstruct(M, num_evolutions=2, generate_answers=True, store_evolutions=store)
        model = answering(answers, [BETTER, BEST])
        ctx = model.ctx()
        [row] = generate(task, ROW, model, ctx)
        if store:
            assert (row["evolved_instructions"], row["answers"]) == ([BETTER], [ANSWERS[BETTER]])
        else:
            assert (row["evolved_instruction"], row["answer"]) == (BETTER, ANSWERS[BETTER])
        assert [entry["result"] for entry in ctx.notes["evolutions"]] == ["kept", "unanswerable"]


def test_the_original_is_answered_when_nothing_else_can_be() -> None:
    answers = {FIRST: "By the moon.", BETTER: "Sorry, no."}
    for store in (False, True):
        model = answering(answers, [BETTER])
        [row] = generate(EvolInstruct(M, generate_answers=True, store_evolutions=store), ROW, model)
        texts = (row.get("evolved_instruction", row.get("evolved_instructions")), row.get("answer", row.get("answers")))
        assert texts == (([FIRST], ["By the moon."]) if store else (FIRST, "By the moon."))


def test_sorry_is_no_refusal_where_it_was_asked_for() -> None:
    assert is_no_answer("Well, sorry, but this is not known to me.", "Explain tides.")
    assert not is_no_answer("Dear Ann, sorry that I was late.", "Write an apology to Ann.")
    assert not is_no_answer("No.", "Is it even?")
    assert not is_no_answer("42", "How many?")


# --- the check of the paper ----------------------------------------------------------------------


def test_the_model_is_asked_whether_anything_was_gained() -> None:
    for said, result in (('{"same": true}', "no_gain"), ('{"same": false}', "kept"), ("Not the same.", "kept")):
        row, log = results(EvolInstruct(M, check_gain=True), ROW, BETTER, said)
        assert log == [result]
        assert row["evolved_instruction"] == (BETTER if result == "kept" else FIRST)


@pytest.mark.parametrize(
    ("text", "is_same"),
    [
        ('{"same": true}', True),
        ('```json\n{"same": false}\n```', False),
        ("Yes.", True),
        ("No, the second is harder.", False),
        ("They are not equal", False),
        ("They are the same.", True),
        ("Different.", False),
    ],
)
def test_yes_or_no(text: str, is_same: bool) -> None:
    assert read_same(Choice(text, "stop")) is is_same


# --- choices -------------------------------------------------------------------------------------


def echo(request: ChatRequest) -> str:
    return f"Explain word{request.params['seed']} of the tides in the sea near the coast of France."


def mutations(task: Evolution, row: Row, *, key: str, run_seed: int = 0) -> Any:
    model = Model(by=echo)
    ctx = model.ctx(key, run_seed)
    generate(task, row, model, ctx)
    return [entry["mutation"] for entry in ctx.notes["evolutions"]]


MAKERS: list[tuple[Callable[..., Evolution], Row]] = [(EvolInstruct, ROW), (EvolComplexity, ROW), (EvolQuality, PAIR)]


@pytest.mark.parametrize(("kind", "row"), MAKERS)
def test_the_same_key_and_seed_make_the_same_choices(kind: Callable[..., Evolution], row: Row) -> None:
    first = [mutations(kind(M, num_evolutions=8), row, key=str(key)) for key in range(20)]
    again = [mutations(kind(M, num_evolutions=8), row, key=str(key)) for key in reversed(range(20))]
    assert first == again[::-1]
    other = [mutations(kind(M, num_evolutions=8), row, key=str(key), run_seed=1) for key in range(20)]
    assert first != other
    assert len({tuple(chosen) for chosen in first}) > 10
    assert {name for chosen in first for name in chosen} == set(kind(M).mutations)


def test_an_eliminated_evolution_does_not_change_later_choices() -> None:
    task = EvolInstruct(M, num_evolutions=6)
    model = Model(by=lambda request: FIRST)
    ctx = model.ctx("7")
    generate(task, ROW, model, ctx)
    assert [entry["mutation"] for entry in ctx.notes["evolutions"]] == mutations(task, ROW, key="7")


def test_samples_choose_for_themselves() -> None:
    model = Model(by=echo)
    ctx = model.ctx()
    rows = generate(EvolInstruct(M, num_evolutions=6, num_generations=3), ROW, model, ctx)
    assert len({row["evolved_instruction"] for row in rows}) == 3
    chosen = [tuple(entry["mutation"] for entry in ctx.notes[f"evolutions.{number}"]) for number in range(3)]
    assert len(set(chosen)) > 1
    assert len({request.params["seed"] for request in model.requests}) == 18


@pytest.mark.parametrize(("kind", "row"), MAKERS)
def test_every_way_has_its_prompt(kind: Callable[..., Evolution], row: Row) -> None:
    task = kind(M)
    prompts = {render(prompt_source(task.prompt or ""), {**row, "mutation": name}) for name in task.mutations}
    assert len(prompts) == len(task.mutations) == (4 if kind is EvolComplexity else 5)
    assert all(text in prompt for prompt in prompts for text in row.values())


# --- EvolQuality ---------------------------------------------------------------------------------


def test_responses_evolve() -> None:
    better = "Tides are the rise and fall of the sea. The moon pulls at the water."
    best = f"{better} The sun does so too, with less force."
    row, log = results(EvolQuality(M, num_evolutions=2), PAIR, f"Here is the improved response:\n\n{better}", best)
    assert (row, log) == ({"evolved_response": best, "model_name": "model-that-answered"}, ["kept"] * 2)
    task = EvolQuality(M, num_evolutions=3, store_evolutions=True, include_original_response=True)
    row, log = results(task, PAIR, better, "I'm sorry, but I can't help with that.", best)
    assert row["evolved_responses"] == [PAIR["response"], better, best]
    assert log == ["kept", "refusal", "kept"]


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EvolInstruct(M, num_evolutions=0), "num_evolutions"),
        (lambda: EvolInstruct(M, num_evolutions=1000), "num_evolutions"),
        (lambda: EvolInstruct(M, mutations=["deepening"]), "did you mean 'deepen'"),
        (lambda: EvolInstruct(M, mutations=[]), "empty"),
        (lambda: EvolComplexity(M, mutations=["breadth"]), "no mutation 'breadth'"),
        (lambda: EvolInstruct(M, include_original_instruction=True), "store_evolutions"),
        (lambda: EvolQuality(M, include_original_response=True), "store_evolutions"),
    ],
)
def test_settings_that_cannot_work(make: Callable[[], Evolution], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make()


def test_blank_inputs_fail_before_anything_is_asked() -> None:
    for task, row in ((EvolInstruct(M), {"instruction": " "}), (EvolQuality(M), {**PAIR, "instruction": None})):
        model = Model()
        with pytest.raises(TaskFailure, match="instruction"):
            generate(task, row, model)
        assert not model.requests


def test_settings_that_change_results_change_the_fingerprint() -> None:
    makers = [
        EvolInstruct(M),
        EvolInstruct(M, num_evolutions=2),
        EvolInstruct(M, mutations=["deepen"]),
        EvolInstruct(M, check_gain=True),
        EvolInstruct(M, generate_answers=True),
        EvolInstruct(M, store_evolutions=True),
        EvolComplexity(M),
    ]
    assert len({str(task.settings()) for task in makers}) == len(makers)
