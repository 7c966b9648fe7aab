"""`EvolQuality`: answers rewritten into better ones (arXiv 2312.15685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import TaskSettings, text_of
from asyncsynth.tasks.evolution import Evolution


class EvolQuality(Evolution):
    """Rewrites the response to an instruction into a better one, step by step.

    Columns: ``instruction``, ``response``, optionally ``system_prompt`` -> ``evolved_response``,
    ``model_name``; with `store_evolutions` ``evolved_responses`` (list of str, in their order) instead.

    Each evolution rewrites the response before it in one way, chosen by the run's seed and the row's key:
    ``helpfulness``, ``relevance``, ``deepening``, ``creativity`` or ``details``. A rewrite that failed is
    eliminated, and the response before it stays: one that brings nothing new, refuses, copies words of the
    prompt, is much too short, is cut off at ``max_tokens`` or repeats itself. If every rewrite failed, the
    outputs hold the original. ``evolutions`` in the row's provenance has the mutation and the result of each.

    An evolved response is not always better: have a judge compare both before you use it as the chosen answer.

    Args:
        num_evolutions: successive rewrites (1).
        store_evolutions: keep all of them, not only the last; eliminated ones are not in the list.
        include_original_response: put the original first in ``evolved_responses``.
        mutations: the names of the mutations to choose from; all by default.
        Others: see `Task`.

    Example:
        ``{"instruction": "What are tides?", "response": "Water moving."}`` -> ``{"evolved_response": "Tides are
        the rise and fall of the sea, twice a day in most places, ...", "model_name": "..."}``

    Paper: DEITA, arXiv 2312.15685.
    """

    inputs: tuple[str, ...] = ("instruction", "response")
    subject = "response"
    prompt: ClassVar[str | None] = "evol_quality"
    mutations_known: ClassVar[tuple[str, ...]] = ("helpfulness", "relevance", "deepening", "creativity", "details")
    least_share: ClassVar[float] = 0.3  # to the point may well be shorter

    def __init__(
        self,
        llm: LLM,
        *,
        num_evolutions: int = 1,
        store_evolutions: bool = False,
        include_original_response: bool = False,
        mutations: Sequence[str] | None = None,
        **settings: Unpack[TaskSettings],
    ) -> None:
        if include_original_response and not store_evolutions:
            raise ConfigurationError(
                "EvolQuality: include_original_response needs a list to be in", hint="Set store_evolutions=True."
            )
        self.include_original_response = include_original_response
        self.outputs: tuple[str, ...] = ("evolved_responses" if store_evolutions else "evolved_response", "model_name")
        super().__init__(
            llm,
            num_evolutions=num_evolutions,
            store_evolutions=store_evolutions,
            mutations=mutations,
            **settings,
        )

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One chain of evolutions."""
        text_of(row, "instruction")
        chain = await self.evolve(row, ctx, number)
        if self.store_evolutions:
            return {"evolved_responses": chain.stored(self.include_original_response), "model_name": chain.model}
        return {"evolved_response": chain.last, "model_name": chain.model}
