"""`run --start`: servers for as long as a run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.vllm.kit import Site, all_gone, until

PIPELINE = """
from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration

with Pipeline(name="started") as pipeline:
    LoadJSONL({path!r}) >> TextGeneration(llm=LLM(model="model-a"))
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def job(site: Site, records: int = 20) -> list[str]:
    data = site.folder / "in.jsonl"
    data.write_text("".join(json.dumps({"instruction": f"number {n}."}) + "\n" for n in range(records)))
    script = site.folder / "job.py"
    script.write_text(PIPELINE.format(path=str(data)))
    command = [sys.executable, "-m", "asyncsynth", "run", str(script), "--output", str(site.folder / "run")]
    return [*command, "--servers", str(site.folder / "fleet.yaml"), "--start"]


def run(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*job(site), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=site.environ(), check=False)


def fleet(site: Site, *files: Path) -> None:
    entries = "".join(f"  - {{config: {file.name}}}\n" for file in files)
    (site.folder / "fleet.yaml").write_text(f"servers:\n{entries}")


def test_it_starts_what_the_models_need_and_stops_it(site: Site) -> None:
    needed, port = site.file("a")
    other, unused = site.file("b", model="model-b")
    fleet(site, needed, other)
    done = run(site)
    assert done.returncode == 0, done.stderr
    assert "20 ok" in done.stdout
    assert f"127.0.0.1:{port}: ready after" in done.stderr
    assert len(site.starts(port)) == 1
    assert site.starts(unused) == []
    assert all_gone(site.pids())
    assert list((site.folder / "run" / "servers").iterdir())


def test_a_server_that_dies_while_it_runs_comes_back_without_a_lost_record(site: Site) -> None:
    file, port = site.file("a")
    fleet(site, file)
    site.ask(port, "slow")
    process = subprocess.Popen(
        [*job(site, 400), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=site.environ()
    )
    assert until(lambda: (site.notes / f"{port}.answering").exists())
    os.kill(site.starts(port)[0]["pid"], signal.SIGKILL)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    done = json.loads(said.splitlines()[-1])
    assert done["counts"]["ok"] == 400
    assert [json.loads(line).get("kind") for line in said.splitlines()].count("crashed") == 1
    assert len(site.starts(port)) == 2
    assert all_gone(site.pids())


def test_ctrl_c_stops_what_it_started(site: Site) -> None:
    file, port = site.file("a")
    fleet(site, file)
    site.ask(port, "never")
    process = subprocess.Popen(job(site), stderr=subprocess.PIPE, text=True, env=site.environ())
    assert until(lambda: bool(site.starts(port)))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 4
    assert all_gone(site.pids())


def test_what_cannot_work_is_told_before_anything_starts(site: Site) -> None:
    file, port = site.file("a", model="model-z")
    fleet(site, file)
    done = run(site)
    assert done.returncode == 2
    assert "no server serves the model 'model-a'" in done.stderr
    assert "served: model-z" in done.stderr
    file.write_text(f"model: model-a\nport: {port}\nhost: 127.0.0.1\nmax-num-seqs: 8\nshutdown-timeout: 1\nx-y: 1\n")
    done = run(site, "--vllm-command", "no-such-vllm")
    assert done.returncode == 2
    assert "no-such-vllm" in done.stderr
    assert site.pids() == []
    command = job(site)[:-1]
    done = subprocess.run(
        [*command, "--gpus", "a.yaml=0"], capture_output=True, text=True, timeout=60, env=site.environ(), check=False
    )
    assert done.returncode == 2
    assert "--start" in done.stderr
