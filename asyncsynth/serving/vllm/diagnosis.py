"""Why a vLLM server did not start, or ended: the likely cause from the end of its log, and what to do.

The signs are the words of vLLM, PyTorch, transformers and the Hub's client; the first that fits wins, so causes
come before what they cause ("out of memory" also ends with "engine core initialization failed").
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from asyncsynth.serving.process_ends import Diagnosis, by_exit_code, clean

_TAIL_BYTES = 256 << 10
_PREFIX = re.compile(r"^(\(\w+(?: \w+)* pid=\d+\) )?((DEBUG|INFO|WARNING|ERROR) [0-9-]+ [0-9:.]+ )?(\[[\w./]+:\d+\] )?")


_SIGNS: tuple[tuple[str, str, str, str], ...] = (
    # kind, pattern, cause, advice
    ("unknown_flag", r"error: unrecognized arguments|error: ambiguous option", "vLLM does not know a flag",
     "Correct the file, or install the vLLM that it was written for; `asyncsynth serve --check` names the line."),
    ("bad_value", r"error: argument .*(invalid|expected)|validation errors? for \w+(Config|Args)",
     "a flag has a value that vLLM does not take", "Correct the flag that the log names."),
    ("port_taken", r"[Aa]ddress already in use|EADDRINUSE|error while attempting to bind on address",
     "its port is taken by another process", "Stop that process, or give this server another port."),
    ("gated_model", r"GatedRepoError|gated repo|Access to model .+ is restricted|awaiting a review from the repo",
     "the model is gated: its owner grants access", "Ask for access on its page, then export HF_TOKEN=..."),
    ("hub_refused", r"(401|403) Client Error|Invalid user(name)? (token|or password)|Invalid credentials",
     "the model hub refused the request", "Check HF_TOKEN and the model's name."),
    ("hub_unreachable", r"couldn't connect to ['\"]?https?://|LocalEntryNotFoundError|OfflineModeIsEnabled|"
     r"MaxRetryError\(.*(huggingface|hf-mirror)|outgoing traffic has been disabled",
     "the model hub cannot be reached, and the model is not in the local cache",
     "Check the network and HF_ENDPOINT, or download the model first and name its folder as `model`."),
    ("model_not_found", r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError|"
     r"Repository Not Found|Can't load (the )?(configuration|tokenizer)|Unrecognized model in|"
     r"(Incorrect path_or_model_id|Invalid repository ID or local directory)",
     "there is no such model", "Check `model`: owner/name on the hub, or an existing folder."),
    ("architecture", r"Model architectures? .*(not supported|failed to be inspected)|trust_remote_code=True",
     "this vLLM cannot run the model's architecture", "Take another vLLM version, or allow the model's own code."),
    ("tensor_parallel", r"[Ww]orld size \(?\d+\)? is larger than the number of available|"
     r"must be divisible by tensor parallel size|tensor.parallel.size.*(exceeds|greater|larger)|"
     r"number of (required )?GPUs exceeds the total number",
     "tensor-parallel-size does not fit the GPUs or the model",
     "Give it as many GPUs as tensor-parallel-size says; the model's attention heads must divide by it."),
    ("gpu_not_visible", r"No CUDA GPUs are available|[Ii]nvalid device ordinal|Failed to infer device type|"
     r"no NVIDIA driver|CUDA driver version is insufficient|libcuda\.so|"
     r"CUDA-capable device\(s\) is/are busy|no CUDA-capable device",
     "it sees no usable GPU", "Compare `nvidia-smi` with the server's gpus (CUDA_VISIBLE_DEVICES)."),
    ("dtype", r"Bfloat16 is only supported on GPUs|dtype .*(is )?not supported|quantization method .*not supported",
     "the GPU does not support this dtype or quantization", "Set `dtype: half`, or another quantization."),
    ("model_length", r"is greater than the derived max_model_len",
     "max-model-len is more than the model's own context", "Lower max-model-len."),
    ("kv_cache", r"KV cache is needed, which is larger than|No available memory for the cache blocks|"
     r"[Mm]ax(imum)? (model|seq) len.*larger than the maximum number of tokens",
     "the memory left for the KV cache does not hold one sequence of max-model-len",
     "Lower max-model-len, or raise gpu-memory-utilization (on a CPU: VLLM_CPU_KVCACHE_SPACE)."),
    ("gpu_memory_in_use", r"Free memory on device .*less than desired GPU memory utilization|"
     r"Error in memory profiling",
     "other processes hold GPU memory that gpu-memory-utilization counts on",
     "Stop them (`nvidia-smi` names them), lower gpu-memory-utilization, or place the server on another GPU."),
    ("gpu_out_of_memory", r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
     "the GPU's memory does not suffice",
     "Lower gpu-memory-utilization, max-num-seqs or max-model-len, or spread it: tensor-parallel-size."),
    ("out_of_memory", r"can't allocate memory|Cannot allocate memory|\bMemoryError\b|std::bad_alloc|"
     r"Not enough memory|[Ii]nsufficient (CPU )?memory",
     "the machine's memory does not suffice", "Lower VLLM_CPU_KVCACHE_SPACE or max-model-len, or free some memory."),
    ("disk_full", r"No space left on device", "a disk is full", "Free some space where HF_HOME and the logs lie."),
    # vLLM quotes that error in a warning of every start where `ulimit -n` is low.
    ("too_many_files", r"^(?!.*can cause fd limit errors).*Too many open files",
     "it ran out of file descriptors", "Raise the limit: ulimit -n 65536"),
    ("missing_package", r"ModuleNotFoundError: |ImportError: |PackageNotFoundError",
     "a Python package is missing or does not fit", "Install it into vLLM's environment, or recreate that."),
    ("nccl", r"NCCL error|ncclInternalError|ncclSystemError", "the GPUs cannot talk to each other",
     "Try NCCL_DEBUG=INFO in `env`; in containers, a larger /dev/shm."),
)  # fmt: skip
#: Errors of the processes around the one that failed; they tell to look above.
_ELSEWHERE = re.compile(r"EngineDeadError|[Ss]ee (the )?(stack trace|root cause)|stack trace above|can cause fd limit")
_COMPILED = [(kind, re.compile(pattern), cause, advice) for kind, pattern, cause, advice in _SIGNS]


def diagnose(log: str, exit_code: int | None = None) -> Diagnosis:
    """The likely cause of a server's end.

    Args:
        log: the end of its log.
        exit_code: of its process, negative for a signal; None if it still runs.
    """
    lines = clean(log).splitlines()
    for kind, pattern, cause, advice in _COMPILED:
        # The last such line: the process may have recovered from earlier ones.
        for line in reversed(lines):
            if pattern.search(line):
                return Diagnosis(kind, cause, advice, without_prefix(line))
    if exit_code is not None and exit_code < 0:
        return by_exit_code(exit_code)
    errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: ", line)]
    errors = [line for line in errors if not _ELSEWHERE.search(line)] or errors
    said = without_prefix(errors[-1]) if errors else ""
    return replace(by_exit_code(exit_code), line=said)


def without_prefix(line: str) -> str:
    """A log line without process, time and source file."""
    return _PREFIX.sub("", line.strip()).strip()


def read_tail(path: Path, *, start: int = 0, limit: int = _TAIL_BYTES) -> str:
    """The end of a log, at most `limit` bytes, nothing before the offset `start`; '' if it cannot be read."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(start, end - limit))
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def last_lines(text: str, count: int) -> list[str]:
    """The last `count` lines that hold something, clean."""
    return [line.rstrip() for line in clean(text).splitlines() if line.strip()][-count:]
