"""OpenAI's own Python client against the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from serving import image_part, picture, serving

from mmgem import MMGEM


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> MMGEM:
    return MMGEM.from_pretrained(tiny_model_folder)


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
    with pytest.raises(openai.UnprocessableEntityError):
        client.embeddings.create(model="toy", input=[1, 2, 3])
    with pytest.raises(openai.AuthenticationError):
        client.copy(api_key="wrong").models.list()
    with pytest.raises(openai.APIError, match="not an image"):
        list(client.chat.completions.create(model="toy", messages=describing(b"no photo"), stream=True))  # type: ignore[call-overload]
