"""A canary key on every path, then looked for in every artefact: not once, in no encoding."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from asyncsynth.client.adopt import HttpxExchange, adopt
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.secret import PrivateHeaders, Redactor, Secret, secrets_of
from asyncsynth.client.transport import Exchange, TransportFailure
from asyncsynth.errors import ConfigurationError
from asyncsynth.servers.configs import parse_servers
from asyncsynth.testing import Fault, FaultServer, RequestInfo
from tests.kit.commands import asyncsynth_bytes

pytestmark = pytest.mark.row(24)

Serve = Callable[..., FaultServer]
CANARY = "sk-canary/4f+7d==Zq9"

PIPELINE = """
from asyncsynth import LLM, LoadDataFromDicts, Pipeline, TextGeneration

with Pipeline(name="p") as pipeline:
    data = LoadDataFromDicts(data=[{{"instruction": f"number {{n}}"}} for n in range({count})])
    data >> TextGeneration(llm=LLM(model="model-a"{more}))
"""


def forms(key: str = CANARY) -> list[bytes]:
    """The key, percent-encoded, as JSON escapes it, and the middle of it in base64 at each of three places."""
    texts = {key, quote(key), quote(key, safe=""), key.replace("/", "\\/"), json.dumps(key)[1:-1]}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + key.encode()).decode()
        texts.add(encoded[4:-4])
    return [text.encode() for text in texts]


def assert_clean(*artefacts: bytes | str | Path) -> None:
    """The canary is in none of these; a folder means all its files and their names."""
    for artefact in artefacts:
        if isinstance(artefact, Path):
            assert_clean(*(str(file) for file in artefact.rglob("*")))
            assert_clean(*(file.read_bytes() for file in artefact.rglob("*") if file.is_file()))
            continue
        data = artefact.encode("utf-8", "surrogateescape") if isinstance(artefact, str) else artefact
        assert not [form for form in forms() if form in data], data[-2000:]


def all_forms(info: RequestInfo) -> str:
    """What a server may make of the key that it got."""
    value = info.headers.get("authorization") or info.headers.get("x-api-key", "")
    token = value.rpartition(" ")[2]
    wrapped = base64.b64encode(value.encode()).decode()
    return f"you sent {value} = {quote(token, safe='')} = {wrapped} = {base64.b64encode(token.encode()).decode()}"


def echoing(status: int) -> Callable[[RequestInfo], Fault]:
    """A server that repeats the key wherever it can."""

    def script(info: RequestInfo) -> Fault:
        said = all_forms(info)
        body = json.dumps({"error": {"message": said, "type": said, "code": said}}).replace("/", "\\/").encode()
        headers = {"location": f"http://other.example/?k={said}", "retry-after": "0", "x-echo": said}
        return Fault("status", status=status, body=body, headers=headers)

    return script


def write_job(folder: Path, count: int = 3, more: str = "") -> Path:
    job = folder / "job.py"
    job.write_text(PIPELINE.format(count=count, more=more))
    return job


def keyed(name: str) -> dict[str, str]:
    return {name: CANARY}


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "VLLM_API_KEY", "TEAM_KEY"])
def test_success_resume_status_export(tmp_path: Path, fault_server: Serve, variable: str) -> None:
    server = fault_server(models=["model-a"], api_key=CANARY)
    (fleet := tmp_path / "fleet.yaml").write_text(
        f"servers:\n  - url: {server.base_url}\n" + ("    api_key_env: TEAM_KEY\n" if variable == "TEAM_KEY" else "")
    )
    job, run = write_job(tmp_path), tmp_path / "run"
    arguments = ("run", job, "--servers", fleet, "--output", run)
    ran = asyncsynth_bytes(*arguments, HF_TOKEN=CANARY, **keyed(variable))
    assert ran.returncode == 0, ran.stderr
    shown = [ran]
    if variable == "OPENAI_API_KEY":
        shown.append(asyncsynth_bytes(*arguments, "--json", **keyed(variable)))
        shown.append(asyncsynth_bytes("export", run, "--to", tmp_path / "out.csv", **keyed(variable)))
    assert all(one.returncode == 0 for one in shown)
    assert_clean(*(one.stdout + one.stderr for one in shown), run, tmp_path)


@pytest.mark.parametrize("status", [307, 400, 401])
def test_a_server_that_repeats_the_key(tmp_path: Path, fault_server: Serve, status: int) -> None:
    """401 and redirects stop the run, 400 fails its records; with tracebacks and asyncio's debug mode on."""
    refuse = echoing(status)
    server = fault_server(models=["model-a"], script=lambda info: refuse(info) if info.index else None)
    job, run = write_job(tmp_path, 12), tmp_path / "run"
    debug = {"ASYNCSYNTH_TRACEBACK": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1", "PYTHONDEVMODE": "0"}
    ran = asyncsynth_bytes(
        "run", job, "--servers", server.base_url, "--output", run, **debug, **keyed("OPENAI_API_KEY")
    )
    assert ran.returncode == (3 if status == 400 else 4), ran.stderr
    told = asyncsynth_bytes("status", run, **keyed("OPENAI_API_KEY"))
    assert_clean(ran.stdout, ran.stderr, told.stdout, run)
    if status == 400:
        assert b"you sent Bearer ***" in told.stdout


def test_no_connection_and_a_crash_with_its_traceback(tmp_path: Path, fault_server: Serve) -> None:
    server = fault_server(models=["model-a"], api_key=CANARY)
    job = write_job(tmp_path)
    crash = "class Bad(LoadDataFromDicts):\n    def open(self): raise RuntimeError('x')\n\nwith Pipeline"
    broken = tmp_path / "broken.py"
    broken.write_text(job.read_text().replace("with Pipeline", crash).replace("data = LoadDataFromDicts", "data = Bad"))
    environment = {"ASYNCSYNTH_TRACEBACK": "1", **keyed("OPENAI_API_KEY")}
    crashed = asyncsynth_bytes("run", broken, "--servers", server.base_url, "--output", tmp_path / "b", **environment)
    assert crashed.returncode == 1, crashed.stderr
    assert b"Traceback" in crashed.stderr
    assert_clean(crashed.stdout, crashed.stderr, tmp_path)


def test_a_kill_leaves_no_key(tmp_path: Path, fault_server: Serve) -> None:
    import subprocess
    import sys

    from tests.kit.processes import environment

    killed: list[subprocess.Popen[bytes]] = []

    def script(info: RequestInfo) -> Fault | None:
        if info.index == 5 and killed:
            killed[0].send_signal(signal.SIGABRT)  # faulthandler prints every thread's frames
        return Fault(delay_s=0.05)

    server = fault_server(models=["model-a"], script=script, api_key=CANARY)
    command = [sys.executable, "-X", "faulthandler", "-m", "asyncsynth", "run", str(write_job(tmp_path, 50))]
    command += ["--servers", server.base_url, "--output", str(tmp_path / "run"), "--window", "2"]
    killed.append(
        subprocess.Popen(
            command, env=environment(**keyed("OPENAI_API_KEY")), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    )
    out, err = killed[0].communicate(timeout=60)
    assert killed[0].returncode == -signal.SIGABRT
    assert b"Fatal Python error" in err
    assert_clean(out, err, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{CANARY}@127.0.0.1:1/v1",
        f"http://user:{CANARY}@127.0.0.1:port/v1",
        f"http://127.0.0.1:1/v1?api_key={CANARY}",
        f"ftp://user:{CANARY}@127.0.0.1/v1",
        f"http://127.0.0.1/v1#{CANARY}",
    ],
)
def test_a_key_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_servers([url])
    assert_clean(str(caught.value), repr(caught.value))
    with pytest.raises(ConfigurationError) as caught:
        Http11Pool(url)
    assert_clean(str(caught.value))


def rendered(error: BaseException) -> str:
    """An error as a tool shows it that prints each frame's local variables; frames of this test's own left out."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    seen: list[str] = []
    todo: list[traceback.TracebackException | None] = [told]
    while todo:
        one = todo.pop()
        if one is None:
            continue
        seen += one.format_exception_only()
        seen += [
            str(frame.locals) for frame in one.stack if Path(frame.filename).parts[-3:-1] == ("asyncsynth", "client")
        ]
        todo += [one.__cause__, one.__context__]
    return "\n".join(seen)


def headers_with_a_key() -> list[PrivateHeaders]:
    return [
        PrivateHeaders(authorization=f"Bearer {CANARY}"),
        PrivateHeaders({"x-api-key": CANARY}),
        PrivateHeaders(authorization="Basic " + base64.b64encode(f"user:{CANARY}".encode()).decode()),
        PrivateHeaders(cookie=f"a=1; session={CANARY}"),
    ]


def exchanges(base_url: str) -> list[Exchange]:
    """Each way to send a key: our pool, an adopted client, clients used unchanged."""
    hooks: dict[str, list[Any]] = {"request": [_nothing]}

    class Auth(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Any:
            request.headers["authorization"] = f"Bearer {CANARY}"
            yield request

    clients = [
        httpx.AsyncClient(base_url=base_url, headers={"authorization": f"Bearer {CANARY}"}),
        httpx.AsyncClient(base_url=base_url, headers={"x-api-key": CANARY}, event_hooks=hooks),
        httpx.AsyncClient(base_url=base_url, auth=Auth()),
        httpx.AsyncClient(base_url=base_url, auth=("user", CANARY)),
        httpx.AsyncClient(base_url=base_url, headers={"x-api-key": CANARY}, transport=Own()),
    ]
    return [Http11Pool(base_url, api_key=Secret(CANARY)), *map(adopt, clients)]


class Own(httpx.AsyncHTTPTransport):
    """A transport of the user's own."""


async def _nothing(_: object) -> None:
    """A hook, so that the client is used as it is."""


async def closed(exchange: Exchange) -> None:
    await exchange.aclose()
    if isinstance(exchange, HttpxExchange):
        await exchange._client.aclose()


def test_every_exchange_blanks_what_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scene() -> None:
        for status in (200, 307, 401, 500):
            async with FaultServer(script=echoing(status)) as server:
                for exchange in exchanges(server.base_url):
                    assert_clean(repr(exchange), repr(vars(exchange)))
                    answer = await exchange.post("/chat/completions", b'{"model":"test-model","messages":[]}')
                    assert answer.status == status
                    if status != 200:
                        assert b"***" in answer.body or b"you sent  " in answer.body
                        assert_clean(answer.body, repr(answer.headers))
                    assert CANARY.encode() not in answer.body
                    await closed(exchange)

    asyncio.run(scene())
    assert_clean(
        *(record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "httpx")))
    )


def test_failures_and_their_frames_hold_no_key() -> None:
    """Refused, reset, compressed, an unsendable header: words, causes and local variables of our frames."""

    async def scene() -> None:
        scripts: list[Fault | None] = [
            Fault("reset"),
            Fault("status", status=200, headers={"content-encoding": f"gzip, {CANARY}"}),
            None,
        ]
        for fault in scripts:
            async with FaultServer(script=lambda info, fault=fault: fault) as server:
                base_url = server.base_url if fault else "http://127.0.0.1:9/v1"
                for exchange in exchanges(base_url):
                    with pytest.raises(TransportFailure) as caught:
                        await exchange.post("/chat/completions", b"{}")
                    assert_clean(rendered(caught.value), caught.value.message)
                    await closed(exchange)
        headers = {"x-api-key": CANARY + "\r\n"}
        client = httpx.AsyncClient(headers=headers, event_hooks={"request": [_nothing]})
        async with FaultServer() as server:
            exchange = HttpxExchange(client, server.base_url)
            with pytest.raises(TransportFailure) as caught:
                await exchange.post("/chat/completions", b"{}")
            assert_clean(rendered(caught.value), caught.value.message)
            await closed(exchange)

    asyncio.run(scene())


def test_a_header_that_cannot_be_sent_is_named_but_not_shown() -> None:
    for value in (f"{CANARY}\n", f"{CANARY}\xe9"):
        with pytest.raises(ConfigurationError) as caught:
            Http11Pool("http://h/v1", PrivateHeaders({"x-api-key": value}))
        assert_clean(rendered(caught.value))
    for headers in headers_with_a_key():
        assert Secret(CANARY) in secrets_of(headers)
        assert_clean(repr(headers), f"{headers}", repr(vars(Http11Pool("http://h/v1", headers))))


def test_the_redactor_leaves_words_alone() -> None:
    redactor = Redactor(secrets_of({"authorization": "Bearer EMPTY", "x-key": "1234567"}))
    assert not redactor
    assert redactor.text("Bearer EMPTY 1234567") == "Bearer EMPTY 1234567"
    assert repr(Redactor([Secret(CANARY)])) == "Redactor(1 secrets)"
