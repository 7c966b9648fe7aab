"""Headers, query parameters, certificates and sockets, as fleet files and `LLM` name them."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from pathlib import Path
from typing import Any

import pytest

from asyncsynth import LLM
from asyncsynth.client.transport import TransportFailure
from asyncsynth.errors import AsyncsynthError, ConfigurationError, InputError
from asyncsynth.servers.configs import ServerConfig, parse_servers, parse_url
from asyncsynth.servers.exchange import exchange_for
from asyncsynth.serving.binding import make_plan
from tests.kit.loops import on_both_loops
from tests.kit.requests import CHAT
from tests.kit.tls import AUTHORITY, TlsServer


def fleet(folder: Path, entry: str) -> list[ServerConfig]:
    """The servers of a fleet file with one entry, its lines after the url."""
    file = folder / "fleet.yaml"
    lines = "".join(f"    {line}\n" for line in entry.splitlines())
    file.write_text(f"servers:\n  - url: https://gpu:8000/v1\n{lines}")
    return parse_servers([str(file)])


def sent_by(config: ServerConfig, environ: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The request line and the headers of a request."""
    head = bytes(exchange_for(config, environ=environ)._heads.of("POST", CHAT, False)).decode()  # type: ignore[attr-defined]
    line, *fields = head.removesuffix("content-length: ").split("\r\n")
    return line, dict(field.split(": ", 1) for field in fields if field)


def test_headers_and_query_of_a_fleet_file_are_sent_and_keys_come_from_the_environment(tmp_path: Path) -> None:
    (config,) = fleet(
        tmp_path,
        'headers: {api-key: "${AZURE_KEY}", X-Title: my data}\nquery: {api-version: "2024-10-21"}',
    )
    environ = {"AZURE_KEY": "canary-azure-key", "OPENAI_API_KEY": "canary-other-key"}
    line, headers = sent_by(config, environ)
    assert line == "POST /v1/chat/completions?api-version=2024-10-21 HTTP/1.1"
    assert headers["api-key"] == "canary-azure-key"
    assert headers["x-title"] == "my data"
    assert "authorization" not in headers, "the key of another service stays here"
    assert "canary" not in f"{config!r} {exchange_for(config, environ=environ)!r}"
    with pytest.raises(ConfigurationError, match="AZURE_KEY is not set"):
        exchange_for(config, environ={})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("headers: {api-key: sk-canary}", "'api-key' holds a key"),
        ("query: {access_token: sk-canary}", "'access_token' holds a key"),
        ("headers: {Authorization: Bearer sk-canary}", "'Authorization' holds a key"),
        ("headers: {x y: a}", "cannot be sent"),
        ('headers: {x: "a\\r\\nb: c"}', "cannot be sent"),
        ("headers: {content-length: '3'}", "set by asyncsynth itself"),
        ("headers: {x: 3}", "a name and a string were expected"),
        ("headers: {x: '${not a name}'}", "the name of an environment variable was expected"),
        ("headers: [a]", "headers must map"),
        ("header: {a: b}", "Did you mean headers"),
        ("ca_file: 3", "ca-file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_no_key(tmp_path: Path, entry: str, words: str) -> None:
    with pytest.raises((ConfigurationError, InputError)) as caught:
        fleet(tmp_path, entry)
    said = f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert words in said
    assert "fleet.yaml:3" in said
    assert "canary" not in said


def test_an_llm_has_them_for_its_own_server() -> None:
    settings: dict[str, Any] = {"headers": {"api-key": "${AZURE_KEY}"}, "query": {"api-version": "1"}}
    llm = LLM(model="m", base_url="https://a.example/openai/deployments/m", **settings)
    (target,) = make_plan([llm]).targets.values()
    line, headers = sent_by(target.config, {"AZURE_KEY": "canary-azure-key"})
    assert line == "POST /openai/deployments/m/chat/completions?api-version=1 HTTP/1.1"
    assert headers["api-key"] == "canary-azure-key"
    with pytest.raises(ConfigurationError, match="different headers"):
        make_plan([llm, LLM(model="n", base_url=llm.base_url)])
    with pytest.raises(ConfigurationError, match="without a base_url"):
        make_plan([LLM(model="m", **settings)])
    with pytest.raises(ConfigurationError, match="'api-key' holds a key"):
        make_plan([LLM(model="m", base_url="https://a.example/v1", headers={"api-key": "sk-canary"})])


@on_both_loops
async def test_a_private_authority_and_a_client_certificate() -> None:
    server = TlsServer("127.0.0.1")
    server.context.verify_mode = ssl.CERT_REQUIRED
    AUTHORITY.configure_trust(server.context)
    issued = AUTHORITY.issue_cert("client.example")
    with (
        AUTHORITY.cert_pem.tempfile() as ca,
        issued.cert_chain_pems[0].tempfile() as cert,
        issued.private_key_pem.tempfile() as key,
    ):
        async with server.serving():
            url = f"https://127.0.0.1:{server.port}/v1"
            known = exchange_for(ServerConfig(base_url=url, ca_file=ca, client_cert=cert, client_key=key))
            assert (await known.post(CHAT, b"{}")).status == 200
            await known.aclose()
            for unknown in (ServerConfig(base_url=url, ca_file=ca), ServerConfig(base_url=url)):
                exchange = exchange_for(unknown)
                with pytest.raises(TransportFailure):
                    await exchange.post(CHAT, b"{}")
                await exchange.aclose()


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (config,) = fleet(tmp_path, "ca_file: ca.pem")
    assert config.ca_file == str(tmp_path / "ca.pem"), "relative to the fleet's folder"
    with pytest.raises(ConfigurationError, match="ca_file: there is no file"):
        exchange_for(config)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match="ca_file cannot be read"):
        exchange_for(config)
    (config,) = fleet(tmp_path, "client_key: key.pem")
    with pytest.raises(ConfigurationError, match="client_key without client_cert"):
        exchange_for(config)


def test_addresses() -> None:
    assert parse_url("unix:/run/vllm.sock", where="x") == "http+unix://%2Frun%2Fvllm.sock/v1"
    assert parse_url("http+unix://%2Frun%2Fvllm.sock", where="x") == "http+unix://%2Frun%2Fvllm.sock/v1"
    for wrong, hint in (
        ("unix:vllm.sock", "unix:/run/vllm.sock"),
        ("localhost:8000/v1", "Write http://localhost:8000/v1"),
        ("https://a/openai?api-version=1", "query"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            parse_url(wrong, where="x")
        assert hint in caught.value.hint
    with pytest.raises(AsyncsynthError) as missing:
        parse_servers(["localhost:8000"])
    assert "write http://localhost:8000" in missing.value.hint


@pytest.mark.slow
@on_both_loops
async def test_a_unix_socket() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        body = head.split(b"\r\n")[0]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()
        await writer.wait_closed()

    with tempfile.TemporaryDirectory() as folder:  # its path is short enough for a socket
        path = f"{folder}/s"
        server = await asyncio.start_unix_server(serve, path)
        (config,) = parse_servers([f"unix:{path}"])
        assert config.name == path
        exchange = exchange_for(config, environ={"HTTP_PROXY": "http://unused:1"})
        assert (await exchange.post(CHAT, b"{}")).body == b"POST /v1/chat/completions HTTP/1.1"
        await exchange.aclose()
        server.close()
        await server.wait_closed()
