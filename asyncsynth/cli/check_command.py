"""`asyncsynth check`: what the servers can do, and whether that is enough for a pipeline."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from asyncsynth.cli.pipeline_file import load_pipeline
from asyncsynth.cli.show import event
from asyncsynth.cli.signals import run_until_signal
from asyncsynth.cli.text import complain, number, one_line, say
from asyncsynth.client.concurrency import all_or_error
from asyncsynth.client.llm import LLM
from asyncsynth.client.needs import Feature, Need
from asyncsynth.engine.pipeline import Pipeline
from asyncsynth.errors import EXIT_FAILED_RECORDS, EXIT_OK, ConfigurationError
from asyncsynth.servers.capabilities import Capabilities, Lack, lacks
from asyncsynth.servers.configs import parse_servers, servers_from_environment
from asyncsynth.servers.inspection import AT_ONCE, MOST_MODELS, Choice, Inspection, all_needs, inspect
from asyncsynth.servers.model_lists import Listing, not_served
from asyncsynth.serving.placement import Plan, Target, make_plan, offers

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
    tried = needs if pipeline is not None else None
    look = _Look(plan=plan, needs=tried, model=model, llms=llms, as_json=as_json)
    inspections = run_until_signal(look.at_all)
    problems = _problems(inspections, needs, plan, model)
    if as_json:
        _print_json(inspections, needs, problems)
    else:
        _print_words(inspections, needs, problems, pipeline, plan)
    return EXIT_FAILED_RECORDS if problems else EXIT_OK


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What to look at on each server. `needs` is None to try everything."""

    plan: Plan
    needs: list[Need] | None
    model: str | None
    llms: Sequence[LLM]
    as_json: bool

    async def at_all(self) -> list[Inspection]:
        """All servers side by side; then, again, for models that none of them lists."""
        targets = list(self.plan.targets.values())
        found = await all_or_error([self.at(target, self.unlisted) for target in targets])
        answered = {one.model for inspection in found for one in inspection.found}
        missing = frozenset(self.plan.shared - answered)
        asked = [
            place
            for place, inspection in enumerate(found)
            if missing and inspection.listing.names is not None and inspection.config.models is None
        ]
        again = await all_or_error([self.at(targets[place], lambda _: missing, again=True) for place in asked])
        for place, more in zip(asked, again, strict=True):
            found[place].found += more.found
            found[place].notes += [note for note in more.notes if note not in found[place].notes]
        return found

    def at(self, target: Target, guess: Choice, *, again: bool = False) -> Coroutine[Any, Any, Inspection]:
        """One server."""
        return inspect(
            target.config,
            (lambda _: frozenset()) if again else functools.partial(self.chosen, target),
            self.wanted,
            guess=guess if target.config.models is None else None,
            llms=self.llms,
            hint=self.model or min(target.own | self.plan.shared, default=None),
            client=target.client,
            on_plan=functools.partial(self.tell, target),
            on_wait=complain,
        )

    def chosen(self, target: Target, listing: Listing) -> frozenset[str]:
        """The models to look at on this server."""
        config = target.config
        if self.needs is not None:
            return frozenset(target.own | {model for model in self.plan.shared if offers(config, listing, model)})
        if self.model is not None:
            return frozenset([self.model])
        offered = config.models if config.models is not None else listing.names or frozenset()
        return offered if len(offered) <= MOST_MODELS else frozenset()

    def unlisted(self, listing: Listing) -> frozenset[str]:
        """The models to ask for where there is no list."""
        return frozenset(self.plan.shared) if listing.names is None else frozenset()

    def wanted(self, name: str) -> Sequence[Need]:
        """What to try on a model."""
        return all_needs(name) if self.needs is None else [need for need in self.needs if need.model == name]

    def tell(self, target: Target, models: frozenset[str], requests: int) -> None:
        """What will be sent, before it is: it may cost money."""
        if not self.as_json:
            most = f"at most {number(requests)} small requests, {AT_ONCE} at once"
            complain(one_line(f"{target.config.name}: {most}, for {', '.join(sorted(models))}"))


def _problems(inspections: Sequence[Inspection], needs: Sequence[Need], plan: Plan, model: str | None) -> list[str]:
    """Why the servers, or the pipeline on them, cannot work."""
    missing = set(plan.shared) or ({model} if model is not None else set())
    answered = {found.model for inspection in inspections for found in inspection.found}
    problems = [error for inspection in inspections for error in inspection.errors]
    problems += [said for inspection in inspections if (said := _untried(inspection, needs, plan))]
    chosen = {name for inspection in inspections for name in inspection.chosen}
    if unserved := missing - answered - chosen - _own(plan):
        searched = ", ".join(inspection.config.base_url for inspection in inspections)
        served = {name for inspection in inspections for name in _offered(inspection)}
        problems.append(str(not_served(unserved, served, searched=searched)))
    found = [one for inspection in inspections for one in inspection.found]
    if not needs:  # what an LLM sends by default is refused
        refused = [(one, chat) for one in found if (chat := one.findings.get(Feature.CHAT)) and chat.todo]
        problems += [f"{one.model} at {one.server} {chat.said}\n  {chat.todo}" for one, chat in refused]
    return problems + [lack.text() for lack in lacks(found, needs) if lack.is_fatal]


def _untried(inspection: Inspection, needs: Sequence[Need], plan: Plan) -> str:
    """Why nothing was tried on a server that is looked at for itself; '' where something was."""
    if needs or plan.shared or plan.embedded or inspection.chosen or inspection.errors:
        return ""
    url, names = inspection.config.base_url, sorted(_offered(inspection))
    if not names:
        return f"{url}: nothing was tried, since no model is known ({inspection.listing.said()}): name one with --model"
    shown = f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
    return (
        f"{url} lists {number(len(names))} models, and nothing was tried: name the one to try with --model\n"
        f"  listed: {shown}"
    )


def _own(plan: Plan) -> set[str]:
    own = [*plan.embedded.values(), *(target.own for target in plan.targets.values())]
    return set().union(*own)


def _offered(inspection: Inspection) -> frozenset[str]:
    models = inspection.config.models
    return inspection.listed if models is None else models


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
            say("  not needed" if pipeline is not None else "  nothing tried")
            say(f"    {'lists':<12} {one_line(', '.join(sorted(inspection.listed)) or 'nothing', 400)}")
        for note in inspection.notes:
            say(f"  note: {one_line(note, 400)}")
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
        if finding.todo:
            rows.append(("", one_line(finding.todo, _SAID)))
    rows.append(("load", " and ".join(one.load) or "not reported"))
    if one.thinks:
        rows.append(("reasoning", one_line(one.thinks_text(), 2 * _SAID)))
    if one.unset:
        rows.append(("unset", one_line(one.unset_text())))
    return rows


def _print_json(inspections: Sequence[Inspection], needs: Sequence[Need], problems: Sequence[str]) -> None:
    for inspection in inspections:
        notes = [*inspection.notes]
        notes += [lack.text() for lack in lacks(inspection.found, needs) if not lack.is_fatal]
        config = inspection.config
        shown: dict[str, Any] = {"event": "server", "name": config.name, "base_url": config.base_url}
        shown |= {"origin": config.origin, "serves": sorted(inspection.listed)}
        shown |= {"models": [one.as_json() for one in inspection.found], "errors": inspection.errors, "notes": notes}
        event(shown)
    code = EXIT_FAILED_RECORDS if problems else EXIT_OK
    event({"event": "checked", "problems": list(problems), "exit_code": code})
