"""`asyncsynth check`: what the servers can do, and whether that is enough for a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.cli.show import event
from asyncsynth.cli.signals import run_until_signal
from asyncsynth.cli.text import complain, number, one_line, say
from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.needs import Need
from asyncsynth.engine.pipeline import Pipeline
from asyncsynth.errors import EXIT_FAILED_RECORDS, EXIT_OK, ConfigurationError
from asyncsynth.servers.capabilities import Capabilities, Lack, lacks
from asyncsynth.servers.configs import parse_servers, servers_from_environment
from asyncsynth.servers.inspection import Inspection, all_needs, inspect
from asyncsynth.servers.readiness import not_served
from asyncsynth.serving.binding import Plan, Target, make_plan

_SAID = 160  #: characters of what a server said


def check_command(target: str | None, *, servers: Sequence[str], model: str | None, as_json: bool) -> int:
    """Tests all servers, prints what the tests found, and returns the exit code."""
    pipeline = load_pipeline(target) if target is not None else None
    if pipeline is not None:
        pipeline.checked()
    configs = parse_servers(servers) if servers else servers_from_environment()
    llms = [] if pipeline is None else [llm for llm in pipeline.llms() if model in (None, llm.model)]
    plan = make_plan(llms, servers=configs)
    if not plan.targets:
        raise ConfigurationError(
            "no servers to check", hint="Give --servers URL|FILE|DIR, or set ASYNCSYNTH_SERVERS to them."
        )
    needs = [need for need in (pipeline.needs() if pipeline is not None else ()) if model in (None, need.model)]
    inspections = run_until_signal(lambda: _inspect_all(plan, needs if pipeline is not None else None, model))
    problems = _problems(inspections, needs, plan, model)
    if as_json:
        _print_json(inspections, needs, problems)
    else:
        _print_words(inspections, needs, problems, pipeline, plan)
    return EXIT_FAILED_RECORDS if problems else EXIT_OK


async def _inspect_all(plan: Plan, needs: list[Need] | None, model: str | None) -> list[Inspection]:
    """Tests all servers at the same time. `needs` None tests everything."""

    def chosen(target: Target, listed: frozenset[str]) -> frozenset[str]:
        offered = listed if target.config.models is None else listed & target.config.models
        if needs is not None:
            return frozenset(target.own | (plan.shared & offered))
        return offered if model is None else offered & {model}

    def wanted(name: str) -> Sequence[Need]:
        return all_needs(name) if needs is None else [need for need in needs if need.model == name]

    return await all_or_error(
        [
            inspect(target.config, functools.partial(chosen, target), wanted, client=target.client)
            for target in plan.targets.values()
        ]
    )


def _problems(inspections: Sequence[Inspection], needs: Sequence[Need], plan: Plan, model: str | None) -> list[str]:
    """Why the servers, or the pipeline on them, cannot work."""
    problems = [error for inspection in inspections for error in inspection.errors]
    missing = set(plan.shared) or ({model} if model is not None else set())
    served = {name for inspection in inspections for name in _offered(inspection)}
    searched = ", ".join(inspection.config.base_url for inspection in inspections)
    if unserved := missing - served - _own(plan):
        problems.append(str(not_served(unserved, served, searched=searched)))
    found = [one for inspection in inspections for one in inspection.found]
    return problems + [lack.text() for lack in lacks(found, needs) if lack.is_fatal]


def _own(plan: Plan) -> set[str]:
    own = [*plan.embedded.values(), *(target.own for target in plan.targets.values())]
    return set().union(*own)


def _offered(inspection: Inspection) -> frozenset[str]:
    models = inspection.config.models
    return inspection.listed if models is None else inspection.listed & models


# --- showing -------------------------------------------------------------------------------------


def tell_servers(found: Sequence[Capabilities], needs: Sequence[Need], *, as_json: bool) -> None:
    """At the start of a run, prints a line for each server and model, and one for each need that is met in part."""
    for one in found:
        if as_json:
            event({"event": "server", **one.as_json()})
        else:
            complain(one_line(one.line(), 600))
    for warning in _warnings(lacks(found, needs)) if not as_json else ():
        complain(warning)


def _warnings(found: Sequence[Lack]) -> list[str]:
    """A line for each need that is met in part; steps with the same problem share a line."""
    steps: dict[str, list[str]] = {}
    for lack in found:
        if not lack.is_fatal:
            what = f"{lack.need.feature} {lack.finding.state}: {one_line(lack.finding.said, _SAID)}"
            steps.setdefault(what, []).append(one_line(lack.need.step, 60))
    return [f"  note: step{'s' if len(each) > 1 else ''} {', '.join(each)}: {what}" for what, each in steps.items()]


def _print_words(
    inspections: Sequence[Inspection],
    needs: Sequence[Need],
    problems: Sequence[str],
    pipeline: Pipeline | None,
    plan: Plan,
) -> None:
    for inspection in inspections:
        config = inspection.config
        say(one_line(f"{config.base_url}" + (f" ({config.origin})" if config.origin else ""), 400))
        for one in inspection.found:
            say(f"  {one_line(one.model, 120)}")
            for name, value in _facts(one):
                say(f"    {name:<12} {value}")
        if not inspection.found and not inspection.errors:
            say("  not needed" if pipeline is not None else "  no such model here")
            say(f"    {'serves':<12} {one_line(', '.join(sorted(inspection.listed)) or 'nothing', 400)}")
        for warning in _warnings(lacks(inspection.found, needs)):
            say(warning)
    for spec, models in plan.embedded.items():
        say(f"{spec.display_name}: not started; it will answer for {', '.join(sorted(models))}")
    for problem in problems:
        say("problem: " + "\n  ".join(one_line(line, 400) for line in problem.splitlines()))
    count = f"{number(len(problems))} problem{'s' if len(problems) > 1 else ''}" if problems else "all fine"
    say(f"{number(len(inspections))} server{'s' if len(inspections) > 1 else ''}: {count}")


def _facts(one: Capabilities) -> list[tuple[str, str]]:
    rows = [("software", one_line(one.software) or "not reported")]
    rows.append(("context", f"{one.context:,} tokens" if one.context is not None else "not reported"))
    for feature, finding in one.findings.items():
        name = "fits" if feature == "context" else str(feature)
        rows.append((name, f"{finding.state:<8} {one_line(finding.said, _SAID)}".rstrip()))
    rows.append(("load", " and ".join(one.load) or "not reported"))
    if one.thinks:
        rows.append(("reasoning", one_line(one.thinks_text(), 2 * _SAID)))
    if one.unset:
        rows.append(("unset", one_line(one.unset_text())))
    return rows


def _print_json(inspections: Sequence[Inspection], needs: Sequence[Need], problems: Sequence[str]) -> None:
    for inspection in inspections:
        notes = [lack.text() for lack in lacks(inspection.found, needs) if not lack.is_fatal]
        config = inspection.config
        shown: dict[str, Any] = {"event": "server", "name": config.name, "base_url": config.base_url}
        shown |= {"origin": config.origin, "serves": sorted(inspection.listed)}
        shown |= {"models": [one.as_json() for one in inspection.found], "errors": inspection.errors, "notes": notes}
        event(shown)
    code = EXIT_FAILED_RECORDS if problems else EXIT_OK
    event({"event": "checked", "problems": list(problems), "exit_code": code})
