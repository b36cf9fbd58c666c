"""Texts from programs, command lines and files: one check of what is none, one way to read files."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toys
from tiny import save_photos

from mmgem import MMGEM
from mmgem.cli.classify import read_classes
from mmgem.cli.main import main
from mmgem.cli.serve import _token
from mmgem.config.recipe import load_recipe
from mmgem.data.labels import read_labels
from mmgem.data.readers import load_dataset
from mmgem.data.readers.translations import add_captions
from mmgem.data.records import read_jsonl
from mmgem.data.text_corpus import read_texts
from mmgem.data.texts import check_text, check_texts, half_character, query_sentence
from mmgem.errors import ConfigError, DataError, MMGEMError, UsageError
from mmgem.evaluate.presets import _read_classes
from mmgem.integrations.langchain import TextEmbeddings
from mmgem.search.query_terms import QueryTerm, embed_terms
from mmgem.self_retrieval.documents import read_document
from mmgem.self_retrieval.passages import load_corpus, load_queries
from mmgem.utils.text_files import read_text

BOM = b"\xef\xbb\xbf"
HALF = "a \udce9 dog"


# --- the edge of the API


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("dog", "a picture of dog"),
        (" a  red\tcar ", "a picture of a red car"),
        ("two dogs run in the snow", "a picture of two dogs run in the snow"),
        ("A picture of a dog", "A picture of a dog"),
        ("two dogs run in the deep snow", "two dogs run in the deep snow"),  # seven words
        ("x" * 41, "x" * 41),
        (" ", " "),
    ],
)
def test_a_search_for_a_name_is_read_in_a_phrase(text: str, read: str) -> None:
    assert query_sentence(text, "a picture of ") == read
    assert query_sentence(text, "") in (text, " ".join(text.split()))


def test_every_search_by_text_reads_it_so(model_copy: Path, tmp_path: Path) -> None:
    model = MMGEM.from_pretrained(model_copy)
    vector = model.embed_texts(["a picture of dog"])[0]
    np.testing.assert_allclose(model.embed_queries(["dog"])[0], vector, atol=1e-6)
    assert not np.allclose(model.embed_texts(["dog"])[0], vector, atol=1e-3)
    np.testing.assert_allclose(TextEmbeddings(model).embed_query("dog"), vector, atol=1e-6)
    np.testing.assert_allclose(embed_terms(model, [QueryTerm("dog")]), vector, atol=1e-6)
    plain = model.embed_texts(["dog"])[0]  # boxes are found by the name alone
    np.testing.assert_allclose(embed_terms(model, [QueryTerm("dog")], regions=True), plain, atol=1e-6)
    model.tokenizer.prep.query_prefix = ""
    np.testing.assert_allclose(model.embed_queries(["dog"]), model.embed_texts(["dog"]), atol=1e-6)


WRONG = [
    (None, UsageError, r"texts must be a list of strings, not None$"),
    ("a dog", UsageError, r"texts must be a list of strings, not one string$"),
    (b"a dog", UsageError, r"texts must be a list of strings, not bytes$"),
    (3, UsageError, r"texts must be a list of strings, not int$"),
    ({"a": "b"}, UsageError, r"texts must be a list of strings, not dict$"),
    ([None], UsageError, r"texts\[0\] must be a string, not None$"),
    (["a", b"b"], UsageError, r"texts\[1\] must be a string, not bytes$"),
    (["a", 2.5], UsageError, r"texts\[1\] must be a string, not float$"),
    (["a", ["b"]], UsageError, r"texts\[1\] must be a string, not list$"),
    (["a", HALF], DataError, r"texts\[1\] holds half a character: '\\udce9' in 'a \\udce9 dog'$"),
    (["\ud800"], DataError, r"texts\[0\] holds half a character"),
    (["a", " "], DataError, "empty text"),
]


@pytest.mark.parametrize(("texts", "error", "message"), WRONG, ids=[repr(texts) for texts, *_ in WRONG])
def test_what_is_no_list_of_texts_is_told(model, tmp_path, texts, error, message):
    (photo,) = save_photos(tmp_path, 1)
    images = [photo] * (len(texts) if isinstance(texts, list) else 1)
    calls = [lambda: model.embed_texts(texts), lambda: model.heatmap(photo, texts)]
    calls += [lambda: model.score(images, texts), lambda: TextEmbeddings(model).embed_documents(texts)]
    if isinstance(texts, list):
        calls += [lambda: model.tokenizer.encode_parts(texts), lambda: model.tokenizer.encode_all(texts)]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("text", [None, b"a", 3, ["a"], HALF])
def test_what_is_no_text_is_told(model, tmp_path, text):
    save_photos(tmp_path / "photos", 2)
    index = model.index(tmp_path / "photos", tmp_path / "idx")
    calls = [lambda: index.search_text(text), lambda: model.rerank(index, text)]
    calls += [lambda: TextEmbeddings(model).embed_query(text)]
    for call in calls:
        with pytest.raises((UsageError, DataError), match=r"^text (must be a string, not|holds half)"):
            call()


@pytest.mark.parametrize("images", [None, 3, "a.jpg", b"x"])
def test_what_is_no_list_of_images_is_told(model, images):
    for call in (model.embed_images, model.caption, model.find_regions, lambda i: model.score(i, ["a"])):
        with pytest.raises(UsageError, match="images must be a list, not "):
            call(images)


def test_lists_of_every_kind_are_lists(model):
    expected = model.embed_texts(["a dog", "a cat"])
    for texts in (("a dog", "a cat"), np.array(["a dog", "a cat"]), iter(["a dog", "a cat"])):
        assert np.array_equal(model.embed_texts(texts), expected)
    assert model.embed_texts([]).shape == (0, model.dim)
    assert check_texts(["x"], "y") == ["x"] and check_text("\U0001f415") == "\U0001f415"
    assert half_character("caf\xe9") is None


def test_the_module_of_sentence_transformers_checks_too(model):
    pytest.importorskip("sentence_transformers")
    from mmgem.integrations.sentence_transformers import MMGEMModule

    module = MMGEMModule(model)
    with pytest.raises(UsageError, match=r"inputs\[1\] must be a string, not None"):
        module.preprocess(["a dog", {"text": None}])
    with pytest.raises(DataError, match=r"inputs\[1\] holds half a character"):
        module.preprocess(["a dog", HALF], prompt="say: ")


def test_half_characters_of_a_command_line_are_one_line(tiny_model_folder, tmp_path, capfd):
    (photo,) = save_photos(tmp_path / "photos", 1)
    common = ["--model", str(tiny_model_folder)]
    assert main(["index", str(tmp_path / "photos"), "--out", str(tmp_path / "idx"), *common]) == 0
    capfd.readouterr()
    for words in (
        ["embed", "--text", HALF, *common],
        ["classify", str(photo), "--classes", f"cat,{HALF}", *common],
        ["search", str(tmp_path / "idx"), HALF],
        ["heatmap", str(photo), HALF, "--out", str(tmp_path / "h.png"), *common],
    ):
        assert main(words) == 1, words
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and "holds half a character" in err and "bug" not in err


@pytest.mark.parametrize("field", ["captions", "label", "split"])
def test_half_characters_of_a_dataset_name_the_line(tmp_path, capfd, tiny_model_folder, field):
    data = toys.photos(tmp_path, train=2, dev=2)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[1][field] = ["half \ud83d a dog"] if field == "captions" else "\ud83d"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"{data.name}:2: {field}.* holds half a character"):
        load_dataset(data)
    assert main(["eval", "retrieval", "--data", str(data), "--model", str(tiny_model_folder)]) == 1
    assert "bug" not in capfd.readouterr().err


def test_half_characters_of_other_files_name_the_line(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"names": ["cat"]}\n{"names": ["\\ud800"]}\n')
    with pytest.raises(DataError, match=r"x.jsonl:2: names holds half"):
        read_labels(file)
    file.write_text('{"text": "x"}\n{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match=r"x.jsonl:2: text holds half"):
        read_texts([file])


# --- files

RECIPE = '[init]\nencoder = "x"\n\n[train]\nout = "runs/x"\nbatch_size = 7\n'
CAPTIONS = '{"image": "1.jpg", "captions": ["a dog"], "captions_de": ["ein Hund"]}\n'
CORPUS = '{"id": "a", "title": "t", "text": "words"}\n'
QUERIES = '{"id": "q", "query": "what", "positives": ["a"]}\n'


def captions_of(path: Path) -> list[str]:
    return [caption for record in load_dataset(path, images=path.parent) for caption in record.captions]


READERS = {
    "classes": ("classes.txt", "cat\nrocket\ndog\n", lambda p: read_classes(str(p))),
    "token": ("token.txt", "secret\n", _token),
    "recipe": ("r.toml", RECIPE, lambda p: load_recipe(p).train.batch_size),
    "records": ("c.jsonl", CAPTIONS, lambda p: read_jsonl(p)[0].captions),
    "translations": ("c.jsonl", CAPTIONS, lambda p: add_captions(read_jsonl(p), p)[0].translations),
    "labels": ("l.jsonl", '{"names": ["cat"]}\n', lambda p: read_labels(p).names),
    "texts": ("t.txt", "a dog\na cat\n", lambda p: read_texts([p])),
    "texts of objects": ("t.jsonl", '{"text": "a dog"}\n', lambda p: read_texts([p])),
    "corpus": ("c.jsonl", CORPUS, load_corpus),
    "queries": ("q.jsonl", QUERIES, load_queries),
    "document": ("d.md", "# Title\n\nSome words.\n", read_document),
    "class names": ("classnames.txt", "n01 tabby, cat\nn02 dog\n", _read_classes),
    "flickr tokens": ("x.token.txt", "1.jpg#0\ta dog\n1.jpg#1\ta cat\n", captions_of),
    "flickr csv": ("captions.txt", "image,caption\n1.jpg,a dog\n1.jpg,a cat\n", captions_of),
}


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_and_line_ends_are_no_text(tmp_path, name):
    file_name, text, read = READERS[name]
    (tmp_path / "1.jpg").touch()
    file = tmp_path / file_name
    file.write_bytes(text.encode())
    expected = read(file)
    for changed in (BOM + text.encode(), text.replace("\n", "\r\n").encode()):
        file.write_bytes(changed)
        assert read(file) == expected
    file.write_bytes(BOM + text.replace("\n", "\r\n").encode())
    assert read(file) == expected
    if name in ("classes", "texts", "token"):
        file.write_bytes(text.replace("\n", " \t\r\n\r\n").encode())
        assert read(file) == expected


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_refused_in_one_line(tmp_path, name, encoding):
    file_name, text, read = READERS[name]
    (tmp_path / "1.jpg").touch()
    file = tmp_path / file_name
    if encoding == "utf-16":
        file.write_bytes(text.encode("utf-16"))
    else:
        file.write_bytes(text.encode() + "caf\xe9\n".encode("latin-1"))
    with pytest.raises(MMGEMError) as error:
        read(file)
    message = str(error.value)
    number = 1 if encoding == "utf-16" else text.count("\n") + 1
    assert f"{file}" in message and f"{number}: " in message and "\n" not in message
    assert (
        "not UTF-8 text but UTF-16; save it as UTF-8" if encoding == "utf-16" else "not UTF-8 text"
    ) in message


def test_compressed_lines_are_read_alike(tmp_path):
    file = tmp_path / "t.txt.gz"
    file.write_bytes(gzip.compress(BOM + b"a dog\r\na cat\r\n"))
    assert list(read_texts([file])) == ["a dog", "a cat"]
    file.write_bytes(gzip.compress("a dog\n".encode("utf-16")))
    with pytest.raises(DataError, match=r"t.txt.gz:1: not UTF-8 text but UTF-16"):
        read_texts([file])


def test_errors_of_files_keep_their_kind(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match=r"--token-file .*none: cannot be read: No such file"):
        _token(tmp_path / "none")
    with pytest.raises(UsageError, match="No such file"):
        read_text(tmp_path / "none")


def test_many_classes_are_not_taken_for_a_file_name():
    names = [f"class number {n}" for n in range(400)]
    assert read_classes(",".join(names)) == names


def test_a_next_line_character_does_not_split_a_class(tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("hot\u2028dog\ncat\n", encoding="utf-8")
    assert read_classes(str(file)) == ["hot\u2028dog", "cat"]


# --- output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_no_terminal_is_too_narrow_for_a_name(tmp_path, tiny_model_folder, encoding):
    names = ["a.png", "caf\xe9.png", "\u72ac.png", os.fsdecode(b"bad\xff.png")]
    for name, photo in zip(names, save_photos(tmp_path / "made", 4), strict=True):
        target = tmp_path / "photos" / name
        target.parent.mkdir(exist_ok=True)
        photo.rename(target)
    (tmp_path / "photos" / "broken \u72ac.png").write_bytes(b"no photo")
    command = [sys.executable, "-m", "mmgem", "classify", tmp_path / "photos", "--classes", "cat,\u732b"]
    command += ["--model", tiny_model_folder]
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("latin-1")
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and b"bug" not in done.stderr and b"skipped" in done.stderr
    assert any(b"/a.png" in line for line in lines)
    assert any(b"bad\xff.png" in line for line in lines)  # the very bytes, for other programs
    if encoding != "utf-8":
        assert b"\\u72ac.png" in done.stdout
    else:
        assert "\u72ac.png".encode() in done.stdout
    assert (b"caf\\xe9.png" if encoding == "ascii" else "caf\xe9.png".encode(encoding)) in done.stdout


def test_json_and_reports_hold_names_of_any_bytes(tmp_path, tiny_model_folder, capfd):
    name = os.fsdecode(b"bad\xff.png")
    (photo,) = save_photos(tmp_path / "photos", 1)
    photo.rename(photo.with_name(name))
    common = ["--model", str(tiny_model_folder)]
    assert main(["index", str(tmp_path / "photos"), "--out", str(tmp_path / "idx"), *common]) == 0
    capfd.readouterr()
    words = ["search", str(tmp_path / "idx"), "a dog", "--json"]
    assert main(words) == 0
    (hit,) = json.loads(capfd.readouterr().out)["hits"]
    assert hit["file"] == str(tmp_path / "photos" / "bad\\xff.png")
    save_photos(tmp_path / "photos", 1)
    assert main(["index", str(tmp_path / "photos"), "--out", str(tmp_path / "idx"), *common]) == 0
    words = [
        "search",
        str(tmp_path / "idx"),
        "--image",
        str(tmp_path / "photos" / name),
        "--html",
        str(tmp_path / "hits.html"),
    ]
    assert main(words) == 0
    assert "bad?.png" in (tmp_path / "hits.html").read_text(encoding="utf-8")


def test_output_that_cannot_be_set_up_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["--version"]) == 0
