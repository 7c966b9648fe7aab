"""Concurrent coroutines whose several errors become one, for callers that handle single errors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from asyncsynth.errors import RecordError

T = TypeVar("T")


async def all_or_error(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs them concurrently; the first error cancels the others and is raised unchanged."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    return [task.result() for task in tasks]


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group that ends the run; if there is none, the first that ends its row."""
    leaves = list(_leaves(group))
    return next((error for error in leaves if not isinstance(error, RecordError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
