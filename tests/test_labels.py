"""Names of classes and kinds, sentences that name them, and the classifier that says which an image shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file, save_file

from mmgem.checkpoints.imagenet_labels import wordnet_nouns, write_imagenet_labels
from mmgem.config import EncoderConfig
from mmgem.data.labels import label_set, read_labels
from mmgem.data.records import Record
from mmgem.encoders import encoder_class
from mmgem.errors import ConfigError, DataError, DownloadError, UsageError
from mmgem.models.classifier import Classifier
from mmgem.tasks.image_text.label_captions import label_caption, name_sentences, with_label_captions
from mmgem.train.loop import prepare, train_step


def test_classes_and_the_kinds_above_them(tmp_path: Path) -> None:
    found = read_labels(toys.labels(tmp_path))
    assert [names[0] for names in found.names] == list(toys.CLASSES)
    assert found.names[1] == ("cat", "small cat")
    assert found.kind_names == (("big dog",), ("house",))
    assert found.kind_members.astype(int).tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[]", "one JSON object"),
        ('{"names": []}', "names must be a list"),
        ('{"names": ["a"], "id": 3}', "id must be a string"),
        ('{"names": ["a"], "name": "b"}', "unknown key 'name'"),
        ('{"names": ["dog"]}', "occurs twice"),
        ('{"names": ["x"], "members": ["y"]}', "no class has the id 'y'"),
        ('{"names": ["x"], "members": []}', "members must be"),
        ("{", "Expecting property name"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"names": ["dog"]}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"labels\.jsonl:2: .*{told}"):
        read_labels(path)


def test_no_file_and_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_labels(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="no classes"):
        read_labels(tmp_path / "empty")


def test_disjoint_kinds_share_no_class() -> None:
    rng = np.random.default_rng(0)
    found = label_set([str(n) for n in range(12)])
    members = rng.random((20, 12)) < 0.25
    found = type(found)(found.names, tuple((f"k{n}",) for n in range(20)), members)
    for seed in range(20):
        chosen = found.disjoint_kinds(np.random.default_rng(seed), 4)
        assert len(chosen) <= 4
        assert members[chosen].sum(0).max() <= 1


def test_labels_of_imagenet_are_made_of_synsets_and_wordnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "wheel" / "timm" / "data" / "_info"
    info.mkdir(parents=True)
    (info / "imagenet_synsets.txt").write_text("n00000003\nn00000004\nn00000005\n")
    words = {"n00000003": "tabby, tabby cat, tabby", "n00000004": "Persian cat", "n00000005": "oak"}
    (info / "imagenet_synset_to_lemma.txt").write_text("".join(f"{k}\t{v}\n" for k, v in words.items()))
    nouns = [
        "  1 a licence",
        "00000001 03 n 02 cat 0 true_cat 0 001 @ 00000002 n 0000 | a cat",
        "00000002 03 n 01 thing 0 000 | a thing",
        "00000003 03 n 01 tabby 0 001 @ 00000001 n 0000 | striped",
        "00000004 03 n 01 Persian_cat 0 002 + 00000001 v 0101 @ 00000001 n 0000 | furry",
        "00000005 03 n 01 oak 0 001 @ 00000006 n 0000 | a tree",
        "00000006 03 n 01 tree 0 001 @ 00000002 n 0000 | tall",
    ]
    (tmp_path / "wordnet" / "dict").mkdir(parents=True)
    (tmp_path / "wordnet" / "dict" / "data.noun").write_text("\n".join(nouns) + "\n")
    monkeypatch.setenv("WNHOME", str(tmp_path / "wordnet"))
    write_imagenet_labels(tmp_path / "wheel", tmp_path)
    found = read_labels(tmp_path / "labels.jsonl")
    assert found.names == (("tabby", "tabby cat"), ("Persian cat",), ("oak",))
    assert found.kind_names == (("cat", "true cat"), ("thing",))  # "tree" has one class: nothing new
    assert found.kind_members.tolist() == [[True, True, False], [True, True, True]]
    monkeypatch.setenv("WNHOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match="wordnet-base"):
        wordnet_nouns()
    write_imagenet_labels(tmp_path / "wheel", tmp_path)
    bare = read_labels(tmp_path / "labels.jsonl")
    assert (bare.names, bare.kind_names) == (found.names, ())


def test_sentences_that_name() -> None:
    assert name_sentences("ox", ["{}", "a photo of a {}."]) == ["ox", "a photo of an ox."]
    assert name_sentences("a shop receipt", ["{}", "a {}.", "the {} here"]) == [
        "shop receipt",
        "a shop receipt.",
        "a shop receipt here",
    ]


def test_labels_become_captions(tmp_path: Path) -> None:
    records = [
        Record(tmp_path / "1.jpg", ("a dog",), label="dog"),
        Record(tmp_path / "2.jpg", label="big_cat"),
        Record(tmp_path / "3.jpg"),
    ]
    filled, named = with_label_captions(records)
    assert filled[0].captions == (*name_sentences("dog"), "a dog")  # what it is called, then what is said
    assert filled[2] == records[2]
    assert filled[1].captions[:2] == ("big cat", "a photo of a big cat.")
    assert set(named) == {*filled[0].captions[:-1], *filled[1].captions}
    assert set(named.values()) == {"a dog.", "a big cat."}


def test_the_caption_of_a_label_has_an_article_where_it_needs_one() -> None:
    names = ["ox", "bus", "grass", "the sea", "a forest", "daisies", "city buildings", "T-shirt"]
    assert [label_caption(name) for name in names] == [
        "an ox.",
        "a bus.",
        "a grass.",
        "the sea.",
        "a forest.",
        "daisies.",
        "city buildings.",
        "a T-shirt.",
    ]


def labelled(folder: Path) -> Path:
    """The toy photos, every other one with a label in the place of its captions."""
    path = toys.photos(folder)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for n, row in enumerate(rows[::2]):
        if row["split"] == "train":
            row["captions"], row["label"] = [], toys.CLASSES[n % len(toys.CLASSES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_of_a_label_the_caption_names_it_and_ends(tmp_path: Path) -> None:
    bases = toys.base_models(tmp_path / "bases", "tied llama", "efficientnet_lite0")
    recipe = toys.recipe(tmp_path, labelled(tmp_path / "data"), *bases, data__labels=True)
    (task,) = prepare(recipe).tasks
    batches, end = task.batches, task.batches.end
    assert len(batches.usable) == 24
    decode = batches.tokenizer.hf.decode
    seen = set()
    for step in range(batches.per_epoch):
        batch = batches[step]
        said = batch.caption_targets.split([len(ids) + 1 for ids in batch.captions])
        for ids, owner, targets in zip(batch.captions, batch.caption_owner.tolist(), said, strict=True):
            assert targets.tolist() == [*ids.tolist(), end]
            own = [decode(batch.texts[n]) for n in (batch.text_owner == owner).nonzero()[:, 0]]
            if decode(ids) in own:
                continue
            (name,) = (name for name in toys.CLASSES if decode(ids).strip() == f"a {name}")
            seen.add(owner + len(batch.photos) * step)
            # Sentences with the same label have the same key.
            same = batch.text_keys == batch.text_keys[batch.text_owner == owner][0]
            assert all(name in decode(batch.texts[n]) for n in same.nonzero()[:, 0])
        assert batch.caption_tokens == len(batch.caption_targets)
    assert seen
    assert train_step(prepare(recipe), 0)[0]["caption_loss"] > 0


def test_a_classifier_labels_images_and_boxes_as_its_parts_do(tmp_path: Path) -> None:
    _, folder = toys.base_models(tmp_path, "tied llama", "efficientnet_lite0")
    config = toys.ENCODERS["efficientnet_lite0"]
    classifier = Classifier.load(str(folder), config)
    encoder = encoder_class(config).build(config)
    encoder.load_state_dict(encoder_class(config).load_base(str(folder), config)[0])
    head = load_file(str(folder / "classifier.safetensors"))
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = encoder.eval().frozen_stem(pixels)
        expected = (encoder(pixels).mean((1, 2)) @ head["weight"].T + head["bias"]).softmax(-1)
    torch.testing.assert_close(classifier(features), expected)
    whole = torch.tensor([[[0.0, 0.0, 32.0, 32.0]]]).expand(3, 1, 4)
    torch.testing.assert_close(classifier(features, whole)[:, 0], expected)
    assert not [p for p in classifier.parameters() if p.requires_grad]


def test_a_classifier_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    lm, folder = toys.base_models(tmp_path / "bases", "tied llama", "efficientnet_lite0")
    data = toys.photos(tmp_path / "data")
    names = str(toys.labels(tmp_path))

    def made(**changes: Any) -> Any:
        options = {"image_text__label_distillation__weight": 1.0, **changes}
        return prepare(toys.recipe(tmp_path, data, lm, folder, **options))

    with pytest.raises(ConfigError, match=r"label_distillation\.labels: needed"):
        made()
    made(image_text__label_distillation__labels=names)
    few = tmp_path / "few.jsonl"
    few.write_text('{"names": ["dog"]}\n')
    with pytest.raises(ConfigError, match=r"label_distillation\.labels: 1 classes; the classifier has 7"):
        made(image_text__label_distillation__labels=str(few))
    other = toys.base_models(tmp_path / "bases", "tied llama", "efficientnet_lite0", seed=1)[1]
    with pytest.raises(ConfigError, match=r"label_distillation\.classifier: the frozen stem"):
        made(
            image_text__label_distillation__labels=names,
            image_text__label_distillation__classifier=str(other),
        )
    save_file({"weight": torch.zeros(7, 3), "bias": torch.zeros(7)}, str(folder / "classifier.safetensors"))
    with pytest.raises(ConfigError, match=r"label_distillation\.classifier: .*16 channels"):
        made(image_text__label_distillation__labels=names)
    (folder / "classifier.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"label_distillation\.classifier: .*there is no classifier"):
        made(image_text__label_distillation__labels=names)


@pytest.mark.parametrize("reads", ["the mean", "something else"])
def test_classifiers_of_transformers(tmp_path: Path, reads: str) -> None:
    from transformers import ConvNextConfig, ConvNextForImageClassification, SwinConfig
    from transformers import SwinForImageClassification as Swin

    torch.manual_seed(0)
    model: Any
    if reads == "the mean":
        config = SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
        )
        config.id2label = dict(enumerate(toys.CLASSES))
        model = Swin(config)
    else:  # a norm lies between
        config = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, image_size=32)
        config.id2label = dict(enumerate(toys.CLASSES))
        model = ConvNextForImageClassification(config)
        torch.nn.init.normal_(model.convnext.layernorm.bias)
    torch.nn.init.normal_(model.classifier.weight)
    model.eval().save_pretrained(tmp_path)
    kind = encoder_class(EncoderConfig("transformers"))
    if reads != "the mean":
        with pytest.raises(ConfigError, match="something else than the mean"):
            kind.load_classifier(str(tmp_path))
        return
    weight, _, names = kind.load_classifier(str(tmp_path))
    assert names == list(toys.CLASSES)
    torch.testing.assert_close(weight, model.classifier.weight)
    classifier = Classifier.load(
        str(tmp_path), kind.base_config(str(tmp_path), EncoderConfig("transformers"))
    )
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)
        torch.testing.assert_close(classifier(classifier.encoder.frozen_stem(pixels)), expected)


def test_names_learn_what_the_classifier_says(tmp_path: Path) -> None:
    """Names of classes alone: their loss falls."""
    bases = toys.base_models(tmp_path / "bases", "tied llama", "efficientnet_lite0")
    recipe = toys.recipe(
        tmp_path,
        toys.photos(tmp_path / "data"),
        *bases,
        image_text__label_distillation={"weight": 1.0, "labels": str(toys.labels(tmp_path))},
        image_text__contrastive__weight=0.0,
        image_text__caption__weight=0.0,
        data__dev_split="",
        train__epochs=12,
    )
    run = prepare(recipe)
    first = train_step(run, 0)[0]["label_loss"]
    for step in range(1, run.total):
        last = train_step(run, step)[0]["label_loss"]
    assert last < 0.8 * first
