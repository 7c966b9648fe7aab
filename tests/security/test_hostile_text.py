"""Hostile text through every output: nothing steers a terminal, runs in a spreadsheet, or ends the program."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asyncsynth.cli.show import event, progress_line, summary
from asyncsynth.cli.text import complain, cut, escaped, one_line, safe, width
from asyncsynth.client.codec import decode
from asyncsynth.client.messages import ChatRequest, CompletionRequest
from asyncsynth.core.outcomes import Ok, Permanent, Transient
from asyncsynth.engine.report import Counts, Progress, RunReport
from asyncsynth.pipeline.draw import mermaid, plain_text
from asyncsynth.records import canonical_json
from asyncsynth.storage.exports import _cell
from asyncsynth.storage.extent import Completeness
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.commands import asyncsynth_bytes, here, message_of
from tests.kit.files import write_rows
from tests.kit.requests import chat_answer
from tests.security.corpus import BODIES, ERRORS, FORMULA, STEERING, TEXTS

pytestmark = pytest.mark.row(23)

Serve = Callable[..., FaultServer]
ANSWERS = ("lone surrogate", "128 bits", "large float", "finish is a list", "finish is hostile", "model is hostile")
HOSTILE_NAME = "evil \x1b[31m\u202e\nerror: no"

PIPELINE = """
from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration

with Pipeline(name={name!r}) as pipeline:
    LoadJSONL({path!r}, id_column="id") >> TextGeneration(llm=LLM(model="model-a", max_tokens=8))
"""


def echo(info: RequestInfo) -> Fault | None:
    """Answers with the prompt, or as it asks for by name: `ask-body:NAME`, `ask-error:NAME`."""
    said: Any = info.json["messages"][-1]["content"]
    kind, _, name = said.partition(":")
    if kind == "ask-error":
        return Fault("status", status=400, body=ERRORS[name])
    return Fault(
        "status", status=200, body=BODIES[name] if kind == "ask-body" else chat_answer(said, "m\x1b[31m\nerror: no")
    )


def assert_tame(shown: str) -> None:
    """No control byte, and no line that another party wrote."""
    assert not (found := STEERING.search(shown)), ascii(shown[max(0, found.start() - 80) : found.end() + 20])
    assert not [line for line in shown.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run over the whole corpus, by the command, in a directory with a hostile name."""
    import asyncio
    import threading

    folder = tmp_path_factory.mktemp("hostile")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = FaultServer(models=["model-a"], script=echo)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    rows = [{"id": text, "instruction": text, "=1+1": text, "col\x1b[31m": [text]} for text in TEXTS.values()]
    rows += [{"id": f"body {name}", "instruction": f"ask-body:{name}"} for name in ANSWERS]  # the others are retried
    rows += [{"id": f"error {name}", "instruction": f"ask-error:{name}"} for name in ERRORS]
    source = folder / "in.jsonl"
    write_rows(source, rows)
    job = folder / "job.py"
    job.write_text(PIPELINE.format(path=str(source), name=HOSTILE_NAME))
    fleet = folder / "fleet.yaml"
    fleet.write_text(f"servers:\n  - url: {server.base_url}\n    name: {json.dumps(HOSTILE_NAME)}\n")
    output = folder / "run\x1b[31m"
    try:
        options = ("--servers", fleet, "--output", output, "--model-change", "note")  # every answer names another model
        ran = asyncsynth_bytes("run", job, *options)
        again = asyncsynth_bytes("run", job, *options, "--json", "--retry-failed")
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
    return {"job": job, "output": output, "ran": ran, "again": again, "rows": rows}


def test_a_run_says_nothing_that_steers(run: dict[str, Any]) -> None:
    ran, again = run["ran"], run["again"]
    assert ran.returncode == 3, ran.stderr
    for shown in (ran.stdout, ran.stderr, again.stdout, again.stderr):
        assert_tame(shown.decode())
        assert b"Traceback" not in shown
    assert again.returncode == 3
    done = [json.loads(line) for line in again.stdout.splitlines()][-1]
    assert done["pipeline"] == HOSTILE_NAME, "JSON carries the text as it is"
    assert done["counts"]["earlier"] + done["counts"]["ok"] + done["counts"]["failed"] == len(run["rows"])


def test_every_command_that_reads_shows_it_tamely(run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    output, job = run["output"], run["job"]
    for arguments in (
        ("status", output),
        ("status", output, "--quality"),
        ("compare", output, output),
        ("draw", job),
        ("draw", job, "--form", "mermaid"),
    ):
        here(*arguments)
        shown = capsys.readouterr()
        assert shown.out
        assert_tame(shown.out + shown.err)
    for arguments in (("status", output), ("status", output, "--quality"), ("compare", output, output)):
        here(*arguments, "--json")
        shown = capsys.readouterr()
        assert_tame(shown.out)
        assert json.loads(shown.out)


def test_jsonl_carries_every_text_unchanged_and_without_a_control_byte(run: dict[str, Any]) -> None:
    here("export", run["output"], "--to", run["job"].with_name("out.jsonl"))
    raw = run["job"].with_name("out.jsonl").read_bytes()
    assert not [c for c in raw.decode() if c != "\n" and (c < " " or "\x7f" <= c <= "\x9f")]
    rows = {row["id"]: row for row in map(json.loads, raw.splitlines())}
    assert rows.keys() >= set(TEXTS.values())
    for text in TEXTS.values():
        assert rows[text]["instruction"] == rows[text]["=1+1"] == text
        assert rows[text]["col\x1b[31m"] == [text]
        assert rows[text]["generation"].strip() == text.strip()
    assert rows["body lone surrogate"]["generation"] == "a\ufffdb"


def test_csv_has_no_cell_that_runs(run: dict[str, Any]) -> None:
    here("export", run["output"], "--to", run["job"].with_name("out.csv"))
    raw = run["job"].with_name("out.csv").read_bytes()
    assert not [c for c in raw.decode() if c not in "\t\r\n" and (c < " " or "\x7f" <= c <= "\x9f")]
    table = list(csv.reader(io.StringIO(raw.decode(), newline="")))
    assert len(table) > len(TEXTS)
    assert not [cell for line in table for cell in line if FORMULA.match(cell)]
    assert len({len(line) for line in table}) == 1, "no text made a cell of its own"


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_carries_every_text_unchanged(run: dict[str, Any]) -> None:
    import pyarrow.parquet

    here("export", run["output"], "--to", run["job"].with_name("out.parquet"))
    table = pyarrow.parquet.read_table(run["job"].with_name("out.parquet"))
    assert set(table.column("instruction").to_pylist()) >= set(TEXTS.values())


def test_errors_of_commands_are_tame(tmp_path: Path) -> None:
    bad = tmp_path / "in\x1b[31m.jsonl"
    bad.write_bytes(b'{"instruction": "\x1b[31m\r"}\n')
    job = tmp_path / "job.py"
    job.write_text(PIPELINE.format(path=str(bad), name="p"))
    refused = asyncsynth_bytes("run", job, "--servers", "http://\x1b[31m:1/v1")
    assert refused.returncode == 2
    shown = refused.stderr.decode()
    assert not STEERING.search(shown), ascii(shown)
    assert not STEERING.search(safe(message_of("status", bad)))


def test_a_directory_whose_name_is_no_text_is_shown_in_words_and_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"/tmp/\xff\x1b[31m\n\xc2\x9b")
    report = RunReport(
        pipeline=HOSTILE_NAME,
        directory=Path(name),
        completeness=Completeness(True, 0, 0),
        elapsed_s=1.0,
        counts=Counts(failed_rows=1),
        answered_by={HOSTILE_NAME: 1 << 70},
        requests=0,
        prompt_tokens=0,
        completion_tokens=0,
        retries={HOSTILE_NAME: 1},
        latency_p50_s=None,
        latency_p99_s=None,
        notes=[*TEXTS.values()],
    )
    report.counts.failures[HOSTILE_NAME] = 3
    summary(report, {name: 1})
    assert_tame(capsys.readouterr().out)
    event(report.as_json())
    shown = capsys.readouterr().out
    assert_tame(shown)
    assert json.loads(shown)["directory"] == name
    assert json.loads(shown)["answered_by"] == {HOSTILE_NAME: 1 << 70}


@pytest.mark.parametrize("name", TEXTS)
def test_one_line_of_progress_whatever_the_names(name: str) -> None:
    counts = Counts()
    counts.failures[TEXTS[name]] = 1
    servers = [{"name": TEXTS[name], "state": "open", "limit": 4, "in_flight": 1, "why": TEXTS[name]}]
    progress = Progress("p", 1.0, counts, 10, 1, 1, 1, 1.0, 1.0, {}, servers, TEXTS[name])
    line = progress_line(progress)
    assert not STEERING.search(line)
    assert "\n" not in line
    assert "\t" not in line
    assert width(cut(line, 79)) <= 79


@pytest.mark.parametrize("name", TEXTS)
def test_the_ways_to_show_a_text(name: str) -> None:
    text = TEXTS[name]
    assert not STEERING.search(safe(text))
    assert not set("\n\t") & set(one_line(text))
    assert json.loads(escaped(json.dumps(text, ensure_ascii=False))) == text
    assert not STEERING.search(escaped(json.dumps(text, ensure_ascii=False)))
    for cell in (_cell(text), _cell([text]), _cell({text: text})):
        assert not FORMULA.match(cell)
        assert not [c for c in cell if c not in "\t\r\n" and (c < " " or "\x7f" <= c <= "\x9f")]


def test_text_in_other_scripts_and_emoji_stays() -> None:
    for text in ("می\u200cخواهم", "क्\u200dष", "👩\u200d👩\u200d👧 🏳️\u200d🌈", "naïve ¿ ½", "中文，日本語", "שלום"):
        assert safe(text) == text


def test_a_stream_that_lacks_a_character_gets_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    complain("p50 · 中")
    assert raw.getvalue() == b"p50 \\xb7 \\u4e2d\n"


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_answer_is_an_outcome_that_can_be_journaled(name: str) -> None:
    for request in (ChatRequest("m", []), CompletionRequest("m", "")):
        for dialect in ("openai", "llamacpp"):
            outcome = decode(request, 200, {}, BODIES[name], 0.0, dialect=dialect)  # type: ignore[arg-type]
            if isinstance(outcome, Ok):
                done = outcome.value
                usage = [done.usage.prompt_tokens, done.usage.completion_tokens]
                canonical_json([done.model, usage, [[c.text, c.finish_reason] for c in done.choices]])
                assert all(0 <= count < 1 << 63 for count in usage)
                assert all(c.finish_reason is None or isinstance(c.finish_reason, str) for c in done.choices)
            else:
                assert isinstance(outcome, Transient | Permanent)
                canonical_json(outcome.message)


@pytest.mark.parametrize("status", [300, 307, 400, 401, 404, 413, 422, 429, 500, 503])
def test_a_hostile_error_is_an_outcome_with_one_tame_line(status: int) -> None:
    for body in [*ERRORS.values(), *BODIES.values()]:
        headers = {"retry-after": "\x1b[31m" * 1000, "location": "http://x/\x1b[31m\r\n"}
        outcome = decode(ChatRequest("m", []), status, headers, body, 0.0)
        assert not isinstance(outcome, Ok)
        canonical_json(outcome.message)
        assert not STEERING.search(outcome.message), ascii(outcome.message[:200])
        assert len(outcome.message) < 10_000


def test_a_line_of_a_megabyte_is_shown_short() -> None:
    long = "x" * 1_000_000 + "\x1b"
    assert len(one_line(long)) == 200
    answer = decode(ChatRequest("m", []), 200, {}, chat_answer(long), 0.0)
    assert isinstance(answer, Ok)
    assert answer.value.choices[0].text == long


def test_drawings_hold_no_live_markup(run: dict[str, Any]) -> None:
    from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration

    for text in TEXTS.values():
        name = text.replace("/", "").replace("\\", "").replace("\0", "").lstrip(".") or "x"
        with Pipeline(name=name) as pipeline:
            LoadDataFromDicts(data=[{"instruction": "x", text: 1}]) >> TextGeneration(llm=LLM(model=text))
        for drawing in (mermaid(pipeline), plain_text(pipeline)):
            assert not STEERING.search(drawing)
        body = mermaid(pipeline).split("flowchart TD")[1].replace("<br/>", "").replace("-->", "")
        assert not set("<>") & set(body)
