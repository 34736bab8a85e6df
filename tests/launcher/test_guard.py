"""The key in front of every path."""

import asyncio
from typing import Any

import pytest

from ridgeline.serving.guard import KEY, Guard

SECRET = "correct-horse"


@pytest.fixture
def guarded(monkeypatch):
    """Sends one request through the guard: the status it got, None where the app was reached."""
    monkeypatch.setenv(KEY, SECRET)
    reached = []

    async def app(scope, receive, send) -> None:
        reached.append(scope)

    guard = Guard(app)

    def request(path: str = "/v1/completions", *headers: bytes, method: str = "POST", **scope: Any):
        sent = []
        reached.clear()

        async def send(message) -> None:
            sent.append(message)

        async def receive():
            raise AssertionError("the body is not read")

        pairs = [(b"authorization", value) for value in headers]
        whole = {"type": "http", "method": method, "path": path, "headers": pairs, **scope}
        asyncio.run(guard(whole, receive, send))
        assert bool(sent) != bool(reached)
        if reached:
            return None
        return sent[0].get("status", sent[0]["type"])

    return request


def test_the_key_opens(guarded) -> None:
    assert guarded("/v1/completions", b"Bearer " + SECRET.encode()) is None
    assert guarded("/invocations", b"bearer " + SECRET.encode()) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Bearer wrong"],
        [b"Bearer correct-hors"],
        [b"Bearer correct-horse "],
        [b"Bearer CORRECT-HORSE"],
        [b"Basic correct-horse"],
        [b"correct-horse"],
        [b"Bearer \xff\xfe"],
        [b"Bearer wrong", b"Bearer correct-horse"],
    ],
    ids=str,
)
def test_anything_else_does_not(headers, guarded) -> None:
    for path in ("/v1/completions", "/invocations", "/", "/metrics", "/tokenize", "/no/such/path"):
        assert guarded(path, *headers) == 401


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/health", "GET", None),
        ("/health", "HEAD", None),
        ("/health", "POST", 401),
        ("/health/", "GET", 401),
        ("/health/../v1/models", "GET", 401),
        ("//health", "GET", 401),
        ("/HEALTH", "GET", 401),
        ("/v1/models", "OPTIONS", 401),
        ("/ping", "GET", 401),
    ],
)
def test_health_alone_is_open(path, method, status, guarded) -> None:
    assert guarded(path, method=method) == status


def test_websockets_and_unknown_kinds(guarded) -> None:
    assert guarded("/v1/realtime", type="websocket") == "websocket.close"
    assert guarded("/health", type="websocket") == "websocket.close"
    assert guarded("/v1/realtime", b"Bearer " + SECRET.encode(), type="websocket") is None
    assert guarded(type="lifespan") is None
    assert guarded(type="webtransport") == 401


@pytest.mark.parametrize("key", [None, ""])
def test_no_key_no_server(key, monkeypatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(KEY, key)
    with pytest.raises(ValueError, match=f"^{KEY}: expected a key"):
        Guard(None)
