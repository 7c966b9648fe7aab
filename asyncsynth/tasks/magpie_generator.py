"""`MagpieGenerator`: Magpie as the beginning of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

from asyncsynth.client.llm import LLM
from asyncsynth.errors import ConfigurationError
from asyncsynth.inputs.dicts import DictsReader
from asyncsynth.inputs.reader import Reader
from asyncsynth.pipeline.step import SourceStep
from asyncsynth.records import Row
from asyncsynth.tasks.alone import Rows
from asyncsynth.tasks.magpie import Magpie, MagpieSettings


class _EmptyRows:
    """`count` rows without columns: made as they are read, but with a known number."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return ({} for _ in range(self._count))


class MagpieGenerator(SourceStep):
    """`num_rows` conversations by Magpie (arXiv 2406.08464), without any input.

    It is the first step of a pipeline, in place of a loader. In the graph it is two steps: this one,
    which makes empty rows on demand, and the `Magpie` task that fills them (`generator.magpie`);
    steps joined by ``>>`` follow the task. A run with more `num_rows` extends the one before.

    Columns: none -> those of `Magpie`.

    Args:
        num_rows: how many conversations.
        Others: see `Magpie`.

    Example::

        with Pipeline() as pipeline:
            MagpieGenerator(llm=llm, num_rows=10_000, system_prompt=["...", "..."]) >> FormSFT()
    """

    def __init__(
        self,
        llm: LLM,
        *,
        num_rows: int,
        **settings: Unpack[MagpieSettings],
    ) -> None:
        if isinstance(num_rows, bool) or not isinstance(num_rows, int) or num_rows < 1:
            raise ConfigurationError(f"MagpieGenerator(num_rows={num_rows!r}): 1 or more was expected")
        self.num_rows = num_rows
        name = settings.get("name")
        super().__init__(name=name)
        if name is not None:
            settings["name"] = f"{name}_magpie"
        self.magpie: Magpie = Magpie(llm, **settings)
        if self._graph is not None:
            self._graph.connect(self, self.magpie)

    def __rshift__(self, other: Any) -> Any:
        """What follows the generator follows its task."""
        if self._graph is None:  # made outside the pipeline that it is joined to
            targets = other if isinstance(other, (list, tuple)) else [other]
            graph = next((graph for step in targets if (graph := getattr(step, "_graph", None)) is not None), None)
            if graph is not None:
                graph.connect(self, self.magpie)
        return self.magpie >> other

    def open(self) -> Reader:
        """A reader of empty rows."""
        return DictsReader(_EmptyRows(self.num_rows))

    def known_columns(self) -> tuple[str, ...]:
        """Returns None: all columns are the task's."""
        return ()

    # --- alone ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Binds the model to its server, as `Task.load` does."""
        self.magpie.load()

    def unload(self) -> None:
        """Gives the server connection back."""
        self.magpie.unload()

    def process(self) -> Iterator[Rows]:
        """Yields one list: all `num_rows` rows."""
        yield from self.magpie.process([{} for _ in range(self.num_rows)])
