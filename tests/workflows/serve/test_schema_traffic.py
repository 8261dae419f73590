"""Requests that schemathesis makes of the server's own description, right ones and wrong ones.

``LYRICS_EXAMPLES`` says how many of each kind and route.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from lyrics.workflows.serve.app import Serving, build_app
from lyrics.workflows.serve.limits import Limits
from lyrics.workflows.serve.worker import Worker
from tests.core.test_model_steps import made
from tests.workflows.serve.helpers import Client, served
from tests.workflows.serve.test_app_fuzz import CHAT, TELLTALE

EXAMPLES = int(os.environ.get("LYRICS_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    limits = Limits(body_bytes=400_000, image_pixels=1_000_000, seconds=60.0, tokens=32)
    with served(build_app(Serving(Worker(made(), limits), "small", limits))) as one:
        yield one


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("path", [CHAT, "/v1/refine"])
def test_requests_by_the_description(client: Client, path: str, wrong: bool, record_property: Any) -> None:
    """Answers and refusals come back, and nothing that tells where the server runs; wrong ones are refused."""
    schema = schemathesis.openapi.from_dict(client("GET", "/openapi.json")[1])
    mode = schemathesis.GenerationMode.NEGATIVE if wrong else schemathesis.GenerationMode.POSITIVE
    found: Counter[int] = Counter()
    odd: list[str] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        body = case.body
        if isinstance(body, dict) and not wrong:
            body = {**body, "max_tokens": 2, "model": None} if path == CHAT else body
        try:
            data = json.dumps(body).encode()
        except (TypeError, ValueError):  # what it uses in place of a body that is left out
            data = b""
        status, answer, _ = client("POST", path, data)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        found[status] += 1
        if TELLTALE.search(text) or status not in (200, 400, 404, 408, 413, 429):
            odd.append(f"{status} {text[:200]} <- {data[:200]!r}")
        elif status >= 400:
            assert set(answer["error"]) == {"message", "type", "param", "code"}

    send()
    assert odd == []
    assert sum(found.values()) >= EXAMPLES // 2
    assert found[400] > 0, found
    if path == CHAT and not wrong:
        assert found[200] > 0, found
    assert client("GET", "/health")[0] == 200
    record_property("statuses", dict(found))
