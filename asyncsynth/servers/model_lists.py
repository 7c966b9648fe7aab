"""What servers list under /v1/models, in the shapes that there are, and what a name on the list stands for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

import orjson

from asyncsynth.client.transport import WireResponse
from asyncsynth.errors import ModelNotServed

_KEYS = ("id", "name", "model")  #: OpenAI's; Ollama's own API
_SHOWN_NAMES = 30


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server lists.

    Args:
        names: None if there is no list that can be used.
        problem: why there is none, or only a part of one; '' for a server that keeps no list.
        status: of its answer; 0 where none came.
    """

    names: frozenset[str] | None
    problem: str = ""
    status: int = 0

    def has(self, model: str) -> bool:
        """Whether the list names `model`, by this or by another of its names."""
        return self.names is not None and is_listed(model, self.names)

    def said(self) -> str:
        """Why no model is known from it, in words."""
        return self.problem or f"/models answered {self.status}: it keeps no list of models"


def read_page(answer: WireResponse) -> list[str] | None:
    """The names in an answer to /v1/models; None if it is no list.

    Read are OpenAI's ``{"data": [{"id": ...}]}``, a bare list (Together), Ollama's ``{"models": [{"name": ...}]}``, and
    lists of plain names. ``data: null`` and an empty list are lists of no models.
    """
    if answer.status != 200:
        return None
    try:
        found = orjson.loads(answer.body.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return None
    entries: Any = found
    if isinstance(found, dict):
        key = next((key for key in ("data", "models") if key in found), None)
        if key is None:
            return None
        entries = found[key] if found[key] is not None else []
    if not isinstance(entries, list):
        return None
    names = [name for entry in entries if (name := _name(entry)) is not None]
    return names if names or not entries else None


def _name(entry: Any) -> str | None:
    if isinstance(entry, str):
        return entry or None
    if not isinstance(entry, dict):
        return None
    return next((entry[key] for key in _KEYS if isinstance(entry.get(key), str) and entry[key]), None)


def next_page(answer: WireResponse) -> str | None:
    """Where the list continues (Anthropic's and OpenAI's pages: ``has_more``, ``last_id``); None at its end."""
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict) or found.get("has_more") is not True:
        return None
    entries = found.get("data")
    last = found.get("last_id") or (_name(entries[-1]) if isinstance(entries, list) and entries else None)
    if not isinstance(last, str) or not last:
        return None
    return f"/models?after_id={quote(last, safe='')}&after={quote(last, safe='')}"


def is_listed(model: str, names: Collection[str]) -> bool:
    """Whether `model` is on the list under this or an equal name.

    Equal are ``m`` and ``m:latest`` (Ollama), ``m`` and ``models/m`` (Gemini), ``owner/m:nitro`` and ``owner/m``
    (variants of OpenRouter), and what a wildcard covers: ``openai/*`` (LiteLLM).
    """
    bare = model.removeprefix("models/")
    equal = {model, bare, f"models/{bare}", f"{model}:latest", model.removesuffix(":latest")}
    if "/" in bare and ":" in bare.rpartition("/")[2]:
        equal.add(model.rpartition(":")[0])
    if any(name in names for name in equal):
        return True
    return any("*" in name and fnmatchcase(model, name.replace("[", "[[]")) for name in names)


def not_served(
    models: Iterable[str], served: Iterable[str], *, searched: str, how: str = "asked", tried: Sequence[str] = ()
) -> ModelNotServed:
    """The error for models that no server offers, with what there is and the ways out.

    Args:
        searched: the servers, or the files, and `how` they were.
        tried: what servers answered to a request for these models, a line each.
    """
    names = sorted(set(served))
    missing = sorted(set(models))
    lines = [f"no server serves the model{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))}"]
    if searched:
        lines.append(f"  {how}: {searched}")
    if names:
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        lines.append(f"  served: {', '.join(names[:_SHOWN_NAMES])}{more}")
    lines += [f"  {line}" for line in tried]
    ways = [
        f"Did you mean {near!r}{f' for {model!r}' if len(missing) > 1 else ''}?"
        for model in missing
        if (near := _nearest(model, names))
    ]
    them = "them" if len(missing) > 1 else "it"
    ways.append(
        f"Start {them} and pass --servers URL|FILE|DIR, set ASYNCSYNTH_SERVERS, or give LLM(base_url=...). If a server "
        "answers for a model that it does not list, name it in a fleet file: servers: [{url: ..., models: [...]}]"
    )
    ways.append("To try the pipeline now: --embedded answers with a small model on this CPU.")
    return ModelNotServed("\n".join(lines), hint="\n  ".join(ways))


def _nearest(model: str, names: Sequence[str]) -> str | None:
    """The served name that was probably meant."""
    near = get_close_matches(model, names, n=1, cutoff=0.6)
    if not near:  # the same model under another owner, or without one
        short = model.rpartition("/")[2].lower()
        near = [name for name in names if name.rpartition("/")[2].lower() == short]
    return near[0] if near else None
