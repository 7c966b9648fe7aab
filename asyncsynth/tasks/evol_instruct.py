"""`EvolInstruct`: instructions rewritten into harder or rarer ones (arXiv 2304.12244)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Unpack

from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import TaskSettings
from asyncsynth.tasks.evolution import EMPTY_WORDS, MAX_EVOLUTIONS, Chain, Evolution, call_number
from asyncsynth.tasks.parsing import is_refusal, last_value, words
from asyncsynth.tasks.schemas import object_of
from asyncsynth.tasks.templates import prompt_source, render

IN_DEPTH = ("constraints", "deepen", "concretise", "reasoning")
IN_BREADTH = "breadth"
#: The paper's measure of a refusal: "sorry" in an answer of fewer words than this.
_SORRY_WORDS = 80
#: A text that grew to more than this times its words, plus these, is no longer an instruction.
_LONGEST_TIMES, _LONGEST_MORE = 2, 60
_GAIN_PROMPT = "evol_gain"
_YES_NO = re.compile(r"\b(not\s+(?:the\s+same|equal)|different|no|same|equal|yes|true|false)\b")


class EvolInstruct(Evolution):
    """Rewrites an instruction into a harder one, or into a rarer one of the same field, step by step.

    Columns: ``instruction``, optionally ``system_prompt`` -> ``evolved_instruction``, ``model_name``; with
    `store_evolutions` ``evolved_instructions`` (list of str, in their order) instead; with `generate_answers`
    also ``answer`` (or ``answers``, one for each of ``evolved_instructions``).

    Each evolution rewrites the instruction before it in one way, chosen by the run's seed and the row's key:
    ``constraints`` (one more requirement), ``deepen``, ``concretise``, ``reasoning`` (more steps of thought),
    ``breadth`` (a new instruction of the same field). A rewrite that failed is eliminated: the instruction
    before it stays and goes into the next evolution. It failed if it brings nothing new, refuses, copies words
    of the prompt, is too short or far too long, loses the subject (in depth), is cut off at ``max_tokens`` or
    repeats itself; with `generate_answers` also if the answer to it is a refusal or says nothing. If every
    rewrite failed, the outputs hold the original. ``evolutions`` in the row's provenance has the mutation and the
    result of each.

    Args:
        num_evolutions: successive rewrites (1).
        store_evolutions: keep all of them, not only the last; eliminated ones are not in the list.
        generate_answers: also answer the kept instructions.
        include_original_instruction: put the original first in ``evolved_instructions``.
        mutations: the names of the mutations to choose from; all by default.
        check_gain: also ask the model whether a rewrite asks for more than the instruction before it, as the
            paper does (one more call for each evolution); otherwise only the words are compared.
        Others: see `Task`.

    Example:
        ``{"instruction": "Explain tides."}`` -> ``{"evolved_instruction": "Explain, in at most 150 words and
        without formulas, why there are two tides a day.", "model_name": "..."}``

    Paper: WizardLM, arXiv 2304.12244.
    """

    inputs: tuple[str, ...] = ("instruction",)
    subject = "instruction"
    prompt: ClassVar[str | None] = "evol_instruct"
    mutations_known: ClassVar[tuple[str, ...]] = (*IN_DEPTH, IN_BREADTH)
    free_length: ClassVar[frozenset[str]] = frozenset({IN_BREADTH})

    def __init__(
        self,
        llm: LLM,
        *,
        num_evolutions: int = 1,
        store_evolutions: bool = False,
        generate_answers: bool = False,
        include_original_instruction: bool = False,
        mutations: Sequence[str] | None = None,
        check_gain: bool = False,
        **settings: Unpack[TaskSettings],
    ) -> None:
        if include_original_instruction and not store_evolutions:
            raise ConfigurationError(
                f"{type(self).__name__}: include_original_instruction needs a list to be in",
                hint="Set store_evolutions=True.",
            )
        self.generate_answers = generate_answers
        self.include_original_instruction = include_original_instruction
        self.check_gain = check_gain
        evolved, answer = ("evolved_instructions", "answers") if store_evolutions else ("evolved_instruction", "answer")
        self.outputs: tuple[str, ...] = (evolved, answer, "model_name") if generate_answers else (evolved, "model_name")
        super().__init__(
            llm,
            num_evolutions=num_evolutions,
            store_evolutions=store_evolutions,
            mutations=mutations,
            **settings,
        )

    def settings(self) -> dict[str, Any]:
        """The task's settings and the text of its prompts."""
        settings = super().settings()
        if self.check_gain:
            settings["gain_prompt"] = prompt_source(_GAIN_PROMPT)
        return settings

    def answers_prompt(self) -> bool:
        """True for the answers, if they are generated."""
        return self.generate_answers

    def constrains(self) -> bool:
        """The question whether two instructions ask for the same; the rewrites are free text."""
        return self.check_gain

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One chain of evolutions, and its answers if they are wanted."""
        chain = await self.evolve(row, ctx, number)
        outputs: Row = {"model_name": chain.model}
        if not self.generate_answers:
            return outputs | self._texts(chain)
        if self.store_evolutions:
            answers = await self._answers_to_all(chain, row, ctx, number)
            return outputs | self._texts(chain) | {"answers": answers}
        answer = await self._answer_to_last(chain, row, ctx, number)
        return outputs | self._texts(chain) | {"answer": answer}

    def _texts(self, chain: Chain) -> Row:
        if self.store_evolutions:
            return {"evolved_instructions": chain.stored(self.include_original_instruction)}
        return {"evolved_instruction": chain.last}

    async def _answer_to_last(self, chain: Chain, row: Row, ctx: Context, number: int) -> str:
        """The answer to the last instruction; an instruction that the model does not answer is replaced by the one
        before."""
        for back in range(len(chain.evolved) + 1):
            answer = await self._answer(chain.last, row, ctx, call_number(number, MAX_EVOLUTIONS + back))
            if not chain.evolved or not is_no_answer(answer, chain.last):
                break
            chain.drop(-1, "unanswerable")
        return answer

    async def _answers_to_all(self, chain: Chain, row: Row, ctx: Context, number: int) -> list[str]:
        """Answers to the stored instructions; evolutions that the model does not answer are removed."""
        wanted = chain.stored(self.include_original_instruction)
        numbers = [call_number(number, MAX_EVOLUTIONS + place) for place in range(len(wanted) + 1)]
        answers: list[str] = await all_or_error(
            [self._answer(text, row, ctx, at) for text, at in zip(wanted, numbers, strict=False)]
        )
        first = len(wanted) - len(chain.evolved)  # the original comes before it
        for place in reversed(range(first, len(wanted))):
            if is_no_answer(answers[place], wanted[place]):
                chain.drop(place - first, "unanswerable")
                del answers[place]
        return answers or [await self._answer(chain.original, row, ctx, numbers[-1])]

    async def _answer(self, instruction: str, row: Row, ctx: Context, number: int) -> str:
        messages: list[Message] = self.with_system(row, [{"role": "user", "content": instruction}])
        answer, _ = await self.ask(ctx, messages, lambda choice: choice.text.strip(), number=number)
        return answer

    def fault(self, text: str, previous: str, mutation: str, choice: Choice) -> str | None:
        """The faults of every evolution, and two of instructions: ``too_long`` (the prompt allows some twenty words
        more: this is an answer, or an essay) and ``off_topic`` (in depth, something of the subject must be left)."""
        reason = super().fault(text, previous, mutation, choice)
        if reason is None and len(words(text)) > _LONGEST_TIMES * len(words(previous)) + _LONGEST_MORE:
            return "too_long"
        if reason is None and mutation not in self.free_length and not _shares_subject(text, previous):
            return "off_topic"
        return reason

    async def judged_fault(self, text: str, previous: str, row: Row, ctx: Context, number: int) -> str | None:
        """``no_gain`` if the model finds that both instructions ask for the same."""
        if not self.check_gain:
            return None
        prompt = render(prompt_source(_GAIN_PROMPT), {"first": previous, "second": text})
        number = call_number(number, 2 * MAX_EVOLUTIONS + 2)
        schema = object_of({"same": {"type": "boolean"}})
        messages: list[Message] = [{"role": "user", "content": prompt}]
        is_same, _ = await self.ask(ctx, messages, read_same, number=number, schema=schema)
        return "no_gain" if is_same else None


def _shares_subject(text: str, previous: str) -> bool:
    """Whether a meaningful word of the original remains, in any form. For scripts without spaces: always."""
    if not previous.isascii():
        return True
    stems = {word[:4] for word in set(words(previous)) - EMPTY_WORDS}
    return not stems or bool(stems & {word[:4] for word in words(text)})


def is_no_answer(text: str, instruction: str) -> bool:
    """The paper's test: "sorry" in a short answer, a refusal, or nothing but punctuation and stop words."""
    said = words(text)
    if set(said) <= EMPTY_WORDS or is_refusal(text):
        return True
    # A request for an apology is answered with "sorry".
    asked_for = {"sorry", "apology", "apologise", "apologize", "apologies"} & set(words(instruction))
    return "sorry" in said and len(said) < _SORRY_WORDS and not asked_for


def read_same(choice: Choice) -> bool:
    """A yes or no in JSON or in words."""
    if (last := last_value(choice.text, _truth)) is not None:
        return last[0]
    text = choice.text.lower()
    words_said = [found[1] for found in _YES_NO.finditer(text)]
    if begins := _YES_NO.match(text.lstrip(" \n\t*\"'")):  # said at once; what follows is the reason
        words_said = [begins[1]]
    said = {word in ("same", "equal", "yes", "true") for word in words_said}
    if len(said) != 1:
        raise ParseFailure(f"check_gain: {'both yes and no' if said else 'neither yes nor no'}", raw=choice.text)
    return said.pop()


def _truth(value: Any) -> bool | None:
    found = next(iter(value.values()), None) if isinstance(value, dict) else None
    return found if isinstance(found, bool) else None
