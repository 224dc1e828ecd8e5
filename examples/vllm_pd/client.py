"""Requests to vLLM's OpenAI server, and the exchange of a router."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MODEL = "tiny"
HOST = "127.0.0.1"


class RequestError(Exception):
    """The server refused the request, failed it, or died before its end."""


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0  # until prefill has answered
    first_token_seconds: float = 0.0  # until decode's first token


def get(port: int, path: str, timeout: float = 10.0) -> str:
    """The body of a page; raises RequestError unless the status is 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request("GET", path)
        return _ok(connection.getresponse()).read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(f"GET {path}: {error!r}") from error
    finally:
        connection.close()


def metric(port: int, name: str) -> float:
    """The sum of a Prometheus metric over its labels; 0 if it is absent."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in get(port, "/metrics").splitlines()
        if line.startswith((name + "{", name + " "))
    )


def prefill(port: int, prompt: list[int], timeout: float) -> dict[str, Any]:
    """Compute the prompt's KV cache; return where decode can read it."""
    body = _body(prompt, 1)
    body["kv_transfer_params"] = {"do_remote_decode": True}
    (reply,) = _post(port, body, timeout)
    where = reply.get("kv_transfer_params")
    if not where:
        raise RequestError(f"prefill returned no kv_transfer_params: {reply}")
    return dict(where)


def stream(
    port: int,
    prompt: list[int],
    count: int,
    timeout: float,
    where: dict[str, Any] | None = None,
) -> Iterator[list[int]]:
    """Yield new tokens as they arrive, `count` in all."""
    body = _body(prompt, count)
    body["stream"] = True
    if where is not None:
        body["kv_transfer_params"] = where
    missing = count
    for event in _post(port, body, timeout):
        choice = (event.get("choices") or [{}])[0]
        tokens = list(choice.get("token_ids") or [])
        if "error" in event or choice.get("finish_reason") == "error":
            raise RequestError(f"the request failed: {json.dumps(event)}")
        missing -= len(tokens)
        if tokens:
            yield tokens
    if missing:
        raise RequestError(f"{missing} of {count} tokens did not arrive")


def generate(
    prefill_port: int,
    decode_port: int,
    prompt: list[int],
    count: int,
    timeout: float,
) -> Answer:
    """Do what a router does: send the prompt to prefill, then to decode."""
    answer = Answer()
    begin = time.perf_counter()
    where = prefill(prefill_port, prompt, timeout)
    answer.prefill_seconds = time.perf_counter() - begin
    for tokens in stream(decode_port, prompt, count, timeout, where):
        if not answer.tokens:
            answer.first_token_seconds = time.perf_counter() - begin
        answer.tokens += tokens
    return answer


def _body(prompt: list[int], count: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def _post(
    port: int, body: dict[str, Any], timeout: float
) -> Iterator[dict[str, Any]]:
    """Yield the reply, or the events of a streamed reply."""
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        response = _ok(connection.getresponse())
        if not body.get("stream"):
            yield json.loads(response.read())
            return
        for line in response:
            text = line.decode().strip().removeprefix("data: ")
            if text == "[DONE]":
                return
            if text:
                yield json.loads(text)
        raise RequestError("the stream ended before [DONE]")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RequestError(f"request to port {port}: {error!r}") from error
    finally:
        connection.close()


def _ok(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status != 200:
        text = response.read(2000).decode(errors="replace")
        raise RequestError(f"status {response.status}: {text}")
    return response
