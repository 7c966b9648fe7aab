"""`Magpie`: instructions that an aligned model writes at the start of the user's turn."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from asyncsynth.client.llm import DEFAULT_MAX_TOKENS, LLM
from asyncsynth.client.messages import Choice, Message, ModelRequest
from asyncsynth.client.needs import CHARS_PER_TOKEN, Feature
from asyncsynth.errors import ConfigurationError, ParseFailure, RequestFailed
from asyncsynth.pipeline.context import Context
from asyncsynth.records import Row
from asyncsynth.tasks.base import REASK_STRIDE, SYSTEM_SENT, SettingsWithoutPrompt, Task
from asyncsynth.tasks.chat_templates import ChatTemplate, chatml, read_template
from asyncsynth.tasks.parsing import is_looping

#: One system prompt, several, or several by name, each a text or a pair (text, weight).
SystemPrompts = str | Sequence[str] | Mapping[str, str | tuple[str, float]]

#: Keeps the seeds of a conversation's turns apart.
_TURN_STRIDE = 10_000
_CHATML_MODELS = re.compile(r"qwen|smollm|chatml", re.IGNORECASE)
#: A server that leaves special tokens out of its text shows the next turn's header as a bare role.
_NEXT_TURN = re.compile(r"\n+(?:assistant|user|system)\s*(?:\n|$)")


class MagpieSettings(SettingsWithoutPrompt, total=False):
    """The keywords of `Magpie`, for code that passes them on; a test compares it with the parameters."""

    system_prompt: SystemPrompts | None
    n_turns: int
    end_with_user: bool
    include_system_prompt: bool
    only_instruction: bool
    chat_template: str | Path | None
    max_instruction_tokens: int


class Magpie(Task):
    """Instructions and answers from the model alone, without input (arXiv 2406.08464).

    The model gets its chat template up to the user's turn, as a raw completion
    (``/v1/completions``), and writes the user's turn; then it answers as usual (``/v1/chat/completions``).

    Columns: optionally ``system_prompt`` (wins over the task's) -> ``instruction``, ``response``,
    ``conversation`` (list of ``{"role", "content"}``), ``model_name``; with `only_instruction`
    ``instruction``, ``model_name``; with `n_turns` over 1 ``conversation``, ``model_name``. With named system
    prompts also ``system_prompt_key``, the name of the chosen one (None: the row's own).

    An instruction that is blank, that loops or runs on to `max_instruction_tokens`, is requested again with
    another seed, `max_reasks` times; then the row fails (`empty_instruction`, `runaway_instruction`).

    Args:
        system_prompt: what users will ask about, said to an assistant ("You are an assistant that helps users
            with their maths homework."), not an order to write questions. A text; a list, from which each
            conversation gets one at random; or a dict of name to text, or to (text, weight). The choice
            depends on the run's seed and the row: a resumed run makes the same.
        n_turns: turns of user and assistant.
        end_with_user: leave the last answer out (`n_turns` of 2 or more).
        include_system_prompt: begin ``conversation`` with the system message.
        only_instruction: the instruction only, no answer.
        chat_template: "chatml", the path of another model's tokenizer_config.json or of the folder that holds
            it, or None: ChatML for models that are named Qwen or SmolLM. Without a system prompt, Qwen2.5 and
            SmolLM2 get the one in their own templates.
        max_instruction_tokens: the longest instruction, in tokens; the answer's limit is the LLM's.
        Others: see `Task`.

    Example::

        magpie = Magpie(llm=LLM(model="Qwen/Qwen2.5-1.5B-Instruct"))

    ``{"system_prompt": "You are a helpful assistant."}`` gives ``{"instruction": "Name three rivers.",
    "response": "The Nile, the Danube and the Volga.", "conversation": [{"role": "user", "content": "Name three
    rivers."}, {"role": "assistant", "content": "The Nile, the Danube and the Volga."}], "model_name": ...}``.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        system_prompt: SystemPrompts | None = None,
        n_turns: int = 1,
        end_with_user: bool = False,
        include_system_prompt: bool = False,
        only_instruction: bool = False,
        chat_template: str | Path | None = None,
        max_instruction_tokens: int = 512,
        **settings: Unpack[SettingsWithoutPrompt],
    ) -> None:
        if n_turns < 1 or max_instruction_tokens < 1:
            raise ConfigurationError("Magpie: n_turns and max_instruction_tokens must be 1 or more")
        if only_instruction and (n_turns > 1 or end_with_user or include_system_prompt):
            raise ConfigurationError(
                "Magpie: only_instruction goes with no other turns", hint="Leave out only_instruction, or the others."
            )
        if end_with_user and n_turns == 1:
            raise ConfigurationError(
                "Magpie: one turn that ends with the user is an instruction",
                hint="Write only_instruction=True, or n_turns=2.",
            )
        self.system_prompts: list[tuple[str | None, str, float]] = _system_prompts(system_prompt)
        self.n_turns = n_turns
        self.end_with_user = end_with_user
        self.include_system_prompt = include_system_prompt
        self.only_instruction = only_instruction
        self.max_instruction_tokens = max_instruction_tokens
        made = ["instruction"] if only_instruction else ["conversation"]
        if n_turns == 1 and not only_instruction:
            made = ["instruction", "response", "conversation"]
        keys = ["system_prompt_key"] if isinstance(system_prompt, Mapping) else []
        self.outputs: tuple[str, ...] = (*made, *keys, "model_name")
        super().__init__(llm, **settings)
        # Its text is fingerprinted, not its path.
        self.chat_template: ChatTemplate = _template(chat_template, self.llm)

    def sample_requests(self) -> list[ModelRequest]:
        """The user's turn as a raw completion, the assistant's as a chat; by the last turn both prompts hold
        all the turns before, each as long as it may be."""
        said = self.max_instruction_tokens + (self.llm.max_tokens or DEFAULT_MAX_TOKENS)
        before = (self.n_turns - 1) * said * CHARS_PER_TOKEN
        requests: list[ModelRequest] = [self.llm.complete("x" * before, **self._user_turn_fields())]
        if not self.only_instruction:
            requests.append(self.llm.chat([{"role": "user", "content": "x" * before}]))
        return requests

    def does_without(self) -> frozenset[Feature]:
        """Stop texts: text after the turn is cut off, even though it was paid for."""
        return frozenset({Feature.STOP})

    def system_sent(self, row: Row, ctx: Context, number: int) -> str | None:
        """The prompt at the start of the conversation: the model answered under it too."""
        noted: dict[str, str] = ctx.notes.get(SYSTEM_SENT) or {}
        return noted.get(str(number)) or self._system_prompt(row, ctx, number)[1]

    async def sample(self, row: Row, ctx: Context, number: int) -> Row:
        """One conversation."""
        key, system = self._system_prompt(row, ctx, number)
        if system and len(self.system_prompts) > 1 and not row.get("system_prompt"):
            ctx.notes.setdefault(SYSTEM_SENT, {})[str(number)] = system
        head: list[Message] = [{"role": "system", "content": system}] if system else []
        turns: list[Message] = []
        thoughts: dict[int, str] = {}  #: by place in `turns`; not in the requests, as with chat templates
        for turn in range(self.n_turns):
            seed = number + turn * _TURN_STRIDE
            turns.append({"role": "user", "content": await self._user_turn([*head, *turns], ctx, seed)})
            if self.only_instruction or (self.end_with_user and turn == self.n_turns - 1):
                break
            request = self.llm.chat([*head, *turns], seed=ctx.seed(seed + _TURN_STRIDE // 2))
            answer = await ctx.send(request)
            if "reasoning" in self.provenance and answer.choices[0].reasoning:
                thoughts[len(turns)] = answer.choices[0].reasoning
            turns.append({"role": "assistant", "content": answer.text.strip()})
        made: Row = {
            "instruction": turns[0]["content"],
            "response": turns[-1]["content"],
            "conversation": [*(head if self.include_system_prompt else []), *_with_thoughts(turns, thoughts)],
            "system_prompt_key": key,
            "model_name": ctx.completions[-1].model,
        }
        return {name: made[name] for name in self.own_outputs}

    async def _user_turn(self, messages: list[Message], ctx: Context, number: int) -> str:
        """The user's next turn, requested again while it is blank or has no end."""
        prompt = self.chat_template.before_user(messages)
        fields = self._user_turn_fields()
        for reask in itertools.count():
            request = self.llm.complete(prompt, seed=ctx.seed(number + reask * REASK_STRIDE), **fields)
            try:
                completion = await ctx.send(request)
                return read_user_turn(completion.choices[0], self.chat_template.stop)
            except RequestFailed as failed:
                if failed.reason != "empty_content":  # the model wrote nothing with this seed
                    raise
                failure = ParseFailure("the model wrote no instruction", reason="empty_instruction", raw="")
            except ParseFailure as unusable:
                failure = unusable
            if reask == self.max_reasks:
                failure.attempts = reask + 1
                raise failure
            ctx.notes["parse_failures"] = ctx.notes.get("parse_failures", 0) + 1
        raise AssertionError("unreachable: the loop returns or raises")

    def _user_turn_fields(self) -> dict[str, Any]:
        return {
            "max_tokens": self.max_instruction_tokens,
            "stop": list(self.chat_template.stop),
            # vLLM looks for stop texts in the text it returns: so it must contain special tokens.
            "skip_special_tokens": False,
        }

    def _system_prompt(self, row: Row, ctx: Context, number: int) -> tuple[str | None, str | None]:
        """(name, text): the row's own, or one of the task's."""
        if own := row.get("system_prompt"):
            return None, str(own)
        if len(self.system_prompts) < 2:
            return self.system_prompts[0][:2] if self.system_prompts else (None, None)
        weights = [weight for _, _, weight in self.system_prompts]
        [chosen] = ctx.rng(f"system_prompt/{number}").choices(self.system_prompts, weights)
        return chosen[0], chosen[1]


def _with_thoughts(turns: list[Message], thoughts: Mapping[int, str]) -> list[dict[str, Any]]:
    """The turns, the model's with its reasoning, under the name that chat templates read."""
    return [
        {**turn, "reasoning_content": thoughts[place]} if place in thoughts else {**turn}
        for place, turn in enumerate(turns)
    ]


def read_user_turn(choice: Choice, stop: Sequence[str]) -> str:
    """The user's turn in a raw completion. Raises ParseFailure for a blank one and for one without an end."""
    text, ended = choice.text, choice.finish_reason != "length"
    for mark in stop:
        text, found, _ = text.partition(mark)
        ended = ended or bool(found)
    parts = _NEXT_TURN.split(text.rstrip() + "\n", maxsplit=1)
    text, ended = parts[0].strip(), ended or len(parts) > 1
    if not any(char.isalnum() for char in text):
        raise ParseFailure("the instruction is blank", reason="empty_instruction", raw=choice.text)
    if not ended or is_looping(text):
        raise ParseFailure("the instruction has no end", reason="runaway_instruction", raw=choice.text)
    return text


def _template(given: str | Path | None, llm: LLM) -> ChatTemplate:
    if given == "chatml" or (given is None and _CHATML_MODELS.search(llm.model)):
        return chatml(llm.model)
    if given is None:
        raise ConfigurationError(
            f"Magpie: the chat template of {llm.model!r} is not built in",
            hint='Write chat_template="chatml" if it is ChatML, or the path of its tokenizer_config.json.',
        )
    return read_template(given)


def _system_prompts(given: SystemPrompts | None) -> list[tuple[str | None, str, float]]:
    """(name, text, weight) of each; named ones in the order of their names, not in that of the dict."""
    if given is None:
        return []
    if isinstance(given, str):
        prompts: list[tuple[Any, Any, Any]] = [(None, given, 1.0)]
    elif isinstance(given, Mapping):
        pairs = {name: (entry, 1.0) if isinstance(entry, str) else entry for name, entry in given.items()}
        if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in pairs.values()):
            raise ConfigurationError("Magpie: a named system prompt is a text, or a pair (text, weight)")
        prompts = [(name, *pairs[name]) for name in sorted(pairs)]
    else:
        prompts = [(None, text, 1.0) for text in given]
    for _, text, weight in prompts:
        if not isinstance(text, str) or not text.strip():
            raise ConfigurationError(f"Magpie: {text!r:.60} is no system prompt")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ConfigurationError(f"Magpie: {weight!r:.60} is no weight; 0 or more was expected")
    if not sum(weight for _, _, weight in prompts) > 0:
        raise ConfigurationError("Magpie: no system prompt has a weight over 0")
    return prompts
