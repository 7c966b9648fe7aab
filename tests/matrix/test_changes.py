"""Row 10: each field of the fingerprint, changed on a run that is there: refused with what differs; others accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration, UltraFeedback
from asyncsynth.client.needs import SAMPLE_SEED
from asyncsynth.errors import ConfigurationError, RunChangedError
from asyncsynth.testing import FaultServer, RequestInfo
from tests.kit.loops import run_async
from tests.kit.pipelines import server
from tests.matrix.plugin import Tried

ROWS = [{"instruction": f"number {n}", "other": f"another {n}"} for n in range(3)]


def made(
    *,
    data: Any = ROWS,
    loader: dict[str, Any] | None = None,
    llm: dict[str, Any] | None = None,
    judge: dict[str, Any] | None = None,
    more: bool = False,
    between: bool = False,
    **settings: Any,
) -> Pipeline:
    """A generation and a judge after it."""
    with Pipeline(name="changes") as pipeline:
        last: Any = LoadDataFromDicts(data=data, **(loader or {}))
        settings = {"num_generations": 2, "group_generations": True, **settings}
        generate = TextGeneration(LLM(**{"model": "model-a", **(llm or {})}), **settings)
        last >> generate
        last = generate
        if between:
            again = TextGeneration(LLM(model="model-b"), output_mappings={"generation": "x", "model_name": "y"})
            last >> again
            last = again
        rate = UltraFeedback(LLM(model="judge"), **{"rationales": False, **(judge or {})})
        rate.input_mappings = {"generations": "generation"}
        last >> rate
        if more:
            rate >> TextGeneration(LLM(model="model-b"), output_mappings={"generation": "x", "model_name": "y"})
    return pipeline


#: What is changed -> (how, a word of the difference that must be shown)
DECIDE: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"llm": {"model": "model-b"}}, "model"),
    "temperature": ({"llm": {"temperature": 0.123}}, "temperature"),
    "top_p": ({"llm": {"top_p": 0.5}}, "top_p"),
    "max_tokens": ({"llm": {"max_tokens": 77}}, "max_tokens"),
    "stop": ({"llm": {"stop": ["###"]}}, "stop"),
    "presence_penalty": ({"llm": {"presence_penalty": 0.1}}, "presence_penalty"),
    "frequency_penalty": ({"llm": {"frequency_penalty": 0.1}}, "frequency_penalty"),
    "extra_body": ({"llm": {"extra_body": {"top_k": 3}}}, "top_k"),
    "system prompt": ({"system_prompt": "Be brief."}, "system_prompt"),
    "template": ({"template": "Say: {{ instruction }}"}, "template"),
    "number of generations": ({"num_generations": 3}, "num_generations"),
    "input column": ({"input_mappings": {"instruction": "other"}}, "input_mappings"),
    "judge's aspect": ({"judge": {"aspect": "helpfulness"}}, "aspect"),
    "judge's schema": ({"judge": {"rationales": True}}, "rationales"),
    "graph": ({"between": True}, "text_generation_1"),
    "run seed": ({"seed": 5}, "seed"),
    "first row": ({"data": [{"instruction": "x", "other": "y"}, *ROWS[1:]]}, "input"),
    "fewer rows": ({"data": ROWS[:2]}, "input"),
    "order of rows": ({"data": ROWS[::-1]}, "input"),
    "how rows are known": ({"loader": {"id_column": "instruction"}}, "keys"),
}

ALIKE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "concurrency": {"concurrency": 3},
    "window": {"window": 2},
    "retried failures": {"retry_failed": True},
    "where a model runs": {"llm": {"base_url": None}},
    "name of the key's variable": {"llm": {"api_key_env": "OTHER_KEY"}},
    "re-asks": {"max_reasks": 9},
    "more rows": {"data": [*ROWS, {"instruction": "new", "other": "new"}]},
    "a step more at the end, agreed to": {"more": True, "update": True},
}

_RUN_OPTIONS = ("seed", "concurrency", "window", "retry_failed", "update")


async def attempt(fake: FaultServer, run: Path, change: dict[str, Any]) -> Any:
    options = {name: change[name] for name in _RUN_OPTIONS if name in change}
    settings = {name: value for name, value in change.items() if name not in _RUN_OPTIONS}
    if "base_url" in settings.get("llm", {}):
        settings["llm"] = {"base_url": fake.base_url}
    return await made(**settings).arun(servers=[fake.base_url], output=run, **options)


def paid(fake: FaultServer) -> int:
    log: list[RequestInfo] = fake.log or []
    return sum(info.json.get("seed", SAMPLE_SEED) != SAMPLE_SEED for info in log)


@pytest.mark.row(10)
def test_what_decides_a_result_is_refused_with_its_difference(tmp_path: Path, tried: Tried) -> None:
    async def main() -> None:
        async with server(keep_requests=True) as fake:
            await attempt(fake, tmp_path / "run", {})
            before = paid(fake)
            for name, (change, word) in DECIDE.items():
                with pytest.raises((RunChangedError, ConfigurationError)) as refused:
                    await attempt(fake, tmp_path / "run", change)
                assert word in str(refused.value), f"{name}: {refused.value}"
                assert paid(fake) == before, name
            tried(len(DECIDE), "fields that decide, all refused")

    run_async(main())


@pytest.mark.row(10)
@pytest.mark.parametrize("name", ALIKE)
def test_what_does_not_decide_is_accepted_and_pays_for_what_is_new_only(
    tmp_path: Path, tried: Tried, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "a-key-of-no-use")

    async def main() -> None:
        async with server(keep_requests=True) as fake:
            first = await attempt(fake, tmp_path / "run", {})
            assert first.report.counts.ok == 3
            before = paid(fake)
            result = await attempt(fake, tmp_path / "run", ALIKE[name])
            assert result.report.complete
            new = {"more rows": 2 + 1, "a step more at the end, agreed to": 3}.get(name, 0)
            assert paid(fake) - before == new
            tried(1, "fields that do not")

    run_async(main())
