"""Separates a model's reasoning from its answer. Pure; the codec calls it for every task.

Servers with a reasoning parser send the thought in a separate field. The others leave it in the text, between
marks. Text counts as a thought only if that is certain:

1. A block whose opening mark is the first thing in the text, white space aside. Further blocks may follow at once.
   The block ends at its first closing mark; if the thought opened the mark again, at the last of the closing marks
   that follow one another. Marks between quotes, backticks or brackets are quoted text, and end nothing.
2. A closing mark without an opening one before it: chat templates put the opening mark into the prompt. It must be
   at the start of a line, or directly after the text, or after the end of a sentence. Inside a code fence, between
   quotes or in the middle of a sentence ("a missing </think> tag") it is quoted text, and part of the answer.
   After quoted marks, only one alone on its line ends a thought. If the request itself ended with an opening
   mark (a prefilled answer, a raw prompt), the text begins inside the block, and rule 1 applies.
3. The channels of gpt-oss at the start of the text. `final` is the answer, the others are the thought.
4. A block that never ends leaves no answer: `unfinished`.

| marks                                                   | models                                  |
| ------------------------------------------------------- | --------------------------------------- |
| `<think>`, `<thinking>`, `<thought>`, in any case       | DeepSeek-R1, Qwen3, QwQ, GLM, EXAONE    |
| `<seed:think>`                                          | Seed-OSS                                |
| `[THINK]`, `[/THINK]`                                   | Magistral                               |
| `◁think▷`, `◁/think▷`                                   | Kimi                                    |
| `<|begin_of_thought|>`, `<|end_of_thought|>`            | Sky-T1, OpenThinker                     |
| `<|START_THINKING|>`, `<|END_THINKING|>`                | Command A                               |
| `<|channel|>analysis<|message|>`, `analysis…assistantfinal` | gpt-oss, with and without special tokens |

An answer keeps every byte except the white space between it and the thought; a thought loses the white space around
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_OPEN = re.compile(
    r"<(?P<tag>think|thinking|thought|seed:think)>|(?P<magistral>\[THINK\])|(?P<kimi>◁think▷)"
    r"|(?P<sky><\|begin_of_thought\|>)|(?P<command><\|START_THINKING\|>)",
    re.IGNORECASE,
)
#: The closing mark of each kind; for tags, the name is put in.
_ENDS = {
    "magistral": r"\[/THINK\]",
    "kimi": "◁/think▷",
    "sky": r"<\|end_of_thought\|>",
    "command": r"<\|END_THINKING\|>",
}
_LONE = re.compile(
    r"</(?P<tag>think|thinking|thought|seed:think)>|(?P<magistral>\[/THINK\])|(?P<kimi>◁/think▷)"
    r"|(?P<sky><\|end_of_thought\|>)|(?P<command><\|END_THINKING\|>)",
    re.IGNORECASE,
)
#: What models put around the answer after such a thought.
_WRAPPED = re.compile(
    r"\s*(?:<\|begin_of_solution\|>(?P<sky>.*?)(?:<\|end_of_solution\|>\s*|$)"
    r"|<\|START_RESPONSE\|>(?P<command>.*?)(?:<\|END_RESPONSE\|>\s*|$))\Z",
    re.DOTALL,
)
_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_AROUND = {"`": "`", '"': '"', "'": "'", "(": ")", "“": "”", "‘": "’", "«": "»", "「": "」"}
_SENTENCE_ENDS = ".!?…:;)]}\"'”’。！？"

_CHANNEL = re.compile(
    r"\s*(?:<\|start\|>)?(?:assistant)?(?:<\|channel\|>)?(?P<name>analysis|commentary|final)"
    r"[^<\n]{0,80}(?:<\|constrain\|>[^<\n]{0,40})?<\|message\|>"
)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call)\|>|(?=<\|start\|>)|(?=<\|channel\|>)")
_BARE_CHANNELS = re.compile(
    r"\s*analysis(?P<thought>.*?)(?<![ \t`\"'(])assistantfinal(?![`\"')])(?P<answer>.*)\Z", re.DOTALL
)
_BARE_BEGIN = re.compile(
    r"\s*analysis(?:(?:We|The|They|This|It|You|So|To|User|I|Need|Let|Just) |(?:We|I|Let|It)['\u2019]|Okay)"
)
#: An opening mark at the end of what was sent.
_OPENED = re.compile(f"(?:{_OPEN.pattern})\\s*\\Z", re.IGNORECASE)


class Separated(NamedTuple):
    """A text in its parts. `unfinished`: the thought has no end, so there is no answer."""

    answer: str
    reasoning: str | None = None
    unfinished: bool = False


def separate(text: str, *, cut: bool = False, lone: bool = True) -> Separated:
    """The answer in a model's text and the thought before it, by the rules above.

    Args:
        text: the answer as the server sent it.
        cut: it ended at max_tokens. Only then does a text that looks like the start of gpt-oss's thought count as one.
        lone: whether a closing mark alone may end a thought (rule 2); False if the server has already separated it.
    """
    if "<|message|>" in text and (found := _channels(text)) is not None:
        return found
    if (bare := _BARE_CHANNELS.match(text)) is not None:
        return Separated(bare["answer"].strip(), bare["thought"].strip() or None)
    if cut and _BARE_BEGIN.match(text):
        return Separated("", text.strip().removeprefix("analysis").strip(), unfinished=True)
    thoughts: list[str] = []
    rest = text
    while (opening := _OPEN.match(rest, _first_letter(rest))) is not None:
        end = _end_of(rest, opening)
        if end is None:
            thoughts.append(rest[opening.end() :].strip())
            return Separated("", _joined(thoughts), unfinished=True)
        thoughts.append(rest[opening.end() : end.start()].strip())
        rest = rest[end.end() :]
    if not thoughts:
        if not lone or (end := _lone_end(text)) is None:
            return Separated(text)
        thoughts.append(text[: end.start()].strip())
        rest = text[end.end() :]
    if (wrapped := _WRAPPED.match(rest)) is not None:
        rest = wrapped[str(wrapped.lastgroup)].rstrip()
    return Separated(rest.lstrip(), _joined(thoughts))


def opened_in(prompt: str) -> str:
    """The mark that a prefilled answer or a raw prompt leaves open at its end; '' for none."""
    found = _OPENED.search(prompt[-64:])
    return found[0] if found is not None else ""


def _joined(thoughts: list[str]) -> str | None:
    return "\n\n".join(thought for thought in thoughts if thought) or None


def _first_letter(text: str) -> int:
    return len(text) - len(text.lstrip())


def _end_of(text: str, opening: re.Match[str]) -> re.Match[str] | None:
    """The mark that closes a block at the start of a text; None if it never ends."""
    kind = str(opening.lastgroup)
    closing = f"</{re.escape(opening[kind])}>" if kind == "tag" else _ENDS[kind]
    marks = re.compile(f"{re.escape(opening[0])}|(?P<end>{closing})", re.IGNORECASE)
    depth, last = 1, None
    for mark in marks.finditer(text, opening.end()):
        if last is not None and (mark["end"] is None or not _closes(text, mark)):
            break  # in the answer, after the end
        if _is_quoted(text, mark):
            continue
        if mark["end"] is None:
            depth += 1
            continue
        last, depth = mark, depth - 1
        if not depth:
            break
    return last


def _lone_end(text: str) -> re.Match[str] | None:
    """The first closing mark, if no opening mark comes before it and it does close a thought."""
    if "/" not in text and "<|" not in text:
        return None
    end, quoted = None, False
    for end in _LONE.finditer(text):
        if not _is_quoted(text, end):
            break
        quoted = True
    if end is None or len(_FENCE.findall(text, 0, end.start())) % 2:
        return None
    for opening in _OPEN.finditer(text, 0, end.start()):
        if not _is_quoted(text, opening):
            return None
        quoted = True
    if quoted and (text[: end.start()].rstrip(" \t")[-1:] != "\n" or text[end.end() : end.end() + 1] not in ("", "\n")):
        return None
    return end if _closes(text, end) else None


def _closes(text: str, mark: re.Match[str]) -> bool:
    """Whether a closing mark ends a thought, and is not in the middle of a sentence about marks."""
    if _is_quoted(text, mark):
        return False
    line = text[text.rfind("\n", 0, mark.start()) + 1 : mark.start()]
    if not line.strip() or not line[-1].isspace():
        return True
    return line.rstrip()[-1] in _SENTENCE_ENDS and bool(text[mark.end() :].strip())


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark is between its own quotes, backticks or brackets."""
    before = text[mark.start() - 1] if mark.start() else ""
    return before in _AROUND and text[mark.end() : mark.end() + 1] == _AROUND[before]


def _channels(text: str) -> Separated | None:
    """The channels of gpt-oss; None if the text does not begin with one."""
    head = _CHANNEL.match(text)
    if head is None:
        return None
    thoughts: list[str] = []
    answers: list[str] = []
    while True:
        end = _end_of_channel(text, head)
        body = text[head.end() : end.start() if end is not None else len(text)].strip()
        (answers if head["name"] == "final" else thoughts).append(body)
        if end is None:
            break
        head = _CHANNEL.match(text, end.end())
        if head is None:
            if (rest := text[end.end() :].strip()) and not rest.startswith("<|"):
                answers.append(rest)
            break
    # Of several answers the last one counts.
    return Separated(answers[-1] if answers else "", _joined(thoughts), unfinished=not answers)


def _end_of_channel(text: str, head: re.Match[str]) -> re.Match[str] | None:
    """The mark that ends a channel: before another channel, or at the end of the text. Other marks are quoted
    text, but end a thought that nothing else ends."""
    marks = list(_CHANNEL_END.finditer(text, head.end()))
    for mark in marks:
        if not text[mark.end() :].strip() or _CHANNEL.match(text, mark.end()):
            return mark
    return marks[0] if marks and head["name"] != "final" else None


# --- separate fields --------------------------------------------------------------------------

_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_PARTS = frozenset({"thinking", "reasoning", "redacted_thinking"})


def reasoning_in(message: Mapping[str, Any]) -> str | None:
    """The thought that a server sends in a field beside the answer (`reasoning_content` of vLLM, SGLang, DeepSeek;
    `reasoning` of vLLM, OpenRouter, mlx-lm; `reasoning_details`), or in parts of the content. None for none."""
    for name in _FIELDS:
        if (value := message.get(name)) and (found := _thought_of(value).strip()):
            return found
    content = message.get("content")
    if isinstance(content, list):
        return "".join(_thought_of(part) for part in content if is_thought(part)).strip() or None
    return None


def is_thought(part: Any) -> bool:
    """Whether a part of a content belongs to the model's thought, not to the answer."""
    return isinstance(part, dict) and part.get("type") in _PARTS


def _thought_of(value: Any, depth: int = 0) -> str:
    """The text of a thought, in any of the shapes that servers use."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "".join(_thought_of(item, depth + 1) for item in value)
    if isinstance(value, dict):
        for name in ("text", "summary", "content", "thinking", "reasoning"):
            if found := _thought_of(value.get(name), depth + 1):
                return found
    return ""


def where_it_thinks(choice: Mapping[str, Any]) -> str:
    """Where a choice, as the server sent it, holds a thought: "text", "field" (a separate one), or '' for none."""
    message = choice.get("message", choice)
    if not isinstance(message, dict):
        return ""
    if reasoning_in(message) is not None:
        return "field"
    text = message.get("content", message.get("text"))
    if not isinstance(text, str):
        return ""
    found = separate(text, cut=choice.get("finish_reason") == "length")
    return "text" if found.unfinished or found.answer != text else ""


def answer_logprobs(logprobs: Any, answer: str) -> Any:
    """The token probabilities of the answer alone, after a thought: the last tokens that spell the answer. None if
    they cannot be found, and for raw completions."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        return None
    starts, text = [], ""
    for token in tokens:
        starts.append(len(text))
        text += str(token.get("token", ""))
    place = text.rfind(answer)
    if place < 0 or not answer:
        return None
    first = max(index for index, start in enumerate(starts) if start <= place)
    return {**logprobs, "content": tokens[first:]}
