"""A server on a real socket whose answers a test writes: a function of method, path and JSON body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

LIST = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x"}]}


@dataclass(slots=True)
class Asked:
    """One request."""

    method: str
    target: str
    json: dict[str, Any]

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition("?")[0]

    @property
    def generates(self) -> bool:
        """Whether it asks a model."""
        return self.path.endswith("/completions")


Reply = tuple[int, Any]
Script = Callable[[Asked], Reply | Awaitable[Reply] | None]


def completion(asked: Asked, text: str = "An answer.") -> dict[str, Any]:
    """A good answer to a request."""
    chat = asked.path.endswith("/chat/completions")
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice |= {"index": 0, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    return {"model": asked.json.get("model"), "choices": [choice] * (asked.json.get("n") or 1), "usage": usage}


def refusal(message: str, **fields: Any) -> dict[str, Any]:
    """An error body in OpenAI's shape."""
    return {"error": {"message": message, "type": "invalid_request_error", **fields}}


def usual(asked: Asked) -> Reply:
    """What a server does that lists "m" and answers for it alone, and has nothing beyond the API."""
    if asked.path == "/v1/models":
        return 200, LIST
    if asked.generates:
        if asked.json.get("model") != "m":
            return 404, refusal(f"The model `{asked.json.get('model')}` does not exist.")
        return 200, completion(asked)
    return 404, {"detail": "Not Found"}


@dataclass
class ScriptedServer:
    """Use as ``async with ScriptedServer(script) as server``. What the script returns None for, `usual` answers."""

    script: Script = lambda asked: None
    asked: list[Asked] = field(default_factory=list)
    base_url: str = ""
    in_flight: int = 0
    most_in_flight: int = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    def generations(self) -> list[dict[str, Any]]:
        """The bodies of the requests to models."""
        return [one.json for one in self.asked if one.generates]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, target, _ = lines[0].split(" ")
                sizes = [line.partition(":")[2] for line in lines if line.lower().startswith("content-length:")]
                body = await reader.readexactly(int(sizes[0])) if sizes else b""
                asked = Asked(method, target, orjson.loads(body) if body else {})
                self.asked.append(asked)
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                found = self.script(asked)
                made = await found if isinstance(found, Awaitable) else found
                status, answer = made if made is not None else usual(asked)
                self.in_flight -= 1
                raw = answer if isinstance(answer, bytes) else orjson.dumps(answer)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(raw)) + raw)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
