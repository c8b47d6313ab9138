"""What the tests of llama.cpp's API ask a server with."""

import json
from typing import Any

import httpx


def post(client: httpx.Client, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def complete(client: httpx.Client, prompt: Any, n_predict: int = 16, **fields: Any) -> Any:
    return post(client, "/completion", prompt=prompt, n_predict=n_predict, **fields)


def greedy(client: httpx.Client, prompt: Any, n_predict: int = 16, **fields: Any) -> Any:
    return complete(client, prompt, n_predict, temperature=0, **fields)


def events(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed answer."""
    with client.stream("POST", "/completion", json=body | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        blocks = response.read().decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [json.loads(block[6:]) for block in blocks]
