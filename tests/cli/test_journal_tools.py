"""`asyncsynth journal` on real runs: damage, refusal, repair, resume, and the same result as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path

from tests.kit.commands import Serve, asyncsynth, write_job


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def damaged_run(tmp_path: Path, url: str) -> tuple[Path, Path, int]:
    """(job, run directory, offset of a damaged line) of a run in two sessions, a bit of the first one flipped."""
    job, run = write_job(tmp_path), tmp_path / "run"
    assert asyncsynth("run", job, "--servers", url, "--output", run, "--limit", "6").returncode in (0, 4)
    assert asyncsynth("run", job, "--servers", url, "--output", run).returncode == 0
    segment = run / "seg-000001.jsonl"
    data = segment.read_bytes()
    start = data.rfind(b"\n", 0, len(data) // 2) + 1
    flip(segment, start + 100)
    return job, run, start


def test_a_flipped_bit_is_refused_found_repaired_and_redone(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"])
    url = server.base_url
    job, run, start = damaged_run(tmp_path, url)
    assert asyncsynth("run", job, "--servers", url, "--output", tmp_path / "straight").returncode == 0

    refused = asyncsynth("run", job, "--servers", url, "--output", run)
    assert refused.returncode == 5
    assert f"seg-000001.jsonl:{start}: " in refused.stderr
    assert "journal repair" in refused.stderr
    told = asyncsynth("journal", "verify", run)
    assert told.returncode == 5
    assert f"seg-000001.jsonl:{start}: " in told.stdout
    dry = asyncsynth("journal", "repair", run, "--dry-run")
    assert dry.returncode == 0
    assert asyncsynth("journal", "verify", run).returncode == 5
    done = asyncsynth("journal", "repair", run)
    assert done.returncode == 0, done.stderr
    assert "1 lines lost" in done.stdout
    whole = asyncsynth("journal", "verify", run)
    assert whole.returncode == 0, whole.stdout
    assert "nothing to repair" in asyncsynth("journal", "repair", run).stdout

    before = server.requests
    resumed = asyncsynth("run", job, "--servers", url, "--output", run)
    assert resumed.returncode == 0, resumed.stderr
    redone = server.requests - before
    assert asyncsynth("run", job, "--servers", url, "--output", run).returncode == 0
    nothing_to_do = server.requests - before - redone  # what a run asks a server before its first record
    assert redone - nothing_to_do == 1
    assert (run / "result.jsonl").read_bytes() == (tmp_path / "straight" / "result.jsonl").read_bytes()


def test_json_and_a_run_in_parts(tmp_path: Path, fault_server: Serve) -> None:
    url = fault_server(models=["model-a"]).base_url
    job = write_job(tmp_path, more='>> Deduplicate(columns=["generation"])')
    job.write_text(job.read_text().replace("import LLM,", "import LLM, Deduplicate,"))
    run = tmp_path / "run"
    made = asyncsynth("run", job, "--servers", url, "--output", run)
    assert made.returncode == 0, made.stderr
    found = asyncsynth("journal", "verify", run, "--json")
    assert found.returncode == 0, found.stderr
    events = [json.loads(line) for line in found.stdout.splitlines()]
    assert [event["directory"] for event in events] == [str(run / "stage-1"), str(run)]
    assert events[0]["entries"] == {"rec": 12}
    stats = asyncsynth("journal", "stats", run, "--json")
    events = [json.loads(line) for line in stats.stdout.splitlines()]
    assert events[0]["final"] == 12
    assert events[0]["steps"] == {"text_generation_0": 12}
    assert asyncsynth("journal", "stats", run).returncode == 0
    repaired = asyncsynth("journal", "repair", run, "--json")
    assert [json.loads(line)["rewritten"] for line in repaired.stdout.splitlines()] == [[], []]
    for command in ("verify", "repair", "stats"):
        nothing = asyncsynth("journal", command, tmp_path)
        assert nothing.returncode == 2
        assert "not a run directory" in nothing.stderr


def test_every_option_is_in_the_reference() -> None:
    reference = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    for command in ("verify", "repair", "stats"):
        assert f"asyncsynth journal {command} DIR" in reference
        assert asyncsynth("journal", command, "--help").returncode == 0
    assert "`--dry-run`" in reference
