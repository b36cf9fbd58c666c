"""Sounds: the picture of one, and that an encoder of spectrograms fits where one of photos does."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmgem.api import MMGEM
from mmgem.checkpoints.model_folder import build
from mmgem.config import EncoderConfig, LLMConfig, ModelConfig, Recipe
from mmgem.data.moments import moment_box
from mmgem.data.pictures import media_size
from mmgem.data.records import Media, Record, read_jsonl, write_jsonl
from mmgem.data.sound import log_mel, mel_bands, read_spectrogram, sound_seconds
from mmgem.data.transforms import normalise, to_square
from mmgem.encoders import encoder_class
from mmgem.errors import CheckpointError, ConfigError, DataError, ImageError, UsageError
from mmgem.inference.images import encode_images
from mmgem.models.networks import make_network
from mmgem.plan import plan
from mmgem.tasks.image_text.data import image_source
from mmgem.train.loop import prepare, train, train_step

SIZE = 64
AST: dict[str, Any] = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_mel_bins": 32,
    "max_length": 64,
    "patch_size": 8,
    "frequency_stride": 8,
    "time_stride": 4,
    "size": SIZE,
}
WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_ffn_dim": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "num_mel_bins": 16,
    "max_source_positions": 32,
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "size": SIZE,
}
GRIDS = {"ast": (4, 15), "whisper": (1, 32)}
CONFIGS = {"ast": AST, "whisper": WHISPER}
TONES = {"low": 300.0, "mid": 1200.0, "high": 4800.0}


def save(path: Path, samples: np.ndarray, rate: int = 16000, width: int = 2, channels: int = 1) -> Path:
    """Write samples ``(n,)`` or ``(n, channels)`` from -1 to 1 as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    integers = np.round(samples.reshape(-1) * (2 ** (8 * width - 1) - 1)).astype("<i8")
    if width == 1:
        integers += 128
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(integers.view(np.uint8).reshape(-1, 8)[:, :width].tobytes())
    return path


def tone(hertz: float, seconds: float, rate: int = 16000, seed: int | None = None) -> np.ndarray:
    """A tone, with noise and a phase of its own if there is a ``seed``."""
    time = np.arange(round(seconds * rate)) / rate
    if seed is None:
        return 0.5 * np.sin(2 * np.pi * hertz * time)
    rng = np.random.default_rng(seed)
    return 0.5 * np.sin(2 * np.pi * hertz * time + rng.uniform(0, 6)) + 0.01 * rng.normal(size=len(time))


def network(kind: str = "ast", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    encoder = EncoderConfig("audio", config=dict(CONFIGS[kind]))
    made = make_network(ModelConfig(encoder=encoder, llm=LLMConfig(dict(toys.LLMS["llama"])), dim=8)).eval()
    with torch.no_grad():  # random convolutions are so small that all sounds are alike
        for p in made.encoder.parameters():
            if p.ndim >= 3 and p.requires_grad:
                p.mul_(10)
    return made


def prep() -> Any:
    return toys.prep(SIZE, mean=[0.5] * 3, std=[0.5] * 3, resize="squash")


# The picture -----------------------------------------------------------------------------------------------


def test_the_spectrogram_is_that_of_the_library() -> None:
    """As transformers computes it for its feature extractors, window for window."""
    samples = tone(440, 1.0, seed=0).astype(np.float32)
    made = log_mel(samples, 16000, 90)
    filters = mel_filter_bank(513, 128, 0.0, 8000.0, 16000, mel_scale="htk")
    np.testing.assert_allclose(mel_bands(16000, 1024), filters, atol=1e-12)
    start = round(0.005 * 16000) - 200  # of our first window
    padded = np.concatenate([samples[start:], samples])
    expected = spectrogram(
        *(padded, window_function(400, "hann"), 400, 160),
        fft_length=1024, power=2.0, center=False, mel_filters=filters, mel_floor=0.0,
    )  # fmt: skip
    level = np.log10(np.maximum(expected[:, :90] / window_function(400, "hann").sum() ** 2, 1e-10))
    np.testing.assert_allclose(made, level, atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("hertz", [200.0, 1000.0, 3500.0])
def test_a_tone_is_a_line_whatever_the_rate(tmp_path: Path, rate: int, hertz: float) -> None:
    path = save(tmp_path / "a.wav", tone(hertz, 3.0, rate), rate)
    picture = np.asarray(read_spectrogram(path).convert("L"))
    assert picture.shape == (128, 1024) and sound_seconds(path) == 3.0
    row = 127 - picture[:, :300].mean(1).argmax()
    centre = 700 * (10 ** ((row + 1) * np.log10(1 + 8000 / 700) / 129) - 1)
    assert abs(2595 * np.log10((1 + hertz / 700) / (1 + centre / 700))) < 25  # of the 22 between bands
    np.testing.assert_array_equal(picture[:, 20:280], picture[:, 320:580])  # it is repeated


def test_when_a_sound_begins(tmp_path: Path) -> None:
    silence = np.zeros(2 * 44100)
    path = save(tmp_path / "a.wav", np.concatenate([silence, tone(900, 12.0, 44100)]), 44100)
    columns = np.asarray(read_spectrogram(path).convert("L"))[::-1].max(0)
    assert len(columns) == 1400 and columns[1:197].max() < 10 and columns[203:1390].min() > 240
    quiet = np.asarray(read_spectrogram(save(tmp_path / "b.wav", silence, 44100)))
    assert not quiet.any()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_depths_and_channels(tmp_path: Path, width: int) -> None:
    mono = tone(700, 1.0)
    plain = np.asarray(read_spectrogram(save(tmp_path / "a.wav", mono)), np.int16)
    both = np.stack([2 * mono, np.zeros_like(mono)], 1)
    made = np.asarray(read_spectrogram(save(tmp_path / "b.wav", both, width=width, channels=2)), np.int16)
    loud = plain > 160
    assert np.abs(plain - made)[loud].max() <= (12 if width == 1 else 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no WAV file that can be read: it is cut off"),
        (b"RIFF\x00\x00\x00\x00WAVE", "no WAV file that can be read"),
        (b"\xff\xd8\xff" * 20, "no WAV file that can be read: file does not start with RIFF id"),
    ],
)
def test_what_is_no_sound(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    for read in (sound_seconds, read_spectrogram):
        with pytest.raises(ImageError, match=rf"a\.wav: {message}"):
            read(tmp_path / "a.wav")
    with pytest.raises(ImageError, match=r"none\.wav: No such file"):
        sound_seconds(tmp_path / "none.wav")


def test_sounds_that_are_cut_off_or_too_long(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(500, 2.0))
    path.write_bytes(path.read_bytes()[:100])
    assert read_spectrogram(path).size == (1024, 128)  # what is there of it
    path.write_bytes(path.read_bytes()[:44])
    with pytest.raises(ImageError, match="it has no samples"):
        read_spectrogram(path)
    with pytest.raises(ImageError, match="it is 61 seconds long, over 60; cut it"):
        sound_seconds(save(tmp_path / "b.wav", np.zeros(61 * 8000), 8000))


# Records ---------------------------------------------------------------------------------------------------


def test_records_of_sounds(tmp_path: Path) -> None:
    row = {"sound": "a.wav", "captions": ["rain"], "rate": 3}
    row["regions"] = [
        {"start": 1, "end": 2.5, "captions": ["thunder"], "loud": True},
        {"box": [5, 0, 9, 64], "captions": ["a bird"]},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (record,) = read_jsonl(tmp_path / "a.jsonl")
    assert record.source == record.media == Media("sound", (tmp_path / "a.wav",)) and record.meta == {
        "rate": 3
    }
    assert [region.box for region in record.regions] == [(100, 0, 250, 128), (5, 0, 9, 64)]
    assert record.regions[0].box == moment_box((1, 2.5)) and record.regions[0].meta == {"loud": True}
    write_jsonl(tmp_path / "b.jsonl", [record])
    assert read_jsonl(tmp_path / "b.jsonl") == [record]
    for change, message in (
        ({"start": 3, "end": 1}, r"a\.jsonl:1: regions\[0\]\.start and end must be seconds"),
        ({"captions": ["x"]}, r"a\.jsonl:1: regions\[0\]\.box must be 4 finite numbers"),
    ):
        (tmp_path / "a.jsonl").write_text(json.dumps(row | {"regions": [change]}))
        with pytest.raises(DataError, match=message):
            read_jsonl(tmp_path / "a.jsonl")


# The encoder -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_map_is_frequency_by_time(kind: str) -> None:
    encoder = network(kind).encoder
    encoder.check_maps()
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        maps = encoder(pixels)
    assert maps.shape == (2, *GRIDS[kind], 16)
    grey = pixels.mean(1)
    bands, steps = CONFIGS[kind]["num_mel_bins"], encoder.steps
    read = torch.nn.functional.interpolate(
        grey[:, None].flip(2), (bands, steps), mode="bilinear", antialias=True
    )[:, 0]
    with torch.no_grad():
        if kind == "ast":
            states = encoder.net(read.mT).last_hidden_state[:, 2:]
            expected = states.view(2, 4, 15, 16).flip(1)
        else:
            expected = encoder.net(read).last_hidden_state[:, None]
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_pooling_over_time(kind: str, tmp_path: Path) -> None:
    """Whole: the mean of the map. A moment: RoIAlign over time, here its samples one by one."""
    made = network(kind)
    sound = Media("sound", (save(tmp_path / "a.wav", tone(500, 12.0, seed=1)),))
    pixels = normalise(to_square(read_spectrogram(sound.path), prep())[None], prep())
    moments = [(0.0, 12.0), (3.0, 7.5), (0.5, 0.9), (8.0, 12.0)]
    model = MMGEM(made, toys.tokenizer(prep()))
    with torch.no_grad():
        (cells,) = made.encoder(pixels).mean(1)  # over frequencies: (times, C)
        expected = [cells.mean(0)]
        for start, end in moments:
            at = (start + (end - start) * (np.arange(14000) + 0.5) / 14000) / 12 * len(cells) - 0.5
            if (end - start) / 12 * len(cells) <= 14:  # two samples a bin
                at = (start + (end - start) * (np.arange(14) + 0.5) / 14) / 12 * len(cells) - 0.5
            at = torch.from_numpy(at.clip(0, len(cells) - 1)).float()
            low = at.floor().long().clamp(max=len(cells) - 2)
            share = (at - low)[:, None]
            expected.append(((1 - share) * cells[low] + share * cells[low + 1]).mean(0))
        rows = made.visual_projection(torch.stack(expected)).numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = model.embed_images([sound] * 5, [None, *map(moment_box, moments)])
    np.testing.assert_allclose(vectors, rows, atol=1e-4)
    np.testing.assert_allclose(vectors[0], model.embed_images([sound])[0], atol=1e-6)
    assert media_size(sound) == (1200, 128)


def test_a_moment_is_the_mean_of_its_cut_out_part_where_cells_see_no_further(tmp_path: Path) -> None:
    """With a map that is the picture itself: what begins and ends in the middle of columns that are alike."""
    made = network("ast")
    made.encoder.frozen_stem = lambda pixels: pixels.mean(1)[..., None].expand(-1, -1, -1, 16)
    made.visual_projection = torch.nn.Identity()
    parts = [tone(hertz, 4.0) for hertz in (300, 1500, 4000)]
    sound = Media("sound", (save(tmp_path / "a.wav", np.concatenate(parts)),))
    whole = np.asarray(read_spectrogram(sound.path).convert("L"), np.float32) / 127.5 - 1
    for start in (0.0, 4.0, 8.0):
        with torch.no_grad():
            row = encode_images(made, prep(), [sound], [[moment_box((start + 0.5, start + 3.5))]])
        cut = whole[:, int(100 * start) + 50 : int(100 * start) + 350].mean()
        assert row[0, 0, 0].item() == pytest.approx(float(cut), abs=0.01)


@pytest.mark.parametrize("kind", CONFIGS)
def test_base_weights(kind: str, tmp_path: Path) -> None:
    plain = {k: v for k, v in CONFIGS[kind].items() if k not in ("model_type", "size")}
    torch.manual_seed(1)
    if kind == "ast":
        full: Any = ASTForAudioClassification(ASTConfig(**plain))
        net = full.audio_spectrogram_transformer
    else:
        full = WhisperForConditionalGeneration(WhisperConfig(**plain))
        net = full.model.encoder
    full.save_pretrained(tmp_path)
    config = EncoderConfig("audio", config={"size": SIZE})
    audio = encoder_class(config)
    base = audio.load_base(str(tmp_path), config)
    made = audio.build(base.config)
    made.load_state_dict(base.tensors)
    assert audio.base_config(str(tmp_path), config).config["model_type"] == CONFIGS[kind]["model_type"]
    for name, value in net.state_dict().items():
        assert torch.equal(made.net.state_dict()[name], value)
    wrong = EncoderConfig("audio", config={"size": SIZE, "num_mel_bins": 7})
    with pytest.raises(ConfigError, match="num_mel_bins: 7, but the base weights have"):
        audio.load_base(str(tmp_path), wrong)
    with pytest.raises(CheckpointError, match=r"init\.encoder"):
        audio.load_base(str(tmp_path / "none"), config)
    with pytest.raises(ConfigError, match="'vit' is neither"):
        audio.build(EncoderConfig("audio", config={"model_type": "vit"}))


def test_who_hears_and_who_sees(tmp_path: Path) -> None:
    sound = Media("sound", (save(tmp_path / "a.wav", tone(500, 1.0)),))
    with pytest.raises(UsageError, match="this model's encoder reads no sound, only image and video"):
        MMGEM(toys.network(), toys.tokenizer()).embed_images([sound])
    toys.photos(tmp_path / "photos", 1, 0)
    photo = tmp_path / "photos" / "images" / "0.png"
    model = MMGEM(network(), toys.tokenizer(prep()))
    for images, boxes in (([photo], None), ([photo], [(0, 0, 9, 9)]), ([Media("image", (photo,))], None)):
        with pytest.raises(UsageError, match="this model's encoder reads no image, only sound"):
            model.embed_images(images, boxes)


# Training --------------------------------------------------------------------------------------------------


def sounds(folder: Path, moments: bool = False, train: int = 24, dev: int = 6) -> Path:
    """Tones of three pitches, captioned with these; with ``moments`` another one follows, and both are told
    apart."""
    rows = []
    for i in range(train + dev):
        (name, hertz), (other, second) = (list(TONES.items())[n % 3] for n in (i, i + 1))
        parts = [tone(hertz, 6.0, seed=i)]
        row: dict[str, Any] = {"captions": [f"a {WORDS[name]} {thing}" for thing in ("dog", "cat")]}
        if moments:
            parts.append(tone(second, 4.24, seed=i + 100))
            row["regions"] = [
                {"start": 0, "end": 6, "captions": [f"{WORDS[name]} horse"]},
                {"start": 6, "end": 10.24, "captions": [f"{WORDS[other]} horse"]},
            ]
        save(folder / f"{i}.wav", np.concatenate(parts))
        rows.append(row | {"sound": f"{i}.wav", "split": "train" if i < train else "dev"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder / "captions.jsonl"


WORDS = {"low": "black", "mid": "green", "high": "white"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds(tmp_path_factory.mktemp("sounds"))


def recipe(folder: Path, data: Path, kind: str, **changes: Any) -> Recipe:
    """A run over sounds, from random weights in the form of a transformers checkpoint."""
    made = network(kind)
    lm, encoder = folder / "lm", folder / kind
    made.llm.lm.save_pretrained(lm)
    toys.hf_tokenizer().save_pretrained(lm)
    full = WhisperForConditionalGeneration if kind == "whisper" else ASTForAudioClassification
    base = full(made.encoder.net.config)
    own = base.model.encoder if kind == "whisper" else base.base_model
    own.load_state_dict(made.encoder.net.state_dict())
    base.save_pretrained(encoder)
    options = {
        "model__encoder": {"kind": "audio", "config": {"size": SIZE}},
        "preprocessing__size": SIZE,
        "preprocessing__mean": [0.5] * 3,
        "preprocessing__std": [0.5] * 3,
        "data__cached_augmentations": 1,
        "optim__lr_llm": 1e-2,
        "optim__lr_heads": 2e-2,
        "optim__lr_embeddings": 1e-2,
    }
    return toys.recipe(folder, data, lm, encoder, **(options | changes))


@pytest.mark.parametrize("kind", CONFIGS)
def test_sounds_are_learned(kind: str, tmp_path: Path, data: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [row | {"sound": str(data.parent / row["sound"])} for row in rows]
    more = {"sound": "none.wav", "captions": ["a dog"], "split": "train"}
    bad.write_text("\n".join(map(json.dumps, [more, *rows])))
    pixels = {"data__cached": False, "optim__lr_encoder": 1e-3} if kind == "ast" else {}
    made = recipe(tmp_path, bad, kind, train__epochs=30, **pixels)
    folder = train(made)
    lines = [json.loads(line) for line in (made.train.out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "caption_loss" in line]
    for name in ("caption_loss", "contrastive_loss"):
        assert np.mean([s[name] for s in steps[-5:]]) < 0.8 * np.mean([s[name] for s in steps[:5]])
    assert {"i2t", "CIDEr"} <= next(line for line in lines if "score" in line).keys()
    model = MMGEM.from_pretrained(folder)
    dev = [record.source for record in read_jsonl(data, "dev")]
    texts = model.embed_texts([f"a {word} dog" for word in WORDS.values()])
    vectors = model.embed_images(dev)
    assert (vectors @ texts.T).argmax(1).tolist() == [0, 1, 2] * 2
    for caption, record in zip(model.caption(dev), read_jsonl(data, "dev"), strict=True):
        assert caption.lower().rstrip(".") in record.captions
    model.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(MMGEM.from_pretrained(tmp_path / "again").embed_images(dev), vectors)
    twin = build(model.network.config)
    twin.load_state_dict(model.network.state_dict())


def test_cached_equals_pixels_equals_inference(tmp_path: Path, data: Path) -> None:
    made, records = network(), read_jsonl(data)[:3]
    expected = encode_images(made, prep(), [record.source for record in records]).detach()
    for cached in (True, False):
        plain = toys.recipe(tmp_path, data, tmp_path, tmp_path, data__cached=cached)
        source = image_source(plain, made, prep(), records, 1)
        read = source.read([0, 1, 2], [0, 0, 0])
        with torch.no_grad():
            rows = made.encode_image(read if cached else made.encoder(read))
        torch.testing.assert_close(
            rows, expected, atol=1e-2 if cached else 1e-5, rtol=1e-2 if cached else 1e-5
        )
    with pytest.raises(
        ConfigError, match=r"data\.cached_augmentations: sounds are neither cropped nor mirrored"
    ):
        image_source(plain, made, prep(), records, 2)
    with pytest.raises(UsageError, match="reads no image, only sound"):
        image_source(plain, made, prep(), [Record(tmp_path / "a.png", ("a",))], 1)


def test_moments_of_sounds_are_learned_as_boxes(tmp_path: Path) -> None:
    data = sounds(tmp_path / "sounds", moments=True)
    made = recipe(tmp_path, data, "ast", data__region_share=0.5, data__boxes_per_image=2)
    run = prepare(made)
    batch = run.tasks[0].batches[0]
    assert batch.boxes is not None and batch.frames is not None
    edge = SIZE * 600 / 1024
    assert {tuple(box) for box in batch.boxes.flatten(0, 1).tolist()} == {
        (0.0, 0.0, edge, float(SIZE)),
        (edge, 0.0, float(SIZE), float(SIZE)),
    }
    assert np.isfinite(list(train_step(run, 0)[0].values())).all()
    assert plan(made).images == 8
