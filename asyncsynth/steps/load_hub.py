"""`LoadHub`: rows of a data set on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from asyncsynth.errors import AsyncsynthError, InputError
from asyncsynth.inputs.reader import BadRowPolicy, Reader
from asyncsynth.inputs.table_reader import TableReader
from asyncsynth.steps.loaders import Loader, extra


class LoadHub(Loader):
    """Rows of a data set on the Hub, or of a local folder in the Hub's layout; needs the extra `datasets`.

    Streams by default: rows are used while they are fetched, and nothing is stored. A private or gated data set
    needs the environment's `HF_TOKEN`; `HF_ENDPOINT` names another Hub.

    Args:
        repo_id: ``"owner/name"``, or a local folder.
        config: which configuration, if the data set has several.
        split: which split.
        revision: a commit, tag or branch; name a commit, so that the input cannot change during a run.
        streaming: False downloads the data set first, into the cache of `datasets`.
        load: instead of ``datasets.load_dataset``; called with the same arguments.

    Example::

        # Replaces the Hub; leave `load` out to read from it.
        def load(repo_id, config, **options):
            return [{"instruction": f"A row of the split {options['split']} of {repo_id}."}]

        with Pipeline(name="example") as pipeline:
            LoadHub("owner/questions", split="test", revision="v1", load=load)

    Result::

        {'instruction': 'A row of the split test of owner/questions.'}
    """

    not_fingerprinted: ClassVar[frozenset[str]] = frozenset({"load", "streaming"})

    def __init__(
        self,
        repo_id: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        streaming: bool = True,
        load: Callable[..., Iterable[Mapping[str, Any]]] | None = None,
        id_column: str | None = None,
        on_bad_row: BadRowPolicy = "stop",
        name: str | None = None,
        output_mappings: Mapping[str, str] | None = None,
    ) -> None:
        if not isinstance(repo_id, str) or not repo_id:
            raise InputError(
                f"LoadHub(repo_id={repo_id!r:.80}): the name of a data set was expected",
                hint='Write LoadHub("owner/name").',
            )
        self.repo_id = repo_id
        self.config = config
        self.split = split
        self.revision = revision
        self.streaming = streaming
        self.load = load
        self._size: int | None = None
        super().__init__(id_column=id_column, on_bad_row=on_bad_row, name=name, output_mappings=output_mappings)

    def open(self) -> Reader:
        """A reader from the first row; the Hub is contacted when it is iterated."""
        place = "/".join(part for part in (self.repo_id, self.config, self.split) if part)
        return TableReader(
            self._rows,
            kind="hub",
            name=place + (f"@{self.revision}" if self.revision else ""),
            size=lambda: self._size,
            id_column=self.id_column,
            on_bad_row=self.on_bad_row,
            rename=self.output_mappings,
        )

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        load = self.load or extra("datasets", self).load_dataset
        try:
            rows = load(
                self.repo_id,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=self.streaming,
                token=os.environ.get("HF_TOKEN") or None,
            )
            self._size = _known_size(rows, self.split)
            yield from rows
        except AsyncsynthError:
            raise
        except Exception as error:  # the library's own kinds, and the network's
            raise InputError(
                f"{self.repo_id}: cannot be read from the Hub ({type(error).__name__}: {error})",
                hint="Check its name, config and split, the network, and HF_TOKEN for a private data set.",
            ) from error


def _known_size(rows: Any, split: str) -> int | None:
    """The number of rows according to the data set's card or its files."""
    if hasattr(rows, "__len__"):
        return len(rows)
    splits = getattr(getattr(rows, "info", None), "splits", None)
    known = getattr(splits.get(split), "num_examples", None) if splits else None
    return known or None
