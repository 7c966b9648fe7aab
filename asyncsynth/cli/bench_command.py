"""`asyncsynth bench`: what a user's own servers do with how many requests at once, and what limits them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncsynth.cli.show import event
from asyncsynth.cli.signals import run_until_signal
from asyncsynth.cli.text import complain, number, one_line, say
from asyncsynth.client.llm import LLM
from asyncsynth.client.messages import Message, ModelRequest
from asyncsynth.client.server_pool import Server
from asyncsynth.core.adaptive import AdaptiveLimit
from asyncsynth.core.limiter import Limiter
from asyncsynth.errors import EXIT_FAILED_RECORDS, EXIT_OK, ConfigurationError, InputError
from asyncsynth.inputs.jsonl import JsonlReader
from asyncsynth.inputs.reader import BadRow
from asyncsynth.servers.configs import ServerConfig, parse_servers, require_keys, servers_from_environment
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.servers.inspection import Inspection, inspect
from asyncsynth.servers.load_test import BenchPlan, Finding, Level, bench, limited_by
from asyncsynth.servers.readiness import not_served

_SUBJECTS = ("a river", "an old bridge", "bread", "the night train", "a garden in winter", "a lost letter", "maps")


def bench_command(
    *,
    servers: Sequence[str],
    model: str | None,
    prompts: Path | None,
    max_tokens: int,
    plan: BenchPlan,
    as_json: bool,
) -> int:
    """Loads each server on its own, one after the other; prints what was found and returns the exit code."""
    configs = parse_servers(servers) if servers else servers_from_environment()
    if not configs:
        raise ConfigurationError(
            "no servers to load", hint="Give --servers URL|FILE|DIR, or set ASYNCSYNTH_SERVERS to them."
        )
    require_keys(configs)
    conversations = _read(prompts) if prompts is not None else None
    failed = False
    for config in configs:
        one = functools.partial(_one, config, model, conversations, max_tokens, plan, as_json)
        failed |= not run_until_signal(one)
    code = EXIT_FAILED_RECORDS if failed else EXIT_OK
    if as_json:
        event({"event": "done", "exit_code": code})
    return code


async def _one(
    config: ServerConfig,
    model: str | None,
    conversations: Sequence[list[Message]] | None,
    max_tokens: int,
    plan: BenchPlan,
    as_json: bool,
) -> bool:
    """One server; False where it could not be measured."""
    chosen = await _model(config, model)
    if isinstance(chosen, Inspection):
        for error in chosen.errors:
            complain(f"error: {error}")
        if as_json:
            event({"event": "server", "server": config.name, "url": config.base_url, "errors": chosen.errors})
        return False
    _announce(config, chosen, max_tokens, plan, as_json=as_json)
    llm = LLM(model=chosen, max_tokens=max_tokens)

    def server(limiter: Limiter) -> Server:
        return Server(config.name, config.base_url, frozenset([chosen]), exchange_for(config), limiter=limiter)

    def told(level: Level) -> None:
        if as_json:
            event({"event": "level", "server": config.name, **asdict(level)})
        else:
            say(_line(level))

    finding = await bench(
        server,
        _requests(llm, conversations),
        plan,
        adaptive=lambda: AdaptiveLimit(
            maximum=min(config.max_concurrency or 4096, plan.max_concurrency), slots=config.slots
        ),
        on_level=told,
    )
    _conclude(config, chosen, finding, as_json=as_json)
    return finding.best is not None


async def _model(config: ServerConfig, wanted: str | None) -> str | Inspection:
    """The model to ask for, after it has answered once; or what was wrong."""

    def choose(listed: frozenset[str]) -> frozenset[str]:
        offered = listed if config.models is None else listed & config.models
        return offered & {wanted} if wanted is not None else offered if len(offered) == 1 else frozenset()

    inspection = await inspect(config, choose, lambda _: ())
    if inspection.errors:
        return inspection
    chosen = choose(inspection.listed)
    if chosen:
        return min(chosen)
    if wanted is not None:
        inspection.errors.append(str(not_served([wanted], inspection.listed, searched=config.base_url)))
    else:
        names = ", ".join(sorted(inspection.listed)) or "none"
        inspection.errors.append(f"{config.base_url} has several models or none ({names}); name one with --model")
    return inspection


def _requests(llm: LLM, conversations: Sequence[list[Message]] | None) -> Iterator[ModelRequest]:
    """Without an end: the given conversations again and again, or made ones of which no two begin alike."""
    if conversations is not None:
        yield from (llm.chat(messages) for messages in itertools.cycle(conversations))
    for turn in itertools.count():
        text = f"{turn}. Tell a story about {_SUBJECTS[turn % len(_SUBJECTS)]}, in as many words as you like."
        yield llm.chat([{"role": "user", "content": text}])


def _read(path: Path) -> list[list[Message]]:
    """The conversations of a JSONL file. Raises InputError naming the row that has none."""
    conversations = []
    for place, item in enumerate(JsonlReader(path), start=1):
        row: dict[str, Any] = {} if isinstance(item, BadRow) else item.row
        messages = row.get("messages")
        text = next((row[name] for name in ("instruction", "prompt") if isinstance(row.get(name), str)), None)
        if isinstance(messages, list) and messages:
            conversations.append(messages)
        elif text is not None:
            conversations.append([{"role": "user", "content": text}])
        else:
            raise InputError(f"row {place} has no column 'instruction', 'prompt' or 'messages'", path=str(path))
    if not conversations:
        raise InputError("there are no rows", path=str(path))
    return conversations


# --- showing -------------------------------------------------------------------------------------


def _announce(config: ServerConfig, model: str, max_tokens: int, plan: BenchPlan, *, as_json: bool) -> None:
    """What will be sent, before it is: it may cost money."""
    sizes = plan.levels()
    what = f"{one_line(config.name)} ({config.base_url}): {one_line(model)}, {sizes[0]} to {sizes[-1]} requests at once"
    most = f"at most {number(plan.max_requests)} requests of up to {number(max_tokens)} tokens each"
    complain(f"{what}, for {plan.seconds:.0f} s; {most}: that is what it may cost")
    if as_json:
        event(
            {
                "event": "server", "server": config.name, "url": config.base_url, "model": model, "levels": sizes,
                "seconds": plan.seconds, "max_requests": plan.max_requests, "max_tokens": max_tokens, "errors": [],
            }
        )  # fmt: skip
    else:
        say(_HEAD)


_HEAD = "  in flight   tokens/s  requests/s   p50 s   p99 s   its queue  running   KV  client CPU"


def _line(level: Level) -> str:
    """A level as a row of the table."""

    def or_dash(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    words = [
        f"  {level.concurrency:>9}", f"{level.tokens_per_s:>9.1f}", f"{level.requests_per_s:>10.2f}",
        f"{level.p50_s:>6.2f}", f"{level.p99_s:>6.2f}", f"{or_dash(level.waiting, '.1f'):>10}",
        f"{or_dash(level.running, '.1f'):>7}", f"{or_dash(level.kv, '.0%'):>4}", f"{level.client_cpu:>10.0%}",
    ]  # fmt: skip
    notes = [] if level.settled else ["too few answers to go by"]
    if level.settled and not level.adaptive and level.answers < 4 * level.concurrency:
        notes.append("few answers: within 10 %")
    notes += ["--max-requests reached"] if level.cut_short else []
    notes += [f"{level.refused} refused"] if level.refused else []
    notes += [f"{level.failed} failed"] if level.failed else []
    return "  ".join(words) + (f"  ({', '.join(notes)})" if notes else "")


def _conclude(config: ServerConfig, model: str, finding: Finding, *, as_json: bool) -> None:
    best, knee, share = finding.best, finding.knee, finding.adaptive_share
    limits = limited_by(finding)
    if as_json:
        event(
            {
                "event": "bench", "server": config.name, "model": model, "limited_by": limits, "ended": finding.ended,
                "knee": None if knee is None else knee.concurrency,
                "best_tokens_per_s": None if best is None else best.tokens_per_s,
                "best_concurrency": None if best is None else best.concurrency,
                "adaptive": None if finding.adaptive is None else asdict(finding.adaptive),
                "adaptive_share": share,
            }
        )  # fmt: skip
        return
    if best is not None and knee is not None:
        say(f"  best       {number(best.tokens_per_s)} tokens/s at {best.concurrency} in flight")
        say(f"  knee       {knee.concurrency} in flight: {knee.tokens_per_s / best.tokens_per_s:.0%} of that, "
            f"p50 {knee.p50_s:.2f} s")  # fmt: skip
    say(f"  limited by {limits}")
    if finding.ended:
        say(f"  ended      {finding.ended}")
    if finding.adaptive is not None and share is not None:
        say(f"  adaptive   {share:.0%} of the best, the limit a run would have: {one_line(finding.adaptive.why)}")
    elif finding.used_up:
        say(f"  adaptive   not measured: {finding.used_up}")
