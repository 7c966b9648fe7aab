"""Real TLS handshakes with an authority made on the spot."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from asyncsynth.client.adopt import HttpxExchange, adopt
from asyncsynth.client.http11 import Http11Pool
from asyncsynth.client.secret import Secret
from asyncsynth.client.transport import TransportFailure
from tests.kit.files import ROOT
from tests.kit.loops import RUNNERS
from tests.kit.processes import environment
from tests.kit.requests import CHAT, chat_body
from tests.kit.tls import AUTHORITY, TlsServer, trusting

KEY = "sk-canary-of-the-handshake"


@pytest.mark.parametrize("loop", RUNNERS)
def test_verification_is_on_and_the_key_is_sent_only_after_it(loop: str) -> None:
    async def scene() -> None:
        for name, context, words in (
            ("127.0.0.1", None, "SSL_CERT_FILE"),  # the authority is unknown
            ("wrong.example", trusting(), "host name"),
            ("127.0.0.1", trusting(), ""),
        ):
            async with TlsServer(name).serving() as server:
                base_url = f"https://127.0.0.1:{server.port}/v1"
                pool = Http11Pool(base_url, api_key=Secret(KEY), ssl_context=context)
                if words:
                    with pytest.raises(TransportFailure) as caught:
                        await pool.post(CHAT, chat_body())
                    assert caught.value.reason == "connect"
                    assert "certificate is refused" in caught.value.message
                    assert words in caught.value.message
                    assert base_url.removesuffix("/v1") in caught.value.message
                    assert KEY.encode() not in server.received
                else:
                    assert (await pool.post(CHAT, chat_body())).status == 200
                    assert f"authorization: Bearer {KEY}".encode() in server.received
                await pool.aclose()

    RUNNERS[loop](scene())


def test_an_adopted_client_verifies_as_it_was_told() -> None:
    async def scene() -> None:
        async with TlsServer("127.0.0.1").serving() as server:
            base_url = f"https://127.0.0.1:{server.port}/v1"
            headers = {"authorization": f"Bearer {KEY}"}
            for trusted in (False, True):
                client = httpx.AsyncClient(base_url=base_url, headers=headers, verify=trusting() if trusted else True)
                for exchange in (adopt(client), HttpxExchange(client, base_url)):
                    if trusted:
                        assert (await exchange.post(CHAT, chat_body())).status == 200
                    else:
                        with pytest.raises(TransportFailure, match="connect"):
                            await exchange.post(CHAT, chat_body())
                        assert KEY.encode() not in server.received
                    await exchange.aclose()
                await client.aclose()

    asyncio.run(scene())


ASK = """
import asyncio, sys
from asyncsynth.client.http11 import Http11Pool
async def main():
    print((await Http11Pool(sys.argv[1]).post("/chat/completions", b"{}")).status)
asyncio.run(main())
"""


def test_ssl_cert_file_names_a_private_authority(tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def scene() -> None:
        async with TlsServer("127.0.0.1").serving() as server:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", ASK, f"https://127.0.0.1:{server.port}/v1",
                env=environment(SSL_CERT_FILE=str(tmp_path / "ca.pem")), cwd=ROOT, stdout=subprocess.PIPE,
            )  # fmt: skip
            out, _ = await process.communicate()
            assert out.strip() == b"200"

    asyncio.run(scene())
