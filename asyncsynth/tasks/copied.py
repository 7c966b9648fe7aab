"""Did a model copy the prompt instead of following it? Small ones do."""

from __future__ import annotations

import re
from functools import lru_cache

from asyncsynth.tasks.parsing import words
from asyncsynth.tasks.templates import prompt_source

#: A rewrite that shares this many successive words with our prompt, and not with the text, copied the prompt.
_COPIED_RUN = 7
_PROMPT_WORDS = re.compile(
    r"</?(?:instruction|response|answer|request)>|\b(?:given|rewritten|re-written|evolved|original|above)\s+"
    r"(?:prompt|instruction|response)\b|\#+\s*(?:given|rewritten|new|created)\b",
    re.IGNORECASE,
)


def copies_prompt(text: str, previous: str, prompt: str) -> bool:
    """Whether a text holds words of our prompt that `previous`, the text it was made from, does not hold."""
    before = {found[0].casefold() for found in _PROMPT_WORDS.finditer(previous)}
    if any(found[0].casefold() not in before for found in _PROMPT_WORDS.finditer(text)):
        return True
    return bool((_runs(text) & _prompt_runs(prompt)) - _runs(previous))


@lru_cache(maxsize=16)
def _prompt_runs(prompt: str) -> frozenset[tuple[str, ...]]:
    text = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", "\n", prompt_source(prompt), flags=re.DOTALL)
    quoted = re.findall(r'"([^"\n]{30,})"', prompt_source(prompt))  # texts inside {% set %}
    return frozenset().union(*(_runs(part) for part in (*text.split("\n"), *quoted)))


def _runs(text: str) -> frozenset[tuple[str, ...]]:
    said = words(text)
    return frozenset(tuple(said[place : place + _COPIED_RUN]) for place in range(len(said) - _COPIED_RUN + 1))
