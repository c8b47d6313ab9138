"""What /openapi.json promises, put to the test by schemathesis: no request that it makes up is a 500, and answers are as described."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import Serving, serving

N_EXAMPLES = int(os.environ.get("QWENCLI_EXAMPLES", "6"))
"""Of each operation and mode."""
AS_DESCRIBED: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(max_tokens=4, n_slots=2, n_queue=4) as running:
        yield running
        assert running.service.llm.engine.running == []


@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_answers_are_as_described(server: Serving, mode: schemathesis.GenerationMode) -> None:
    """To requests that the description allows, and to those that it does not."""
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in description.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body:
            continue  # there is nothing to be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=N_EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any) -> None:
            response = case.call(timeout=60)
            assert response.status_code < 500 or response.status_code == 501, (
                response.text
            )  # 501: not supported
            case.validate_response(response, checks=AS_DESCRIBED)

        ask()
    slots = httpx.get(f"{server.url}/slots", timeout=60).json()
    assert not any(slot["is_processing"] for slot in slots)
