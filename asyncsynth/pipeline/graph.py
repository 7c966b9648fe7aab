"""The graph of steps: built by `>>`, checked before anything is sent, compiled to a plan for the engine."""

from __future__ import annotations

from contextvars import Token
from pathlib import Path
from typing import Any, Self

from asyncsynth.calling import checked
from asyncsynth.client.llm import LLM
from asyncsynth.client.needs import Need
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.barriers import check_barriers
from asyncsynth.pipeline.current import CURRENT, StepRegistry
from asyncsynth.pipeline.depends import dependencies
from asyncsynth.pipeline.draw import mermaid, plain_text
from asyncsynth.pipeline.fingerprint import jsonable, short_hash
from asyncsynth.pipeline.naming import Origin, origin
from asyncsynth.pipeline.plan import Node, Plan
from asyncsynth.pipeline.shapes import check_joins
from asyncsynth.pipeline.step import (
    ColumnOrigins,
    GlobalStep,
    JoinStep,
    ModelStep,
    RowStep,
    SourceStep,
    Step,
    nearest,
    snake_case,
)
from asyncsynth.storage.files import atomic_write
from asyncsynth.storage.layout import refuse_own_files


class Graph:
    """Steps and their connections. `asyncsynth.Pipeline` adds execution.

    Args:
        name: names the default run directory and the drawings; by default that of the file that makes the pipeline
            (``pipeline`` if there is none, as in a notebook).
    """

    @checked
    def __init__(self, name: str | None = None, *, description: str = "") -> None:
        self.is_named: bool = name is not None
        #: Where a pipeline without a name was made.
        self.origin: Origin | None = origin() if name is None else None
        if name is None:
            name = "pipeline" if self.origin is None else self.origin.name
        if not name or any(char in name for char in "/\\\0") or name.startswith("."):
            raise PipelineError(f"a pipeline's name is used for a folder; {name!r} cannot be one")
        self.name = name
        self.description = description
        self.steps: list[Step] = []
        self._edges: list[tuple[Step, Step]] = []
        self._token: Token[StepRegistry[Any] | None] | None = None

    def __enter__(self) -> Self:
        self._token = CURRENT.set(self)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._token is not None:
            CURRENT.reset(self._token)
            self._token = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, steps={len(self.steps)})"

    # --- building ------------------------------------------------------------------------------

    def add(self, step: Step) -> None:
        """Adds a step and names it if it has no name."""
        taken = {other.name for other in self.steps}
        if step._explicit_name:
            if not step._name or any(char in "/\\" or not char.isprintable() for char in step._name):
                raise PipelineError(f"{step._name!r} cannot name a step: results are named after it")
            if step.name in taken:
                raise PipelineError(f"two steps are named {step.name!r}", step=step.name)
        else:
            base = snake_case(type(step).__name__)
            number = 0
            while f"{base}_{number}" in taken:
                number += 1
            step._name = f"{base}_{number}"
        step._graph = self
        self.steps.append(step)

    def connect(self, left: Step, right: Step) -> None:
        """`left >> right`."""
        for step in (left, right):
            if step._graph is None:
                self.add(step)
            elif step._graph is not self:
                raise PipelineError(
                    f"step {step.name!r} belongs to another pipeline ({step._graph.name!r})", step=step.name
                )
        if (left, right) in self._edges:
            raise PipelineError(f"{left.name!r} >> {right.name!r} is written twice", step=right.name)
        self._edges.append((left, right))

    def replace(self, old: Step, new: Step) -> None:
        """Replaces a step by another, which takes over its connections."""
        self.steps[self.steps.index(old)] = new
        self._edges = [(new if left is old else left, new if right is old else right) for left, right in self._edges]
        old._graph, new._graph = None, self

    @property
    def edges(self) -> list[tuple[Step, Step]]:
        """The connections, in the order in which they were written."""
        return list(self._edges)

    def draw(self, path: str | Path | None = None) -> str:
        """The pipeline as a Mermaid flowchart, which GitHub, VS Code and notebooks show; made offline.

        With a `path` the drawing is written there too: ``.mmd`` Mermaid, ``.md`` Mermaid in a fence,
        ``.txt`` plain text. Raises PipelineError for another suffix.
        """
        drawing = mermaid(self)
        if path is None:
            return drawing
        target = Path(path)
        match target.suffix:
            case ".mmd" | ".mermaid":
                text = drawing
            case ".md":
                text = f"```mermaid\n{drawing}```\n"
            case ".txt":
                text = drawing = plain_text(self)
            case suffix:
                raise PipelineError(
                    f"draw() does not write {suffix or 'files without a suffix'}",
                    hint="Use .mmd, .md or .txt.",
                )
        refuse_own_files(target)
        atomic_write(target, text.encode())
        return drawing

    # --- checking ------------------------------------------------------------------------------

    def plan(self, *, run_seed: int = 0, answering: dict[str, str] | None = None) -> Plan:
        """Checks the graph and its columns and compiles it.

        `answering` maps a model's name to the model that will really answer (the embedded one): a result of
        a stand-in must never pass for a result of the model named, so it is part of the fingerprint.
        Raises PipelineError naming step, column and nearest match.
        """
        nodes = self._sorted()
        self._check_shape(nodes)
        flows = self._check_columns(nodes)
        for node, depends in zip(
            nodes, dependencies([node.step for node in nodes], [node.before for node in nodes], flows), strict=True
        ):
            node.depends = depends
        settings = [_settings(node.step, answering or {}) for node in nodes]
        _fingerprint(nodes, settings, run_seed)
        _give_seed_ids(nodes)
        ends = [node for node in nodes if not node.after]
        leaves = {"default" if len(ends) == 1 else node.step.name: node.index for node in ends}
        fields = {
            "run_seed": run_seed,
            "steps": {
                node.step.name: {**own, "after": [nodes[index].step.name for index in node.before]}
                for node, own in zip(nodes, settings, strict=True)
            },
        }
        plan = Plan(nodes, leaves, fields, short_hash(fields), dict(answering or {}))
        for node in nodes:
            code = node.step.code()
            plan.packages.update(code.packages)
            plan.notes += [_missed(node.step.name, where, what) for where, what in sorted(code.missed.items())]
        return plan

    def llms(self) -> list[LLM]:
        """All models that the pipeline asks, in the order of the steps."""
        return [llm for step in self.steps if isinstance(step, ModelStep) for llm in step.models()]

    def needs(self) -> list[Need]:
        """What the steps need of the servers of their models."""
        return [need for step in self.steps if isinstance(step, ModelStep) for need in step.needs()]

    def columns(self) -> dict[Step, ColumnOrigins]:
        """The columns that leave each step, as far as they are known; nothing for a graph that is not valid."""
        try:
            nodes = self._sorted()
            flows = self._check_columns(nodes)
        except PipelineError:
            return {}
        return {node.step: flow for node, flow in zip(nodes, flows, strict=True) if flow is not None}

    def _sorted(self) -> list[Node]:
        if not self.steps:
            raise PipelineError(
                "the pipeline has no steps", hint="Make the steps inside `with Pipeline() as pipeline:`."
            )
        before: dict[Step, list[Step]] = {step: [] for step in self.steps}
        for left, right in self._edges:
            before[right].append(left)
        order: list[Step] = []
        waiting = list(self.steps)
        while waiting:
            ready = [step for step in waiting if all(other in order for other in before[step])]
            if not ready:
                cycle = _cycle(waiting, before)
                names = " -> ".join(step.name for step in cycle)
                raise PipelineError(f"the steps form a cycle: {names}", step=cycle[0].name)
            order.extend(ready)
            waiting = [step for step in waiting if step not in ready]
        place = {step: index for index, step in enumerate(order)}
        nodes = [Node(index, step) for index, step in enumerate(order)]
        for node in nodes:
            node.before = [place[other] for other in before[node.step]]
            node.depth = 1 + max((nodes[index].depth for index in node.before), default=-1)
            for index in node.before:
                nodes[index].after.append(node.index)
        return nodes

    def _check_shape(self, nodes: list[Node]) -> None:
        sources = [node for node in nodes if isinstance(node.step, SourceStep)]
        if len(sources) != 1:
            names = ", ".join(node.step.name for node in sources) or "none"
            raise PipelineError(
                f"a pipeline has one source; this one has {len(sources)} ({names})",
                hint="Begin with LoadDataFromDicts, LoadJSONL or a generator task, joined on by `>>`.",
            )
        if sources[0].before:
            name = sources[0].step.name
            raise PipelineError(f"{name!r} reads the input: nothing can come before it", step=name)
        for node in nodes:
            step = node.step
            if isinstance(step, SourceStep):
                continue
            if not isinstance(step, (RowStep, JoinStep, ModelStep, GlobalStep)):
                raise PipelineError(
                    f"step {step.name!r} is a {type(step).__name__}, which is no kind of step that a run can take",
                    step=step.name,
                    hint="Derive it from RowStep, JoinStep, GlobalStep or Task, or make it with @step or @task.",
                )
            if not node.before:
                raise PipelineError(
                    f"step {step.name!r} is not connected: nothing flows into it",
                    step=step.name,
                    hint="Join it with `>>`, or make it outside the `with` block.",
                )
            if len(node.before) > 1 and not isinstance(step, JoinStep):
                names = ", ".join(repr(nodes[index].step.name) for index in node.before)
                raise PipelineError(
                    f"step {step.name!r} gets rows from {names}, but does not join branches",
                    step=step.name,
                    hint="Put GroupColumns, CombineOutputs or MergeBranches between.",
                )
        check_barriers(nodes)
        check_joins(nodes)

    def _check_columns(self, nodes: list[Node]) -> list[ColumnOrigins | None]:
        """Follows the columns from the source; where they cannot be known, checking stops."""
        flows: list[ColumnOrigins | None] = []
        for node in nodes:
            step = node.step
            if isinstance(step, SourceStep):
                known = step.known_columns()
                flows.append(None if known is None else dict.fromkeys(known, step.name))
                continue
            incoming = [flows[index] for index in node.before]
            known_incoming = [flow for flow in incoming if flow is not None]
            if len(known_incoming) < len(incoming):
                step.check_mappings()
                flows.append(None)
            else:
                flows.append(step.flow(known_incoming))
        return flows


def _settings(step: Step, answering: dict[str, str]) -> dict[str, Any]:
    """The step's settings, including its code even if the class overrides `settings`."""
    settings = step.settings()
    if "code" not in settings and (parts := step.code().parts):
        settings = {**settings, "code": parts}
    return _with_answering(settings, answering)


def _missed(step: str, where: str, what: str) -> str:
    return f"step {step}: cannot follow {where} ({what}): changes to it are not noticed when the run resumes"


def _fingerprint(nodes: list[Node], settings: list[dict[str, Any]], run_seed: int) -> None:
    """Gives each model step the key of its journal entries."""
    seen: dict[str, int] = {}
    for node, own in zip(nodes, settings, strict=True):
        if isinstance(node.step, ModelStep):
            # The output column does not change a result.
            deciding = {key: value for key, value in own.items() if key != "output_mappings"}
            base = short_hash({"settings": deciding, "run_seed": run_seed})
            # Two equal steps are two samples: number them, so that neither takes the other's results.
            number = seen.get(base, 0)
            seen[base] = number + 1
            node.fingerprint = base if number == 0 else short_hash([base, number])


def _give_seed_ids(nodes: list[Node]) -> None:
    """Distinguishes each model step from its neighbours by its requests, never by how it reads the answer.

    With the same seeds an edited parser makes the same requests, and so finds the answers that were paid for. A
    prompt, a schema or a version is not part of the seed: if it matters, it changes the request itself.
    """
    seen: dict[str, int] = {}
    for node in nodes:
        if isinstance(node.step, ModelStep):
            models = [jsonable(llm, where=f"step {node.step.name!r}") for llm in node.step.models()]
            base = short_hash({"step": type(node.step).__name__, "models": models})
            number = seen.get(base, 0)
            seen[base] = number + 1
            node.seed_id = base if number == 0 else short_hash([base, number])


def _with_answering(settings: dict[str, Any], answering: dict[str, str]) -> dict[str, Any]:
    """Adds to each model in `settings` the name of the model that answers in its place."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            walked = {key: walk(item) for key, item in value.items()}
            if isinstance(model := value.get("model"), str) and model in answering:
                walked["answered_by"] = answering[model]
            return walked
        if isinstance(value, list):
            return [walk(item) for item in value]
        return value

    walked: dict[str, Any] = walk(settings)
    return walked


def _cycle(waiting: list[Step], before: dict[Step, list[Step]]) -> list[Step]:
    """One cycle among steps that all wait for another: walk back until a step repeats."""
    path = [waiting[0]]
    while True:
        previous = next(step for step in before[path[-1]] if step in waiting)
        if previous in path:
            return [*path[path.index(previous) :], previous][::-1]
        path.append(previous)


def find_step(graph: Graph, name: str) -> Step:
    """The step of that name. Raises PipelineError with the nearest match."""
    for step in graph.steps:
        if step.name == name:
            return step
    known = [step.name for step in graph.steps]
    raise PipelineError(f"no step is named {name!r}{nearest(name, known)}", hint=f"Steps: {', '.join(known)}")
