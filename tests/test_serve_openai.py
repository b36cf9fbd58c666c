"""OpenAI's own Python client against the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from serving import data_uri, image_part, picture, serving

from mmgem import MMGEM


@pytest.fixture(scope="module")
def client(model: MMGEM) -> Iterator[openai.OpenAI]:
    with serving(model, token="secret") as (http, _):
        yield openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="secret", max_retries=0)


def describing(*data: bytes) -> list[dict[str, object]]:
    parts = [{"type": "text", "text": "What is this?"}, *map(image_part, data)]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "mmgem"


def test_texts_and_images_in_one_list(client: openai.OpenAI, model: MMGEM) -> None:
    data = picture()
    box = [0, 0, 24, 18]
    inputs = ["a red dog", image_part(data), {"type": "text", "text": "snow"}, image_part(data, box=box)]
    reply = client.embeddings.create(model="toy", input=inputs)  # type: ignore[arg-type]
    expected = [
        model.embed_texts(["a red dog"]),
        model.embed_images([data]),
        model.embed_texts(["snow"]),
        model.embed_images([data], [(0, 0, 24, 18)]),
    ]
    assert np.array([row.embedding for row in reply.data]) == pytest.approx(
        np.concatenate(expected), abs=1e-5
    )
    assert reply.usage.prompt_tokens == 4 + 2 * model.network.prefix_length


def test_fewer_dimensions_are_unit_vectors_again(client: openai.OpenAI, model: MMGEM) -> None:
    reply = client.embeddings.create(model="toy", input="a red dog", dimensions=3, encoding_format="float")
    expected = model.embed_texts(["a red dog"])[0, :3]
    assert reply.data[0].embedding == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_a_caption_whole_and_in_words(client: openai.OpenAI, model: MMGEM) -> None:
    one, other = picture(1), picture(2)
    expected = "\n".join(model.caption([one, other]))
    whole = client.chat.completions.create(model="toy", messages=describing(one, other))  # type: ignore[arg-type]
    assert whole.choices[0].message.content == expected
    stream = client.chat.completions.create(
        model="toy",
        messages=describing(one, other),  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage is not None and chunks[-1].usage == whole.usage
    assert len(chunks) > 4


def test_errors_are_the_client_s_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="toy"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.UnprocessableEntityError) as bad:
        client.embeddings.create(model="toy", input=[image_part(b"no photo")])  # type: ignore[arg-type]
    assert (bad.value.code, bad.value.param) == ("bad_image", "image")
    with pytest.raises(openai.UnprocessableEntityError, match="token id 999999 is not one of the") as ids:
        client.embeddings.create(model="toy", input=[[1, 2], [999_999]])
    assert ids.value.param == "input"
    with pytest.raises(openai.AuthenticationError):
        client.copy(api_key="wrong").models.list()
    with pytest.raises(openai.APIError, match="not an image"):
        list(client.chat.completions.create(model="toy", messages=describing(b"no photo"), stream=True))  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def http(model: MMGEM) -> Iterator[httpx.Client]:
    with serving(model) as (http, _):
        yield http


def described(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    reply = http.post("/v1/chat/completions", json={"messages": describing(picture(1)), **fields})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_every_field_is_as_published(http: httpx.Client) -> None:
    """Against the types of OpenAI's own client, made from its description, with nothing converted."""
    Model.model_validate(http.get("/v1/models").json()["data"][0], strict=True)
    chat = described(http, max_tokens=2)
    ChatCompletion.model_validate(chat, strict=True)
    assert set(chat["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert chat["choices"][0]["logprobs"] is None and chat["id"].startswith("chatcmpl-")
    reply = http.post("/v1/embeddings", json={"input": "a dog"}).json()
    CreateEmbeddingResponse.model_validate(reply, strict=True)
    body = {"messages": describing(picture(1)), "stream": True, "stream_options": {"include_usage": True}}
    lines = http.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] > 0
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None] * (len(events) - 2)
    assert events[-2]["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_caption_that_was_cut_says_so(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = described(http, max_tokens=1)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 1
    both = {"messages": describing(picture(1), picture(2)), "max_completion_tokens": 4}
    shared = http.post("/v1/chat/completions", json=both).json()
    assert shared["usage"]["completion_tokens"] <= 4
    fewer = http.post("/v1/chat/completions", json={**both, "max_completion_tokens": 1}).json()
    assert fewer["choices"][0]["finish_reason"] == "length" and fewer["usage"]["completion_tokens"] == 1


def test_stop_ends_the_answer(http: httpx.Client) -> None:
    whole = described(http)["choices"][0]["message"]["content"]
    word = whole.split()[1]
    for stop in (word, ["nothing like it", word]):
        choice = described(http, stop=stop)["choices"][0]
        assert choice["message"]["content"] == whole[: whole.find(word)]
        assert choice["finish_reason"] == "stop"


def test_optional_fields_may_be_null(http: httpx.Client) -> None:
    nulls = ["model", "encoding_format", "dimensions", "user"]
    assert http.post("/v1/embeddings", json={"input": "a dog", **dict.fromkeys(nulls)}).status_code == 200
    nulls = """
    model stream stream_options max_tokens max_completion_tokens n stop logprobs top_logprobs audio
    response_format modalities tool_choice tools temperature top_p seed user metadata frequency_penalty
    presence_penalty logit_bias service_tier store parallel_tool_calls reasoning_effort prediction
    """.split()  # noqa: SIM905
    messages: list[dict[str, Any]] = describing(picture(1))
    messages += [
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "developer", "content": "x"},
    ]
    messages += [{"role": "user", "content": [{"type": "text", "text": ""}]}]
    messages[1]["content"][1]["image_url"]["detail"] = None
    messages[1]["content"][1]["box"] = None
    described(http, messages=messages, **dict.fromkeys(nulls))
    described(http, stream_options={"include_usage": None}, response_format={"type": "text"}, tools=[])
    described(http, tool_choice="auto", logprobs=False, n=1, temperature=0, unknown_field={"a": 1})


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"response_format": {"type": "json_object"}},
        {"modalities": ["text", "audio"]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"stop": ["a"] * 5},
        {"max_tokens": 0},
    ],
)
def test_what_cannot_be_given_is_refused_by_name(http: httpx.Client, field: dict[str, Any]) -> None:
    reply = http.post("/v1/chat/completions", json={"messages": describing(picture(1)), **field})
    assert reply.status_code == 422 and reply.json()["error"]["param"].startswith(next(iter(field)))


def test_token_ids_are_texts_of_the_model_s_tokenizer(client: openai.OpenAI, model: MMGEM) -> None:
    texts = ["a red dog", "snow"]
    ids = model.tokenizer.pieces(texts)
    expected = model.embed_texts(texts)
    many = client.embeddings.create(model="toy", input=ids)
    one = client.embeddings.create(model="toy", input=ids[0])
    assert np.array([row.embedding for row in many.data]) == pytest.approx(expected, abs=1e-5)
    assert one.data[0].embedding == pytest.approx(expected[0], abs=1e-5)
    for bad in ([], [[]], [[1], "a"], [True], [-1], [1.5]):
        with pytest.raises(openai.UnprocessableEntityError):
            client.embeddings.create(model="toy", input=bad)  # type: ignore[arg-type]


def test_data_uris_as_programs_write_them(http: httpx.Client) -> None:
    uri = data_uri(picture())
    head, _, data = uri.partition(",")
    lines = "\r\n".join(data[at : at + 76] for at in range(0, len(data), 76))
    expected = http.post("/caption", json={"image": uri}).json()["captions"]
    for written in (
        f"{head},{lines}\n",
        f"\n {head}, {data}",
        uri.rstrip("="),
        f"{head},{data.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        uri.replace(";base64", "; base64"),
        uri.replace("data:image/png", "DATA:image/PNG;name=x"),
    ):
        reply = http.post("/caption", json={"image": written})
        assert reply.status_code == 200 and reply.json()["captions"] == expected, written[:40]
    for bad in (f"{head},{data[:-5]}!!!", f"{head},\u00e9", "data:image/png,abc", "data:"):
        assert http.post("/caption", json={"image": bad}).status_code == 422
