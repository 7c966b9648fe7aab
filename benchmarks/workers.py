"""The gain from a second process: one run by 1 and by N workers against the mock server, interleaved.

    python benchmarks/workers.py --workers 2 --records 40000

Every run is `asyncsynth run` as a user calls it, without the export, in two sizes, a quarter and the whole. The slope
between them is the cost of one more record without start-up. The mock uses CPU of the same machine, so records per
second grow less here than with remote servers. CPU time shows what a remote server allows: with one core per process, N
/ cpu(N workers) records per second, compared with 1 / cpu(1). `speedup_elsewhere` is that ratio. It contains contention
for CPU and caches, since all cores are busy during the measurement, but not for the disk or the network.
`speedup_machine` is the control: the same JSON loop in 1 and in N processes that share nothing. If two "cores" are
threads of one core, or have other load, it is well below N, and so are all other figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_PIPELINE = """
from asyncsynth import LLM, LoadJSONL, Pipeline, TextGeneration

with Pipeline(name="workers") as pipeline:
    load = LoadJSONL({path!r})
    load >> TextGeneration(llm=LLM(model="test-model"))
"""


def cpu_s() -> float:
    """CPU of all children that have ended, and of theirs, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def once(folder: Path, url: str, workers: int, records: int, concurrency: int) -> tuple[float, float]:
    """One run: seconds, and CPU seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "asyncsynth", "run", str(folder / "job.py"), "--servers", url, "--no-export"]
        command += ["--json", "--output", f"{place}/run", "--workers", str(workers), "--limit", str(records)]
        command += ["--concurrency", str(concurrency)]
        cpu, began = cpu_s(), time.perf_counter()
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        took = time.perf_counter() - began
        done = json.loads(ran.stdout.splitlines()[-1])
        if done["counts"]["ok"] != records:
            raise SystemExit(f"{done['counts']['ok']} of {records} records are ok")
        return took, cpu_s() - cpu


def control(processes: int) -> float:
    """Seconds for a loop of pure Python and JSON in `processes` processes at once."""
    loop = "import json\nrow = {'a': ['b' * 100] * 20}\nfor _ in range(60_000): json.loads(json.dumps(row))"
    began = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(processes)]
    for process in running:
        process.wait()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--records", type=int, default=40_000)
    parser.add_argument("--concurrency", type=int, default=256, help="requests in flight, all processes together")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--delay-ms", type=int, default=10)
    chosen = parser.parse_args()
    sides = (1, chosen.workers)
    sizes = (chosen.records // 4, chosen.records)
    more = sizes[1] - sizes[0]
    controls: list[float] = []
    slopes: dict[int, list[tuple[float, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = {"instruction": "Say something about it. " * 36}  # a request of 1 KB
        (folder / "in.jsonl").write_text((json.dumps(row) + "\n") * chosen.records)
        (folder / "job.py").write_text(_PIPELINE.format(path=str(folder / "in.jsonl")))
        mock = [sys.executable, str(FOLDER / "mock_server.py"), "--delay-ms", str(chosen.delay_ms)]
        with subprocess.Popen(mock, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            try:
                for turn in range(chosen.repeat):
                    controls.append(chosen.workers * control(1) / control(chosen.workers))
                    for side in sides if turn % 2 == 0 else sides[::-1]:
                        (short, short_cpu), (long, long_cpu) = (
                            once(folder, url, side, size, chosen.concurrency) for size in sizes
                        )
                        slopes[side].append(((long - short) / more, (long_cpu - short_cpu) / more))
            finally:
                server.terminate()
                before = cpu_s()
                server.wait()
                mock_us = (cpu_s() - before) / (chosen.repeat * 2 * sum(sizes)) * 1e6
    result: dict[str, object] = {"benchmark": "workers", **vars(chosen), "mock_cpu_us": round(mock_us, 1)}
    for side in sides:
        cpu = [1e6 * cpu for _, cpu in slopes[side]]
        rate = [1 / wall for wall, _ in slopes[side]]
        told = {
            "cpu_us_per_record": [round(pick(cpu), 1) for pick in (statistics.median, min, max)],
            "records_per_s": [round(pick(rate)) for pick in (statistics.median, min, max)],
        }
        result[f"workers_{side}"] = told
        print(f"{side} workers: median, least, greatest: {told}", file=sys.stderr)
    wall, cpu = ([statistics.median(one[at] for one in slopes[side]) for side in sides] for at in (0, 1))
    result["speedup_here"] = round(wall[0] / wall[1], 2)
    result["speedup_elsewhere"] = round(chosen.workers * cpu[0] / cpu[1], 2)
    result["speedup_machine"] = [round(pick(controls), 2) for pick in (statistics.median, min, max)]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
