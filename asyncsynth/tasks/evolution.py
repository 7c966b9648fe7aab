"""The base of the evolving tasks: rewriting a text step by step, and the elimination of failed rewrites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Choice, Message
from asyncsynth.errors import ConfigurationError, ParseFailure
from asyncsynth.pipeline.context import Context
from asyncsynth.pipeline.step import nearest
from asyncsynth.records import Row
from asyncsynth.tasks.base import Task, TaskSettings, text_of
from asyncsynth.tasks.copied import copies_prompt
from asyncsynth.tasks.parsing import is_looping, is_refusal, rewritten_text, words
from asyncsynth.tasks.templates import prompt_source, render

#: Keeps the seeds of one chain's calls apart from those of `num_generations`.
_CALL_STRIDE = 10_000
MAX_EVOLUTIONS = 30
#: Words without meaning of their own: a rewrite that adds only these has gained nothing.
_EMPTY = (
    "a an the and or but if then than that this these those it its is are was were be been being am do does did of"
    " to in on at by for from with as into about so such also please can could would should will shall may might"
    " must have has had i you he she we they me my your our their his her them us there here very just which who what"
)
EMPTY_WORDS = frozenset(_EMPTY.split())
#: Words about the text: "Here is a new, improved answer" before the old one gains nothing.
_ABOUT = frozenset(
    {"new", "answer", "response", "instruction", "prompt", "question", "text", "version", "original", "above", "below"}
    | {"rewritten", "revised", "improved", "better", "evolved", "harder", "complex", "following", "more"}
)


@dataclass(slots=True)
class Chain:
    """A text and its rewrites."""

    original: str
    evolved: list[str] = field(default_factory=list)  #: the rewrites that were kept, the last one last
    model: str = ""  #: the model that wrote the last one
    log: list[dict[str, str]] = field(default_factory=list)  #: {"mutation", "result"}, one for each evolution
    _kept: list[dict[str, str]] = field(default_factory=list)  #: of `log`, the entries of `evolved`

    @property
    def last(self) -> str:
        """The current text."""
        return self.evolved[-1] if self.evolved else self.original

    def add(self, mutation: str, text: str, fault: str | None) -> None:
        """Adds a rewrite, or only notes its fault."""
        self.log.append({"mutation": mutation, "result": fault or "kept"})
        if fault is None:
            self.evolved.append(text)
            self._kept.append(self.log[-1])

    def drop(self, place: int, fault: str) -> None:
        """Removes a rewrite that was kept at first."""
        del self.evolved[place]
        self._kept.pop(place)["result"] = fault

    def stored(self, include_original: bool) -> list[str]:
        """All versions, in their order; never empty."""
        return [self.original, *self.evolved] if include_original or not self.evolved else list(self.evolved)


class Evolution(Task):
    """Base of the tasks that rewrite a text `num_evolutions` times, each time with a randomly chosen mutation.

    The choices come from the run's seed and the row's key, so that they are the same after a resume.
    """

    version = 2  # if an answer holds several values, the last one counts
    #: The column that is rewritten.
    subject: ClassVar[str]
    #: The mutations, by their names in the prompt.
    mutations_known: ClassVar[tuple[str, ...]]
    #: A rewrite shorter than this share of the text before it has lost something.
    least_share: ClassVar[float] = 0.5
    #: Mutations that make a new text, which may have any length.
    free_length: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        llm: LLM,
        *,
        num_evolutions: int = 1,
        store_evolutions: bool = False,
        mutations: Sequence[str] | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        task = type(self).__name__
        if not 1 <= num_evolutions <= MAX_EVOLUTIONS:
            raise ConfigurationError(f"{task}: num_evolutions is {num_evolutions}; it must be 1 to {MAX_EVOLUTIONS}")
        chosen = tuple(self.mutations_known if mutations is None else mutations)
        for name in chosen:
            if name not in self.mutations_known:
                raise ConfigurationError(
                    f"{task}: no mutation {name!r}{nearest(name, self.mutations_known)}",
                    hint=", ".join(self.mutations_known),
                )
        if not chosen:
            raise ConfigurationError(f"{task}: mutations is empty", hint=", ".join(self.mutations_known))
        self.num_evolutions = num_evolutions
        self.store_evolutions = store_evolutions
        self.mutations = chosen
        super().__init__(llm, **settings)

    def answers_prompt(self) -> bool:
        """False: its texts do not answer the prompt of the row."""
        return False

    async def evolve(self, row: Row, ctx: Context, number: int) -> Chain:
        """Rewrites the row's text `num_evolutions` times; a failed rewrite leaves the text as it was."""
        chain = Chain(text_of(row, self.subject))
        rng = ctx.rng(f"mutations.{number}")
        chosen = [rng.choice(self.mutations) for _ in range(self.num_evolutions)]
        for step, mutation in enumerate(chosen):
            prompt = self.rewrite_prompt(mutation, chain.last, row)
            messages: list[Message] = self.with_system(row, [{"role": "user", "content": prompt}])
            choice, completion = await self.ask(ctx, messages, _as_it_is, number=call_number(number, step))
            try:
                text = rewritten_text(choice.text)
            except ParseFailure:
                text = ""  # a failed rewrite leaves the text as it was
            reason = self.fault(text, chain.last, mutation, choice)
            if reason is None:
                reason = await self.judged_fault(text, chain.last, row, ctx, call_number(number, step))
            chain.add(mutation, text, reason)
            if reason is None or ctx.told is None:
                ctx.told = completion
            if reason is None or not chain.model:
                chain.model = completion.model
        ctx.notes["evolutions" if self.num_generations == 1 else f"evolutions.{number}"] = chain.log
        return chain

    def rewrite_prompt(self, mutation: str, text: str, row: Row) -> str:
        """The prompt for the model."""
        values = {"instruction": row["instruction"], self.subject: text, "mutation": mutation}
        return render(prompt_source(self.prompt or ""), values)

    def fault(self, text: str, previous: str, mutation: str, choice: Choice) -> str | None:
        """Why a rewrite is rejected, or None; the elimination step of Evol-Instruct, and further faults of small
        models.

        ``cut_short`` (ran into max_tokens), ``too_short``, ``refusal``, ``no_gain`` (nothing new in it),
        ``copied_prompt`` (words of our prompt in it), ``repetition`` (the model loops).
        """
        if choice.finish_reason == "length":
            return "cut_short"
        said = words(text)
        share = 0.0 if mutation in self.free_length else self.least_share
        if is_refusal(text) and not is_refusal(previous):
            return "refusal"
        if len(text) < 4 or (len(said) < 3 and text.isascii()) or len(text) < share * len(previous):
            return "too_short"
        if not set(said) - set(words(previous)) - EMPTY_WORDS - _ABOUT:
            return "no_gain"
        if copies_prompt(text, previous, self.prompt or ""):
            return "copied_prompt"
        if is_looping(text) and not is_looping(previous):
            return "repetition"
        return None

    async def judged_fault(self, text: str, previous: str, row: Row, ctx: Context, number: int) -> str | None:
        """A fault that only a model can see; none here."""
        return None


def _as_it_is(choice: Choice) -> Choice:
    return choice


def call_number(number: int, step: int) -> int:
    """The request number of a chain's `step`-th call for the `number`-th sample."""
    return number + step * _CALL_STRIDE
