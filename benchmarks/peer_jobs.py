"""The same job in other programs: JSONL in, one chat completion a row, JSONL out. Started by peers.py, in the virtual
environment of each.

    VENV/bin/python benchmarks/peer_jobs.py NAME '{"url": ..., "input": ..., "output": ..., "concurrency": 256}'

Each follows its own documentation, with the settings that allow `concurrency` requests in flight. Caches, telemetry and
progress displays are off where possible. CPU time starts after the imports and includes children.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import IO, Any

from harness import MODEL, Phase, peak_rss_mb

Options = dict[str, Any]
MAX_TOKENS, TEMPERATURE = 256, 0.7
KEY = "no-key"


def bare_aiohttp(options: Options, phase: Phase) -> None:
    """What one writes by hand: aiohttp with a connection for each request in flight, orjson, uvloop."""
    import aiohttp
    import orjson

    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}

    async def run(rows: Iterator[bytes], out: IO[bytes]) -> None:
        connector = aiohttp.TCPConnector(limit=options["concurrency"], force_close=False)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def ask(row: dict[str, Any]) -> str:
                body = orjson.dumps(_body(row["instruction"]))
                async with session.post(f"{options['url']}/chat/completions", data=body) as response:
                    response.raise_for_status()
                    answer = orjson.loads(await response.read())
                text: str = answer["choices"][0]["message"]["content"]
                return text

            await _workers(ask, rows, out, options["concurrency"])

    _in_loop(options, phase, run)


def openai_sdk(options: Options, phase: Phase) -> None:
    """`AsyncOpenAI`, as it comes."""
    import openai

    _openai(options, phase, lambda: openai.AsyncOpenAI(base_url=options["url"], api_key=KEY))


def openai_sdk_raised(options: Options, phase: Phase) -> None:
    """`AsyncOpenAI` with a pool of as many connections as there are requests in flight."""
    import openai

    try:
        import httpx2 as http
    except ImportError:  # the SDK's 1.x to 2.x
        import httpx as http
    limits = http.Limits(max_connections=options["concurrency"], max_keepalive_connections=options["concurrency"])

    def client() -> Any:
        return openai.AsyncOpenAI(
            base_url=options["url"], api_key=KEY, http_client=openai.DefaultAsyncHttpxClient(limits=limits)
        )

    _openai(options, phase, client)


def openai_sdk_aiohttp(options: Options, phase: Phase) -> None:
    """`AsyncOpenAI` over aiohttp, the variant that its documentation offers for many requests."""
    import openai

    def client() -> Any:
        http = openai.DefaultAioHttpClient()
        return openai.AsyncOpenAI(base_url=options["url"], api_key=KEY, http_client=http)

    _openai(options, phase, client)


def _openai(options: Options, phase: Phase, client_of: Callable[[], Any]) -> None:
    async def run(rows: Iterator[bytes], out: IO[bytes]) -> None:
        async with client_of() as client:

            async def ask(row: dict[str, Any]) -> str:
                answer = await client.chat.completions.create(**_body(row["instruction"]))
                text: str = answer.choices[0].message.content
                return text

            await _workers(ask, rows, out, options["concurrency"])

    _in_loop(options, phase, run)


def distilabel(options: Options, phase: Phase) -> None:
    """distilabel: LoadDataFromDicts >> TextGeneration with OpenAILLM, a batch of as many as may be in flight."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with phase.measured():
        with open(options["input"]) as file:
            rows = [json.loads(line) for line in file]
        generation = {"max_new_tokens": MAX_TOKENS, "temperature": TEMPERATURE}
        llm = OpenAILLM(model=MODEL, base_url=options["url"], api_key=KEY, generation_kwargs=generation)
        batch = options["concurrency"]
        with Pipeline(name="peer", cache_dir=Path(options["output"]).parent / "cache") as pipeline:
            LoadDataFromDicts(data=rows, batch_size=batch) >> TextGeneration(llm=llm, input_batch_size=batch)
        made = pipeline.run(use_cache=False)["default"]["train"]
        made.to_json(options["output"], lines=True)


def curator(options: Options, phase: Phase) -> None:
    """Bespoke Curator: one `LLM` over a dataset, its rate limits raised out of the way."""
    import os
    from importlib.util import find_spec

    found = find_spec("litellm")
    if found is not None and found.origin is not None:  # it brings the tokenizer that would be downloaded
        tokenizers = Path(found.origin).parent / "litellm_core_utils" / "tokenizers"
        os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(tokenizers))
    from bespokelabs import curator as bespoke
    from datasets import Dataset

    most = 10**9
    with phase.measured():
        with open(options["input"]) as file:
            rows = Dataset.from_list([json.loads(line) for line in file])

        class Writer(bespoke.LLM):
            def prompt(self, row: dict[str, Any]) -> str:
                return str(row["instruction"])

            def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
                return {**row, "generation": response}

        writer = Writer(
            model_name=MODEL,
            backend="openai",
            backend_params={
                "base_url": options["url"], "api_key": KEY, "max_concurrent_requests": options["concurrency"],
                "max_requests_per_minute": most, "max_tokens_per_minute": most,
            },
            generation_params={"max_tokens": MAX_TOKENS, "temperature": TEMPERATURE},
        )  # fmt: skip
        made = writer(rows, working_dir=str(Path(options["output"]).parent / "cache"))
        getattr(made, "dataset", made).to_json(options["output"], lines=True)


def data_designer(options: Options, phase: Phase) -> None:
    """NVIDIA's Data Designer: a seed file, one LLM text column, as many parallel requests."""
    import data_designer.config as dd
    from data_designer.interface import DataDesigner

    with phase.measured():
        inference = dd.ChatCompletionInferenceParams(
            max_tokens=MAX_TOKENS, temperature=TEMPERATURE, max_parallel_requests=options["concurrency"]
        )
        model = dd.ModelConfig(alias="model", model=MODEL, provider="mock", inference_parameters=inference)
        config = dd.DataDesignerConfigBuilder(model_configs=[model])
        config.with_seed_dataset(dd.LocalFileSeedSource(path=options["input"]))
        config.add_column(dd.LLMTextColumnConfig(name="generation", model_alias="model", prompt="{{ instruction }}"))
        provider = dd.ModelProvider(name="mock", endpoint=options["url"], api_key=KEY)
        designer = DataDesigner(artifact_path=Path(options["output"]).parent, model_providers=[provider])
        made = designer.create(config, num_records=options["records"])
        made.export(options["output"])


# --- what the loops written by hand share --------------------------------------------------------


def _body(instruction: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": instruction}],
        "temperature": TEMPERATURE,
        "top_p": 1.0,
        "max_tokens": MAX_TOKENS,
    }


async def _workers(
    ask: Callable[[dict[str, Any]], Awaitable[str]], rows: Iterator[bytes], out: IO[bytes], number: int
) -> None:
    """`concurrency` workers share the rows and write each answer when it arrives."""
    import orjson

    async def work() -> None:
        for line in rows:
            row = orjson.loads(line)
            row["generation"] = await ask(row)
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(work())


def _in_loop(
    options: Options, phase: Phase, run: Callable[[Iterator[bytes], IO[bytes]], Coroutine[Any, Any, None]]
) -> None:
    import uvloop

    with phase.measured(), open(options["input"], "rb") as rows, open(options["output"], "wb") as out:
        uvloop.run(run(iter(rows), out))


JOBS = {
    job.__name__: job
    for job in (
        bare_aiohttp, openai_sdk, openai_sdk_raised, openai_sdk_aiohttp, distilabel, curator, data_designer,
    )
}  # fmt: skip


def main() -> None:
    """One job; prints what it cost. SystemExit: it made other than a row with an answer for each."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    phase = Phase()
    JOBS[name](options, phase)
    with open(options["output"]) as file:
        answered = sum(1 for line in file if json.loads(line).get("generation"))
    if answered != options["records"]:
        raise SystemExit(f"{name}: {answered} rows with an answer of {options['records']}")
    print()
    print(json.dumps({"wall_s": phase.wall_s, "cpu_s": phase.cpu_s, "peak_rss_mb": round(peak_rss_mb(), 1)}))


if __name__ == "__main__":
    main()
