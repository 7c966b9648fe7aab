"""Runs a behaviour as a user would: a pipeline of 12 records against the scripted server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import tenacity
import yaml

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, RetryPolicy, TextGeneration
from asyncsynth.engine.report import Counts
from asyncsynth.errors import AsyncsynthError
from tests.conformance.server import MODEL, Server
from tests.conformance.table import RECORDS, AllFail, Behaviour, Complete, OneFails, Told

#: Quick repeats. What the server asks for (Retry-After) and what protects it (pauses) stays as it is.
RETRY = RetryPolicy(wait=tenacity.wait_none(), budget_per_s=1000.0)


def wrong(behaviour: Behaviour, folder: Path, within_s: float) -> str:
    """What is not as it must be; '' if all is."""
    return asyncio.run(_wrong(behaviour, folder, within_s))


async def _wrong(behaviour: Behaviour, folder: Path, within_s: float) -> str:
    async with Server(behaviour.answer, **behaviour.options) as server:
        try:
            async with asyncio.timeout(within_s):
                return await _compared(behaviour, folder, server)
        except TimeoutError:
            return f"no end after {within_s} s; asked {dict(server.asked)}, records {dict(server.records)}"


async def _compared(behaviour: Behaviour, folder: Path, server: Server) -> str:
    try:
        with Pipeline(name="conformance") as pipeline:
            rows = [{"instruction": f"question {number}."} for number in range(RECORDS)]
            LoadDataFromDicts(data=rows) >> TextGeneration(llm=LLM(model=MODEL, **behaviour.llm), **behaviour.task)
        result = await pipeline.arun(
            servers=[_servers(behaviour, folder, server)], output=folder / "run", retry=RETRY, **behaviour.run
        )
    except AsyncsynthError as error:
        return _told(behaviour, str(error)) if isinstance(behaviour.expected, Told) else f"the run stopped: {error}"
    except Exception as error:  # an error that is none of the package's is wrong whatever was expected
        return f"the run crashed: {error!r}"
    texts = {row["instruction"]: row["generation"] for row in result["default"]["train"]}
    report = result.report
    said = " ".join([report.stopped_why, report.advice, *(one["message"] for one in report.counts.examples.values())])
    match behaviour.expected:
        case Told():
            return _told(behaviour, said) or ("" if not texts else f"{len(texts)} records are ok")
        case AllFail(reason, requests):
            return _differs({reason: RECORDS}, report.counts, {}, {}) or _asked(server, requests)
        case OneFails(reasons, words):
            one = {reason: 1 for reason in reasons if reason in report.counts.failures}
            example = next(iter(report.counts.examples.values()), {"key": "", "message": ""})
            if one and (example["key"] != "3" or words.lower() not in example["message"].lower()):
                return f"the failure is {example}; {words!r} was expected, of record 3"
            return _differs(one or {"/".join(reasons): 1}, report.counts, _good(skipped=3), texts)
        case Complete(text, requests):
            wanted = _good() if text is None else dict.fromkeys(_good(), text)
            return _differs({}, report.counts, wanted, texts) or _asked(server, requests)


def _servers(behaviour: Behaviour, folder: Path, server: Server) -> str:
    if not behaviour.fleet:
        return server.base_url
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump({"servers": [{"url": server.base_url, **behaviour.fleet}]}))
    return str(file)


def _good(skipped: int = -1) -> dict[str, str]:
    return {f"question {number}.": f"answer {number}" for number in range(RECORDS) if number != skipped}


def _told(behaviour: Behaviour, said: str) -> str:
    assert isinstance(behaviour.expected, Told)
    missing = [word for word in behaviour.expected.words if word.lower() not in said.lower()]
    return f"{missing} is not in: {said}" if missing else ""


def _differs(failures: dict[str, int], counts: Counts, wanted: dict[str, str], texts: dict[str, str]) -> str:
    if dict(counts.failures) != failures:
        return f"failures {dict(counts.failures)}, not {failures}: {counts.examples}"
    if texts != wanted:
        return f"the texts are {texts}, not {wanted}"
    return ""


def _asked(server: Server, requests: int | None) -> str:
    asked = sum(server.records.values())
    return "" if requests is None or asked <= requests else f"{asked} requests for records; at most {requests} may be"
