"""What a step is: the unit that a pipeline is built of.

There are five kinds, which differ in what the engine does with them:

- `SourceStep` reads rows lazily;
- `RowStep` changes one row without asking a model (recomputed on resume, never journaled);
- `JoinStep` merges the rows that its branches made of one record;
- `ModelStep` asks a model (its results are journaled; see `asyncsynth.tasks.base.Task`);
- `GlobalStep` sees all rows before it passes on the first one.

A step gets its columns from `inputs` / `outputs` and by the user's mappings, as in the field:
``input_mappings={"instruction": "prompt"}`` reads the step's input `instruction` from the column `prompt`;
``output_mappings={"generation": "response"}`` writes its output `generation` to the column `response`.
"""

from __future__ import annotations

import inspect
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from asyncsynth.calling import checked
from asyncsynth.calling import nearest as nearest  # where steps and tasks take it from
from asyncsynth.errors import PipelineError
from asyncsynth.pipeline.classes import is_user_class
from asyncsynth.pipeline.current import StepRegistry, current_graph
from asyncsynth.pipeline.dropped import Dropped as Dropped
from asyncsynth.pipeline.findings import Code
from asyncsynth.pipeline.fingerprint import is_own, jsonable
from asyncsynth.pipeline.making import KNOWN, Makings
from asyncsynth.pipeline.usercode import Collector
from asyncsynth.records import Row

if TYPE_CHECKING:
    from asyncsynth.client.llm import LLM
    from asyncsynth.client.messages import ModelRequest
    from asyncsynth.client.needs import Need
    from asyncsynth.inputs.reader import Reader
    from asyncsynth.pipeline.context import Context

#: How many rows a step makes of one row: a number (1: the row stays, or none), as many as a "list" of the row has
#: items, or what cannot be known before the run. Only 1 keeps the row's key; else each row has a key of its own.
RowCount = int | Literal["list", "unknown"]
#: column -> name of the step that made it; what the checker carries along the graph
ColumnOrigins = dict[str, str]

#: Columns that name the model that wrote a row's text, and the one that judged or labelled it. A later step may
#: overwrite them without being told to; a judge leaves the writer's name alone.
PROVENANCE_COLUMNS = frozenset({"model_name", "judge_model"})


#: Attributes that every step and every task has, and that decide no result.
_BASE_STATE = frozenset({"_name", "_explicit_name", "_graph", "_alone", "_alone_lock"})


class Step:
    """Base of all steps.

    Args:
        name: unique in the pipeline; by default the class name in snake case and a number.
        input_mappings: step input -> column it is read from.
        output_mappings: step output -> column it is written to.

    Every public attribute belongs to the fingerprint, so that a changed setting never reuses
    an old result. Attributes that do not change results go into `not_fingerprinted`.
    """

    #: Raise it when the step's prompts or semantics change: old results are then redone.
    version: ClassVar[int] = 1
    not_fingerprinted: ClassVar[frozenset[str]] = frozenset()

    inputs: tuple[str, ...] = ()
    optional_inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises CallError for arguments that do not fit the class's constructor."""
        super().__init_subclass__(**options)
        # Not a metaclass: users' classes may have one of their own, such as ABC's.
        if isinstance(own := vars(cls).get("__init__"), FunctionType):
            setattr(cls, "__init__", checked(own))  # noqa: B010 - the type checker refuses the assignment

    @checked
    def __init__(
        self,
        *,
        name: str | None = None,
        input_mappings: Mapping[str, str] | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if forgotten := self._unwritten():
            raise _forgotten(type(self), forgotten[0])
        self._name = name or ""
        self._explicit_name = name is not None
        self.input_mappings: dict[str, str] = dict(input_mappings or {})
        self.output_mappings: dict[str, str] = dict(output_mappings or {})
        self._graph: StepRegistry[Step] | None = None
        if (graph := current_graph()) is not None:
            graph.add(self)

    @property
    def name(self) -> str:
        """The step's name in errors, fingerprints, drawings and statistics."""
        return self._name or snake_case(type(self).__name__)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"

    def row_count(self) -> RowCount:
        """How many rows the step makes of one; for the check that the branches of a join can match."""
        return "unknown"

    @classmethod
    def _unwritten(cls) -> list[str]:
        """The methods that this class must define and does not."""
        return [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]

    def argument(self, name: str) -> Any:
        """The `name` that the constructor was given, so that `--set` can make the step again. AttributeError if the
        step does not keep it."""
        if inspect.isroutine(getattr(type(self), name, None)):
            raise AttributeError(name)  # a method of that name does not count
        return getattr(self, name)

    # --- wiring --------------------------------------------------------------------------------

    def __rshift__(self, other: Any) -> Any:
        """`step >> step` or `step >> [step, step]`; returns the right side, so that chains work."""
        targets = list(other) if isinstance(other, (list, tuple)) else [other]
        for target in targets:
            self._connect(self, target)
        return other

    def __rrshift__(self, others: Sequence[Step]) -> Step:
        """`[step, step] >> step`."""
        for other in others:
            self._connect(other, self)
        return self

    @staticmethod
    def _connect(left: Any, right: Any) -> None:
        for side in (left, right):
            if not isinstance(side, Step):
                raise PipelineError(
                    f"`>>` joins steps, but one side is {type(side).__name__}: {side!r:.80}",
                    hint="Write `step >> step`, `step >> [step, step]` or `[step, step] >> step`.",
                )
            if not hasattr(side, "_graph"):
                raise PipelineError(
                    f"{type(side).__name__}.__init__ does not call super().__init__()",
                    hint="Call it there, with the `name` and the mappings that the class takes.",
                )
        graph = left._graph or right._graph
        if graph is None:
            raise PipelineError(
                f"`{left.name} >> {right.name}` is outside a pipeline.",
                step=left.name,
                hint="Make and join the steps inside `with Pipeline() as pipeline:`.",
            )
        graph.connect(left, right)

    # --- columns -------------------------------------------------------------------------------

    def source_of(self, name: str) -> str:
        """The column that the step's input `name` is read from."""
        return self.input_mappings.get(name, name)

    def target_of(self, name: str) -> str:
        """The column that the step's output `name` is written to."""
        return self.output_mappings.get(name, name)

    def view(self, row: Row) -> Row:
        """The row as this step sees it: its inputs by their own names. KeyError if one is missing."""
        column_of = self.input_mappings.get
        seen = {name: row[column_of(name, name)] for name in self.inputs}
        for name in self.optional_inputs:
            column = column_of(name, name)
            if column in row:
                seen[name] = row[column]
        return seen

    def merge(self, row: Row, outputs: Row) -> Row:
        """A new row: `row` with the step's outputs written to their columns."""
        if not self.output_mappings:
            return {**row, **outputs}
        column_of = self.output_mappings.get
        return {**row, **{column_of(name, name): value for name, value in outputs.items()}}

    def flow(self, incoming: Sequence[ColumnOrigins]) -> ColumnOrigins:
        """Checks the columns that arrive (one mapping a predecessor) and returns those that leave.

        Raises PipelineError naming this step, the column and the nearest match.
        """
        columns = dict(incoming[0]) if incoming else {}
        self.check_mappings()
        # An optional input that the user maps by name must be there.
        self.require(columns, (*self.inputs, *(set(self.optional_inputs) & self.input_mappings.keys())))
        for output in self.outputs:
            self.add_column(columns, output)
        return columns

    def check_mappings(self) -> None:
        """Mappings must name inputs and outputs that the step has, and no column twice."""
        known_inputs = (*self.inputs, *self.optional_inputs)
        for kind, mapping, known in (
            ("input_mappings", self.input_mappings, known_inputs),
            ("output_mappings", self.output_mappings, self.outputs),
        ):
            for name in mapping:
                if name not in known:
                    raise PipelineError(
                        f"step {self.name!r}: {kind} names {name!r}, which the step does not have"
                        f"{nearest(name, known)}",
                        step=self.name,
                        column=name,
                        hint=f"It has {', '.join(known) or 'none'}.",
                    )
        targets = [self.target_of(name) for name in self.outputs]
        for column in targets:
            if targets.count(column) > 1:
                raise PipelineError(
                    f"step {self.name!r} would write two of its outputs to the column {column!r}",
                    step=self.name,
                    column=column,
                    hint="Give each output a column of its own in output_mappings.",
                )

    def require(self, columns: ColumnOrigins, names: Sequence[str]) -> None:
        """Raises PipelineError unless each input in `names` finds its column."""
        for name in names:
            column = self.source_of(name)
            if column not in columns:
                raise PipelineError(
                    f"step {self.name!r} needs the column {column!r}, which nothing before it makes"
                    f"{nearest(column, columns)}",
                    step=self.name,
                    column=column,
                    hint=f"Columns here: {', '.join(columns) or 'none'}. Map one with "
                    f"input_mappings={{{name!r}: '<column>'}}.",
                )

    def add_column(self, columns: ColumnOrigins, output: str) -> None:
        """Adds an output's column, refusing to overwrite one silently."""
        column = self.target_of(output)
        explicit = output in self.output_mappings
        rewrites = output in (*self.inputs, *self.optional_inputs)  # same name: intended
        if column in columns and not (explicit or rewrites or column in PROVENANCE_COLUMNS):
            raise PipelineError(
                f"step {self.name!r} would overwrite the column {column!r} made by {columns[column]!r}",
                step=self.name,
                column=column,
                hint=f"Rename it with output_mappings={{{output!r}: '<column>'}}, or say that "
                f"overwriting is meant with output_mappings={{{output!r}: {column!r}}}.",
            )
        columns[column] = self.name

    # --- identity ------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Everything that decides this step's results, as JSON; part of the checkpoint fingerprint.

        Raises PipelineError for a setting that has no stable form.
        """
        public, code = self._identity()
        settings = {"step": type(self).__name__, "version": self.version, **public}
        if code.parts:
            settings["code"] = code.parts
        return settings

    def code(self) -> Code:
        """The user's code that the step runs, all that this code reads, and the parts that cannot be followed."""
        return self._identity()[1]

    def code_roots(self) -> dict[str, Any]:
        """Where the step's own code begins, beside its attributes: name -> class, function or value."""
        return {} if is_own(type(self)) else {type(self).__qualname__: type(self)}

    def _identity(self) -> tuple[dict[str, Any], Code]:
        kinds = type(self).__mro__
        left_out = frozenset[str]().union(*(kind.__dict__.get("not_fingerprinted", ()) for kind in kinds))
        roots = self.code_roots()
        code = Collector(type(self).__module__ if roots else "")
        for name, root in roots.items():
            code.root(root, name)
        public = {}
        for key, value in vars(self).items():
            if key in left_out:
                continue
            if not key.startswith("_"):
                public[key] = jsonable(value, where=f"step {self.name!r}, setting {key!r}", code=code)
            elif key not in _BASE_STATE and (roots or isinstance(value, (type, FunctionType))):
                code.state(self, key, value)
        for kind in kinds:
            if not is_own(kind) and not is_user_class(kind) and kind.__module__ not in ("builtins", "abc", "typing"):
                code.add_installed(kind)
        return public, code.code


class SourceStep(Step):
    """Where rows come from. `open` gives a lazy reader; nothing is read before the engine asks."""

    @abstractmethod
    def open(self) -> Reader:
        """A fresh reader from the first row."""
        raise NotImplementedError

    def known_columns(self) -> tuple[str, ...] | None:
        """The columns of the first row, for the check before the run; None when they cannot be known."""
        return None

    def settings(self) -> dict[str, Any]:
        """A source is identified by its reader's identity, which the manifest keeps, and by the user's code in it."""
        code = self.code()
        settings: dict[str, Any] = {"step": type(self).__name__, "version": self.version}
        return {**settings, "code": code.parts} if code.parts else settings

    def code(self) -> Code:
        """The code of a user's class. The reader is responsible for what a source reads."""
        roots = self.code_roots()
        code = Collector(type(self).__module__)
        for name, root in roots.items():
            code.root(root, name)
        return code.code


class RowStep(Step):
    """Changes one row; asks no model. Must be pure: it is computed again on every resume."""

    #: Whether the step asks how texts were made (`pipeline.making.KNOWN`).
    learns: ClassVar[bool] = False

    @abstractmethod
    def apply(self, row: Row) -> Row | list[Row]:
        """The new row, or several. Raises `Dropped(reason)` to leave it out, RecordError if it cannot be done."""
        raise NotImplementedError

    def apply_knowing(self, row: Row, makings: Makings) -> Row | list[Row]:
        """`apply`, with what is known of how the row's texts were made in `KNOWN`. The engine calls it for steps with
        `learns`; subclasses override `apply` only."""
        token = KNOWN.set(makings)
        try:
            return self.apply(row)
        finally:
            KNOWN.reset(token)


class JoinStep(Step):
    """Merges branches, one row from each, matched by the row's key and not by its place.

    A row that is not in every branch is dropped and counted (`engine.joins` has the reasons), unless `missing` or
    `whichever` says otherwise.
    """

    #: "none": a row that a branch failed or dropped is still joined, and `join` sees an empty row for it.
    missing: Literal["drop", "none"] = "drop"
    #: True: `join` is called for the row of one branch, the first that has it, and sees empty rows for the others.
    whichever: ClassVar[bool] = False

    @abstractmethod
    def join(self, rows: Sequence[Row]) -> Row:
        """One row from the rows of the branches, in the order in which they were joined by `>>`.

        An empty row (`{}`) is one that its branch does not have; there is none unless `missing` or `whichever` is set.
        """
        raise NotImplementedError

    def row_count(self) -> RowCount:
        """1: the row's parts become one row."""
        return 1


class ModelStep(Step):
    """Asks a model. The engine journals what it returns, keyed by fingerprint, row key and input hash.

    A step of this kind may also ask no model and wait for something else (`asyncsynth.steps.waiting_step`): `models`
    then returns none.
    """

    #: Seconds that `generate` may take for a row, apart from waiting for models' answers; None: any number.
    timeout: float | None = None
    #: Whether the step uses `ctx.work` or `ctx.once`.
    needs_work: ClassVar[bool] = False
    #: Whether the journal keeps the results. False: they are computed again after an interruption.
    journal: bool = True

    @abstractmethod
    def models(self) -> tuple[LLM, ...]:
        """The models this step asks, so that servers are bound and checked before anything is sent."""
        raise NotImplementedError

    def needs(self) -> tuple[Need, ...]:
        """What its requests need of the servers of its models; tested before the run pays for anything."""
        return ()

    def answers_prompt(self) -> bool:
        """Whether its texts answer the row's own prompt, so that the system prompt it sent is part of a
        training example. False for rewrites, judgements and new instructions."""
        return False

    def system_sent(self, row: Row, ctx: Context, number: int) -> str | None:
        """The system prompt sent for the row's `number`-th answer; `ctx.notes` holds the result's provenance."""
        return None

    def limit_of(self, request: ModelRequest) -> str:
        """The setting that limits the answer to a request, with its value: "max_tokens=64"."""
        limit = request.params.get("max_tokens") or request.params.get("max_completion_tokens")
        if limit is None:
            return "the server's own limit"
        # A chat is limited by the model's own setting, unless the step sets another number.
        is_chat = hasattr(request, "messages")
        if is_chat and any(llm.max_tokens == limit for llm in self.models()):
            return f"max_tokens={limit}"
        own = [name for name, value in vars(self).items() if "tokens" in name and value == limit]
        return f"{own[0] if own else 'max_tokens'}={limit}"

    def samples(self, outputs: list[Row]) -> list[Row]:
        """A result's outputs as one row for each answer."""
        return outputs

    @abstractmethod
    async def generate(self, row: Row, ctx: Context) -> list[Row]:
        """Outputs for one row as the step sees it (`view`): a list of one, or of several to expand.

        Raises RecordError (ParseFailure, RequestFailed, ...) for a row that cannot be done.
        """
        raise NotImplementedError


class AllRows(Protocol):
    """All rows that reach a GlobalStep, in input order. Each iteration starts from the first row and reads lazily."""

    def __iter__(self) -> Iterator[Row]: ...

    def __len__(self) -> int: ...


class GlobalStep(Step):
    """Sees all rows before it passes on the first one: a barrier. Asks no model.

    Everything before it must flow into it, everything after must come out of it (`pipeline.barriers`).
    """

    @abstractmethod
    def decide(self, rows: AllRows) -> Iterable[Row | Dropped]:
        """One decision for each row, in order: outputs to add (``{}`` keeps the row as it is), or `Dropped`.

        `rows` may be iterated twice, and should be read lazily: there may be more than memory holds. Runs in
        a thread. It must depend only on the rows and the step's settings: a resumed run decides again.
        """
        raise NotImplementedError

    def row_count(self) -> RowCount:
        """One row, or none."""
        return 1


def _forgotten(kind: type[Step], method: str) -> PipelineError:
    """The error for a class that does not define `method`."""
    base = next(base for base in reversed(kind.__mro__) if method in vars(base))
    function = getattr(kind, method)
    if not inspect.isfunction(function):
        return PipelineError(f"{kind.__name__} does not define {method}, which every {base.__name__} must")
    signature = f"{'async ' if inspect.iscoroutinefunction(function) else ''}def {method}"
    arguments = ", ".join(inspect.signature(function).parameters)
    return PipelineError(
        f"{kind.__name__} does not define {method}(), which every {base.__name__} must",
        hint=f"Write `{signature}({arguments}):` in the class {kind.__name__}.",
    )


def snake_case(name: str) -> str:
    """`LoadDataFromDicts` -> `load_data_from_dicts`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
