"""Which names are a run's own, and that no writer at a user's path takes one."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration
from asyncsynth.cli.inspect_command import draw_command
from asyncsynth.engine.options import RunOptions
from asyncsynth.engine.paid_answers import open_answers
from asyncsynth.engine.run_directory import check_place
from asyncsynth.engine.sharded_run import open_shards
from asyncsynth.engine.stages import open_stages
from asyncsynth.errors import ConfigurationError
from asyncsynth.serving.vllm.starting import StartOptions, started
from asyncsynth.storage import layout
from asyncsynth.storage.exports import export
from asyncsynth.storage.failures import export_failures
from asyncsynth.storage.files import temporary_path
from asyncsynth.storage.journal import Journal
from asyncsynth.storage.layout import OWN_NAMES, is_own, is_own_name, owner_of, refuse_input_as_result, refuse_own_files
from asyncsynth.storage.repair import repair
from tests.kit.entries import one_each, write_run
from tests.matrix.plugin import Tried

pytestmark = pytest.mark.row(36)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "journal.md"

PIPELINE = """
from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration

with Pipeline(name="p") as pipeline:
    LoadDataFromDicts(data=[{"instruction": "a"}]) >> TextGeneration(llm=LLM(model="m"))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of ten records in one journal segment."""
    return write_run(tmp_path / "run", one_each(10))


def pipeline() -> Pipeline:
    with Pipeline(name="p") as made:
        LoadDataFromDicts(data=[{"instruction": "a"}]) >> TextGeneration(llm=LLM(model="m"))
    return made


def draw_by_command(run: Path, to: Path) -> None:
    source = run.parent / "drawn.py"
    source.write_text(PIPELINE)
    draw_command(str(source), form="text", to=to)


async def start_servers(logs: Path) -> None:
    async with started([], [], StartOptions(logs=logs), logs=logs):
        pass


async def run_into(output: Path) -> None:
    async with open_stages(pipeline().resolved(RunOptions(output=output))):
        pass


async def share_into(output: Path) -> None:
    async with open_shards(pipeline().resolved(RunOptions(output=output)), 2):
        pass


def keep_answers(run: Path, to: Path) -> None:
    with open_answers(pipeline().resolved(RunOptions(output=run, answers=to))):
        pass


#: Everything that writes at a path of the user's choice: writers of files, and of folders.
FILES: dict[str, Callable[[Path, Path], object]] = {
    "export": export,
    "export --failed": export_failures,
    "draw --to": draw_by_command,
    "Pipeline.draw": lambda run, to: pipeline().draw(to),
}
FOLDERS: dict[str, Callable[[Path, Path], object]] = {
    "serve --logs": lambda run, to: asyncio.run(start_servers(to)),
    "run --output": lambda run, to: asyncio.run(run_into(to)),
    "run --output --workers": lambda run, to: asyncio.run(share_into(to)),
    "run --answers": keep_answers,
}
SUFFIX = {"export": ".jsonl", "export --failed": ".jsonl", "draw --to": "", "Pipeline.draw": ".txt"}

below = st.lists(st.sampled_from(["a", "b", "answers", "seg-000001.jsonl"]), max_size=2)
mixed_case = st.sampled_from([str, str.upper, str.title, str.swapcase])
numbers = st.integers(0, 10**7)


@st.composite
def own_names(draw: st.DrawFn) -> str:
    """A run's own name: one of the table's with other numbers, in some case."""
    example = draw(st.sampled_from(OWN_NAMES)).example
    example = re.sub(r"(?<=-)\d+", lambda found: f"{draw(numbers):0{len(found[0])}d}", example)
    return draw(mixed_case)(example)


@given(own_names(), below)
def test_every_own_name_is_known_in_any_case_with_all_below_it(name: str, rest: list[str]) -> None:
    assert is_own_name(name)
    run = Path("/nowhere/run")
    assert is_own(run, run.joinpath(name, *rest))
    assert is_own(run, run / "a" / ".." / name)
    assert not is_own(run, run.parent / name)


@pytest.mark.parametrize(
    "name",
    [
        "result.jsonl", "result-judged.jsonl", "rows.jsonl", "seg.jsonl", "segments.jsonl", "segment.csv",
        "shards.jsonl", "barrier.csv", "my-barrier.jsonl", "LOCK.jsonl", "manifest.jsonl", "answers.jsonl",
        "input.jsonl", "tail.jsonl", "damaged.csv", "servers.csv", "seg-000001.jsonl.csv", "x-seg-000001.jsonl",
        "out.tmp",
    ],
)  # fmt: skip
def test_other_names_are_the_users(run: Path, name: str) -> None:
    assert not is_own_name(name)
    refuse_own_files(run / name, run)
    if name.endswith((".jsonl", ".csv")):
        assert export(run, run / name).rows == 10
        assert export(run, run / "mine" / name).rows == 10


@pytest.mark.parametrize("writer", FILES)
@pytest.mark.parametrize("own", OWN_NAMES, ids=lambda own: own.example)
def test_no_writer_takes_an_own_name(run: Path, writer: str, own: layout.OwnName, tried: Tried) -> None:
    """The file in its place, the name still free, and a name in the folder."""
    write = FILES[writer]
    suffix = SUFFIX[writer]
    targets = [run / own.example / f"rows{suffix}"] if own.folder or not (run / own.example).exists() else []
    if own.example.endswith(suffix):
        targets += [run / own.example, run / "shard-7" / own.example]
        free = run / re.sub("1", "9", own.example)
        targets.append(free)
        if not (run / own.example).exists():
            (run / own.example).write_bytes(b"the run's")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for target in targets:
        with pytest.raises(ConfigurationError, match="the run's own files"):
            write(run, target)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    tried(len(targets), "paths", "each refused, 0 bytes changed")


@pytest.mark.parametrize("writer", FOLDERS)
@pytest.mark.parametrize("own", [own for own in OWN_NAMES if own.folder], ids=lambda own: own.example)
def test_no_folder_is_put_into_an_own_one(run: Path, writer: str, own: layout.OwnName) -> None:
    targets = [run / own.example, run / own.example / "deeper"]
    if (writer, own.example) == ("run --answers", layout.ANSWERS):
        targets.pop(0)  # runs may share those of one run
    for target in targets:
        with pytest.raises(ConfigurationError, match="the run's own files"):
            FOLDERS[writer](run, target)
    assert not (run / own.example).exists()


def test_the_answers_of_a_run_may_be_named_whichever_run_it_is(run: Path, tmp_path: Path) -> None:
    keep_answers(tmp_path / "other", run / "answers")
    keep_answers(tmp_path / "new", tmp_path / "new/answers")
    keep_answers(run, tmp_path / "shared")
    with pytest.raises(ConfigurationError, match="the run's own files"):
        keep_answers(tmp_path / "new", tmp_path / "new/servers")


@pytest.mark.parametrize("input", ["d/result.jsonl", "d/../d/result.jsonl", "link/result.jsonl", "data.jsonl"])
def test_a_result_is_not_written_over_the_input(tmp_path: Path, input: str) -> None:
    run = tmp_path / "d"
    run.mkdir()
    (tmp_path / "link").symlink_to(run)
    (run / "result.jsonl").write_text("{}")
    (tmp_path / "data.jsonl").symlink_to("d/result.jsonl")
    with pytest.raises(ConfigurationError, match=r"is the input, and the run in .* would write its result over it"):
        refuse_input_as_result(tmp_path / input, run, ["default"])
    refuse_input_as_result(tmp_path / input, run, ["other"])
    refuse_input_as_result(tmp_path / input, tmp_path / "e", ["default"])


@pytest.mark.parametrize("writer", ["export", "export --failed"])
def test_roundabout_ways_lead_to_the_same_file(
    run: Path, tmp_path: Path, writer: str, request: pytest.FixtureRequest
) -> None:
    journal = run / "seg-000001.jsonl"
    other = write_run(tmp_path / "other", one_each(3))
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "file.jsonl").symlink_to(journal)
    (run / "seg-000002.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    before = journal.read_bytes(), (other / "seg-000001.jsonl").read_bytes()
    ways = [
        tmp_path / "link" / "seg-000001.jsonl",
        tmp_path / "file.jsonl",
        run / "seg-000002.jsonl",
        run / ".." / "run" / "seg-000001.jsonl",
        run / "SEG-000001.JSONL",
        Path(os.path.relpath(journal)),
        other / "seg-000001.jsonl",
        other / "stage-3" / "barrier.jsonl",
        other / "shard-1" / "rows.jsonl",
    ]
    for way in ways:
        with pytest.raises(ConfigurationError, match="the run's own files"):
            FILES[writer](run, way)
    assert (journal.read_bytes(), (other / "seg-000001.jsonl").read_bytes()) == before
    assert not (tmp_path / "elsewhere.jsonl").exists()


def test_a_journal_without_its_manifest_still_owns_its_files(run: Path) -> None:
    (run / layout.MANIFEST).unlink()
    assert owner_of(run / "seg-000002.jsonl") == run
    assert owner_of(run / "answers" / "x" / "y.jsonl") == run
    assert owner_of(run / "rows.jsonl") is None
    assert owner_of(run.parent / "seg-000002.jsonl") is None


def test_a_hard_link_to_the_journal_is_no_way_in(run: Path, tmp_path: Path) -> None:
    before = (run / "seg-000001.jsonl").read_bytes()
    for name, write in (("a.jsonl", FILES["export"]), ("b.txt", FILES["Pipeline.draw"])):
        os.link(run / "seg-000001.jsonl", tmp_path / name)
        write(run, tmp_path / name)
    assert (run / "seg-000001.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ([], True),
        (["LOCK"], True),
        (["LOCK", "seg-000001.jsonl", "seg-000001.idx"], True),
        (["LOCK", ".MANIFEST.json.4711@89abcdef.tmp"], True),
        (["LOCK", "shard-0", "shard-1"], True),
        (["result.jsonl", "result-judged.jsonl"], True),
        (["LOCK", "notes.txt"], False),
        (["extent.json"], False),
        (["answers"], False),
        (["servers.json", "servers"], False),
    ],
)
def test_which_directories_without_a_manifest_may_become_a_run(tmp_path: Path, names: list[str], taken: bool) -> None:
    for name in names:
        (tmp_path / name).touch()
    if taken:
        check_place(tmp_path)
    else:
        with pytest.raises(ConfigurationError, match="holds other files"):
            check_place(tmp_path)


def test_all_that_a_crash_and_a_repair_leave_is_in_the_table(run: Path) -> None:
    with (run / "seg-000001.jsonl").open("ab") as file:
        file.write(b'{"t":"rec","k":"torn')
    asyncio.run(Journal.open(run).close())
    (run / "seg-000001.idx").write_bytes(b"?")
    damaged = (run / "seg-000001.jsonl").read_bytes().replace(b'"t":"seg"', b'"t":"sag"', 1)
    (run / "seg-000001.jsonl").write_bytes(damaged)
    repair(run)
    names = os.listdir(run)
    assert "damaged" in names
    assert any(name.startswith("tail-") for name in names)
    assert [name for name in names if not is_own_name(name)] == []


def test_the_page_lists_the_same_names() -> None:
    table = PAGE.read_text().partition("| file | what it is |\n| --- | --- |\n")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()]
    shown = {name.rstrip("/") for row in rows for name in re.findall("`([^`]+)`", row)}
    exports = {name for name in shown if name.startswith("result")}
    assert exports == {"result.jsonl", "result-….jsonl"}
    assert not any(is_own_name(name) for name in exports)
    assert shown - exports == {
        {"tail": "tail-….bin", ".MAN": ".….tmp"}.get(own.example[:4], own.example) for own in OWN_NAMES
    }


def test_what_the_code_writes_is_in_the_table(tmp_path: Path) -> None:
    """The builders of names and the table agree."""
    made = [layout.segment_name(12), layout.stage_name(3), layout.shard_name(0)]
    assert all(map(is_own_name, [*made, temporary_path(tmp_path / "rows.jsonl").name, "tail-000001-77-2.bin"]))
    assert layout.segment_numbers([*made, "seg-000001.jsonl", "seg-000002.idx"]) == [1, 12]
    assert (layout.stage_folders(made), layout.shard_numbers(made)) == (["stage-3"], [0])
    assert layout.temporary_parts(layout.temporary_name("a.b", 7, "0123abcd", 9)) == ("a.b", 7, "0123abcd")
    assert not any(is_own_name(layout.result_name(leaf)) for leaf in ("default", "judged"))
