"""Programs that speak OpenAI's API through libraries of their own: LiteLLM, langchain-openai, pydantic-ai (the extra `clients`)."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from serving import Serving, serving

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
NO_THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
WHY = "it is in the extra `clients`, which is not installed"


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    warm: bool


TOOL = {
    "type": "function",
    "function": {"name": "Weather", "description": "The weather", "parameters": Weather.model_json_schema()},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


def test_litellm(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices
    litellm = pytest.importorskip("litellm", reason=WHY)
    about: dict[str, Any] = {"model": "openai/any", "api_base": server.url + "/v1", "api_key": "none"}
    asked = {**about, "messages": MESSAGES, "temperature": 0}
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.reasoning_content
    assert answer.usage.prompt_tokens == 19
    parts = [part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)]
    assert "".join(parts) == ANSWER
    called = litellm.completion(**asked, tools=[TOOL], tool_choice="required")
    call = called.choices[0].message.tool_calls[0]
    assert called.choices[0].finish_reason == "tool_calls"
    assert Weather.model_validate_json(call.function.arguments)
    formed = litellm.completion(**asked, response_format=Weather, extra_body=NO_THINKING)
    assert Weather.model_validate_json(formed.choices[0].message.content)
    response = litellm.responses(**about, input=QUESTION, temperature=0)
    said = [part.text for item in response.output if item.type == "message" for part in item.content]
    assert said == [ANSWER]
    vectors = litellm.embedding(**about, input=["a king", "a queen"]).data
    assert len(vectors) == 2
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**about, messages=[{"role": "boss", "content": "x"}])


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_langchain(server: Serving, responses: bool) -> None:
    langchain = pytest.importorskip("langchain_openai", reason=WHY)
    model = langchain.ChatOpenAI(
        model="any", base_url=server.url + "/v1", api_key="none", temperature=0, use_responses_api=responses
    )

    def text(message: Any) -> str:
        found: str = message.text if isinstance(message.text, str) else message.text()
        return found

    assert text(model.invoke(QUESTION)) == ANSWER
    assert "".join(text(part) for part in model.stream(QUESTION)) == ANSWER
    asked = model.bind_tools([Weather], tool_choice="required").invoke(QUESTION)
    (call,) = asked.tool_calls
    assert Weather.model_validate(call["args"])
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    again = model.bind_tools([Weather]).invoke([{"role": "user", "content": QUESTION}, asked, result])
    assert again.response_metadata
    effort: dict[str, Any] = (
        {"reasoning": {"effort": "none"}} if responses else {"extra_body": {"reasoning_effort": "none"}}
    )
    still = langchain.ChatOpenAI(
        model="any",
        base_url=server.url + "/v1",
        api_key="none",
        temperature=0,
        use_responses_api=responses,
        **effort,
    )
    formed = still.with_structured_output(Weather, method="json_schema").invoke(QUESTION)
    assert isinstance(formed, Weather)


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
def test_pydantic_ai(server: Serving, responses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of a schema while there are tools."""
    ai = pytest.importorskip("pydantic_ai", reason=WHY)
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=server.url + "/v1", api_key="none")
    model = (OpenAIResponsesModel if responses else OpenAIChatModel)("any", provider=provider)
    settings: dict[str, Any] = {"temperature": 0}
    assert ai.Agent(model, model_settings=settings).run_sync(QUESTION).output == ANSWER

    async def streamed() -> str:
        async with ai.Agent(model, model_settings=settings).run_stream(QUESTION) as result:
            found: str = await result.get_output()
            return found

    assert asyncio.run(streamed()) == ANSWER
    settings["extra_body"] = NO_THINKING
    for form in ai.ToolOutput(Weather), ai.NativeOutput(Weather):
        agent = ai.Agent(model, output_type=form, model_settings=settings, retries=3)

        @agent.tool_plain
        def temperature(city: str) -> str:
            """The temperature in a city."""
            return json.dumps({"city": city, "degrees": 21})

        output = agent.run_sync(QUESTION).output
        assert isinstance(output, Weather)
        assert output.city in ("Paris", "Rome")
