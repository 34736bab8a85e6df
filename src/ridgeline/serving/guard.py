"""A key on every path of the engine's server.

The engine's ``--api-key`` guards some prefixes of paths; ``POST /invocations`` generates text
without one. This middleware, given to the engine by its ``--middleware``, lets through the one
path that a load balancer asks, and nothing else without the key.
"""

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY = "VLLM_API_KEY"  # the environment variable that the engine itself reads
HEALTH = "/health"

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable, Callable], Awaitable[None]]

_REFUSAL = (
    b'{"error": {"message": "expected the header Authorization: Bearer <key>", '
    b'"type": "authentication_error", "code": 401}}'
)


class Guard:
    """ASGI middleware: ``Authorization: Bearer <key>`` on all requests but ``GET /health``.

    The key is that of the environment variable ``VLLM_API_KEY``; keys are compared as SHA-256
    sums in constant time. A request without it gets 401 before its body is read, a websocket is
    closed before it opens.

    Raises:
        ValueError: the environment holds no key.
    """

    def __init__(self, app: App) -> None:
        key = os.environ.get(KEY)
        if not key:
            raise ValueError(f"{KEY}: expected a key in the environment, got none")
        self.app = app
        self._expected = _digest(key.encode())

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan" or _is_open(scope) or self._has_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(_REFUSAL)).encode()),
                (b"www-authenticate", b"Bearer"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _has_key(self, scope: Message) -> bool:
        found = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(found) != 1:
            return False
        scheme, _, key = found[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(key), self._expected)


def _is_open(scope: Message) -> bool:
    return (
        scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] == HEALTH
    )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
