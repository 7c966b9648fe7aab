"""From the end of a log to the likely cause; and what of a log may reach a terminal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asyncsynth.serving.process_ends import clean
from asyncsynth.serving.restarts import RestartPolicy, Restarts
from asyncsynth.serving.vllm.diagnosis import diagnose, last_lines, read_tail, without_prefix

BEFORE = "(APIServer pid=9) INFO 11-21 08:00:00 [api_server.py:1] vLLM API server version 0.33.0\n"
AFTER = "\n(APIServer pid=9) RuntimeError: Engine core initialization failed. See root cause above.\n"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("OSError: [Errno 98] Address already in use", "port_taken"),
        ("ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000)", "port_taken"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "gpu_out_of_memory"),
        ("ValueError: Free memory on device cuda:0 (12.18/23.56 GiB) on startup is less than desired GPU memory "
         "utilization (0.92, 21.67 GiB). Decrease GPU memory utilization", "gpu_memory_in_use"),
        ("ValueError: To serve at least one request with the model's max seq len (40960), (10.0 GiB KV cache is "
         "needed, which is larger than the available KV cache memory (1.25 GiB).", "kv_cache"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "kv_cache"),
        ("OSError: Qwen/Qwen9 is not a local folder and is not a valid model identifier listed on "
         "'https://huggingface.co/models'", "model_not_found"),
        ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found", "model_not_found"),
        ("OSError: You are trying to access a gated repo.", "gated_model"),
        ("OSError: We couldn't connect to 'https://huggingface.co' to load the files", "hub_unreachable"),
        ("vllm serve: error: unrecognized arguments: --max-num-seq 8", "unknown_flag"),
        ("vllm serve: error: argument --dtype: invalid choice: 'bf16'", "bad_value"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0", "dtype"),
        ("RuntimeError: No CUDA GPUs are available", "gpu_not_visible"),
        ("ValueError: Total number of attention heads (12) must be divisible by tensor parallel size (8).",
         "tensor_parallel"),
        ("ValueError: World size (4) is larger than the number of available GPUs (1) in this node.", "tensor_parallel"),
        ("ValueError: User-specified max_model_len (99) is greater than the derived max_model_len (9)", "model_length"),
        ("ModuleNotFoundError: No module named 'flashinfer'", "missing_package"),
        ("OSError: [Errno 28] No space left on device", "disk_full"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "out_of_memory"),
        ("ValueError: Model architectures ['Qwen9ForCausalLM'] are not supported for now.", "architecture"),
    ],
)  # fmt: skip
def test_causes(line: str, kind: str) -> None:
    log = f"{BEFORE}(EngineCore pid=10) ERROR 11-21 08:00:01 [core.py:387] {line}{AFTER}"
    found = diagnose(log, 1)
    assert found.kind == kind
    assert found.line == line
    assert found.cause
    assert found.advice


def test_what_no_sign_fits() -> None:
    assert diagnose("", -9).kind == "killed"
    assert "SIGSEGV" in diagnose("", -11).cause
    found = diagnose("(APIServer pid=9) ValueError: something new\nbye", 1)
    assert found.cause == "it ended with exit code 1"
    assert found.line == "ValueError: something new"
    assert "did not become ready" in diagnose(BEFORE, None).cause


def test_logs_reach_a_terminal_without_their_control_bytes() -> None:
    log = "10%\r 50%\r100% done\r\n\x1b[31mred\x1b[0m \x07bell \x1b]0;title\x07x\u202e\n"
    assert clean(log) == "100% done\nred \ufffdbell x\ufffd\n"
    assert last_lines(log + "\n\n", 1) == ["red \ufffdbell x\ufffd"]
    line = "(EngineCore_0 pid=77) ERROR 11-21 08:00:00 [v1/core.py:387] it broke"
    assert without_prefix(line) == "it broke"
    assert without_prefix("(not a prefix) stays") == "(not a prefix) stays"


def test_only_the_present_process_and_only_the_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("earlier\n" + "x" * 100 + "\nlast")
    assert read_tail(path, start=8) == "x" * 100 + "\nlast"
    assert read_tail(path, start=8, limit=6) == "x\nlast"
    assert read_tail(tmp_path / "none") == ""


def test_restarts_back_off_and_give_up() -> None:
    restarts = Restarts(RestartPolicy(first_s=1, longest_s=6, crashes=4, within_s=100), random.Random(1))
    pauses = [restarts.crashed(now) for now in (0.0, 1.0, 2.0, 3.0)]
    for pause, most in zip(pauses, (1, 2, 4, 6), strict=True):
        assert pause is not None
        assert most / 2 <= pause <= most
    assert restarts.crashed(4.0) is None
    later = Restarts(RestartPolicy(first_s=1, crashes=1, within_s=100), random.Random(1))
    assert later.crashed(0.0) is not None
    again = later.crashed(100.0)  # the first is forgotten
    assert again is not None
    assert again <= 1
    assert later.crashed(150.0) is None


def test_a_warning_that_quotes_an_error_is_no_cause_and_the_root_is_told_before_its_followers() -> None:
    log = (
        "(APIServer pid=7) WARNING 11-21 08:51:12 [system_utils.py:255] Found ulimit of 20000 and failed to "
        "automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors like "
        "`OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n\n"
        "(Worker pid=9) ERROR 11-21 08:51:58 [multiproc_executor.py:1063] RuntimeError: Unsupported CPU attention "
        "configuration: head_dim=16\n"
        "(APIServer pid=7) ERROR 11-21 08:51:58 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: "
        "EngineCore encountered an issue. See stack trace (above) for the root cause.\n"
    )
    found = diagnose(log, 1)
    assert found.kind == "unknown"
    assert found.line == "RuntimeError: Unsupported CPU attention configuration: head_dim=16"
    assert diagnose(log + "OSError: [Errno 24] Too many open files\n", 1).kind == "too_many_files"
