"""What goes wrong is one line on standard error that says what and where, and an exit code."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_photos, save_tiny_model

from mmgem.cli.main import main


@dataclass
class Place:
    """What a row builds on: an empty folder, a good model, a copy of it to damage, a good photo."""

    folder: Path
    good_model: Path
    model: Path
    photo: Path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def caption(self, *argv: object) -> list[object]:
        return ["caption", *argv, "--model", self.good_model]

    def data(self, *lines: object) -> Path:
        """A dataset file; its first line is good."""
        good = {"image": str(self.photo), "captions": ["a dog"], "split": "train", "label": "dog"}
        text = [line if isinstance(line, str) else json.dumps(line) for line in (good, *lines)]
        return self.write("data.jsonl", "\n".join(text) + "\n")

    def evaluate(self, *lines: object) -> list[object]:
        return ["eval", "caption", "--data", self.data(*lines), "--model", self.good_model]

    def recipe(self, *changes: str, text: str = "") -> list[object]:
        plain = f'[data]\ntrain = "{self.data()}"\ndev_split = ""\n[train]\nout = "{self.folder / "run"}"\n'
        return ["train", self.write("recipe.toml", plain + text), *changes]

    def damaged(self, change: Callable[[dict], object]) -> list[object]:
        """Caption with a model whose tensors ``change`` has changed."""
        weights = load_file(self.model / "model.safetensors")
        change(weights)
        save_file(weights, self.model / "model.safetensors")
        (self.model / "checksums.json").unlink()
        return ["caption", self.photo, "--model", self.model]

    def index(self) -> Path:
        """An index by the good model."""
        save_photos(self.folder / "photos", 2)
        out = self.folder / "idx"
        assert (
            main(["index", str(self.folder / "photos"), "--out", str(out), "-m", str(self.good_model)]) == 0
        )
        return out


def without(place: Place, name: str) -> list[object]:
    (place.model / name).unlink()
    return ["caption", place.photo, "--model", place.model]


def with_file(place: Place, name: str, content: str | bytes) -> list[object]:
    (place.model / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return ["caption", place.photo, "--model", place.model]


def truncated(place: Place) -> Path:
    whole = place.folder / "whole.jpg"
    Image.effect_noise((200, 200), 90).save(whole)
    return place.write("half.jpg", whole.read_bytes()[: whole.stat().st_size // 2])


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def newer(place: Place) -> list[object]:
    config = json.loads((place.model / "config.json").read_text())
    return with_file(place, "config.json", json.dumps(config | {"format": 2}))


def misspelt(place: Place) -> list[object]:
    config = json.loads((place.model / "config.json").read_text())
    config["model"]["dims"] = config["model"].pop("dim")
    return with_file(place, "config.json", json.dumps(config))


def region(place: Place, box: object) -> list[object]:
    line = {
        "image": str(place.photo),
        "captions": ["a cat"],
        "regions": [{"box": box, "captions": ["an ear"]}],
    }
    return place.evaluate(line)


def no_teacher(place: Place) -> list[object]:
    import toys

    lm, encoder = toys.base_models(place.folder)
    start = [
        f"init.llm={lm}",
        f"init.encoder={encoder}",
        "model.encoder.kind=transformers",
        "preprocessing.size=32",
    ]
    cache = f"data.cache={place.folder / 'features'}"
    return place.recipe(*start, cache, "image_text.contrastive.distill_weight=0.5")


def no_scale(place: Place) -> list[object]:
    path = place.model / "preprocessor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scales": [0]}))
    return ["caption", place.photo, "--model", place.model]


def other_models_index(place: Place) -> list[object]:
    return ["search", place.index(), "a dog", "--model", save_tiny_model(place.folder / "other", seed=1)]


def damaged_index(place: Place) -> list[object]:
    idx = place.index()
    (idx / "photos.sqlite3").write_bytes(b"not a database, " * 100)
    return ["search", idx, "a dog"]


def model_gone(place: Place) -> list[object]:
    place.good_model = save_tiny_model(place.folder / "gone")
    idx = place.index()
    place.good_model.rename(place.folder / "moved")
    return ["search", idx, "a dog"]


def below_a_file(place: Place) -> Path:
    return place.write("file", "not a folder") / "out"


# What is wrong, the command line that has it, what the line must say, the exit code.
ROWS: dict[str, tuple[Callable[[Place], list[object]], list[str], int]] = {
    # files
    "missing file": (lambda p: p.caption(p.folder / "no.jpg"), ["no.jpg: no such file"], 2),
    "empty file": (lambda p: p.caption(p.write("a.jpg", "")), ["a.jpg: is empty"], 1),
    "truncated JPEG": (lambda p: p.caption(truncated(p)), ["half.jpg: ", "truncated"], 1),
    "text named .jpg": (lambda p: p.caption(p.write("a.jpg", "hello")), ["a.jpg: not an image"], 1),
    "folder without photos": (lambda p: p.caption(p.folder), ["no photos in this folder"], 2),
    "too many pixels": (lambda p: p.caption(p.write("a.png", bomb())), ["a.png: too many pixels"], 1),
    "nothing to embed": (lambda p: ["embed"], ["give photos, or --text"], 2),
    "no folder to index": (
        lambda p: ["index", p.folder / "no", "--out", p.folder / "idx", "-m", p.good_model],
        ["no: no such folder"],
        2,
    ),
    "no photos to index": (
        lambda p: ["index", p.folder, "--out", p.folder / "idx", "-m", p.good_model],
        ["no photos in this folder"],
        2,
    ),
    # data sets
    "missing data set": (
        lambda p: ["eval", "caption", "--data", p.folder / "no.jsonl", "-m", p.good_model],
        ["no.jsonl: No such file"],
        2,
    ),
    "bad JSON": (lambda p: p.evaluate('{"image": "a.jpg",'), ["data.jsonl:2: not a JSON object"], 1),
    "no image": (lambda p: p.evaluate({"captions": ["a cat"]}), ['data.jsonl:2: no "image"'], 1),
    "captions as a string": (
        lambda p: p.evaluate({"image": "a.jpg", "captions": "a cat"}),
        ["data.jsonl:2: captions must be a list of strings"],
        1,
    ),
    "box of three numbers": (lambda p: region(p, [1, 2, 3]), ["data.jsonl:2: regions[0].box must be 4"], 1),
    "box inside out": (lambda p: region(p, [9, 0, 3, 4]), ["data.jsonl:2: regions[0].box", "x0 < x1"], 1),
    "unknown split": (
        lambda p: [*p.evaluate(), "--split", "test"],
        ["no split 'test'; its splits are train"],
        2,
    ),
    "image of a record is gone": (
        lambda p: [
            "eval",
            "caption",
            "-m",
            p.good_model,
            "--data",
            p.write("one.jsonl", '{"image": "gone.jpg", "captions": ["a dog"]}\n'),
        ],
        ["gone.jpg: No such file"],
        1,
    ),
    # recipes
    "missing recipe": (lambda p: ["train", p.folder / "no.toml"], ["no.toml: cannot be read"], 2),
    "bad TOML": (lambda p: p.recipe(text="[train"), ["recipe.toml: not TOML"], 2),
    "unknown key": (lambda p: p.recipe("train.epoch=3"), ["train.epoch: unknown field"], 2),
    "wrong type": (
        lambda p: p.recipe("train.batch_size=many"),
        ["train.batch_size: expected int, got 'many'"],
        2,
    ),
    "override without =": (
        lambda p: p.recipe("train.batch_size"),
        ["'train.batch_size': expected section.field=value"],
        2,
    ),
    "unknown objective": (
        lambda p: p.recipe("image_text.contrastive.loss=both"),
        ["image_text.contrastive.loss: 'both' is not one of"],
        2,
    ),
    "no training data": (lambda p: p.recipe("data.train=no.jsonl"), ["no.jsonl: No such file"], 2),
    "no teacher": (no_teacher, ["image_text.contrastive.teacher: distill_weight needs a teacher"], 2),
    # checkpoints
    "no model": (
        lambda p: ["caption", p.photo, "--model", p.folder / "no"],
        ["no: no such model", "a folder, a hub id"],
        2,
    ),
    "no config": (lambda p: without(p, "config.json"), ["config.json: missing"], 1),
    "config not JSON": (lambda p: with_file(p, "config.json", "{"), ["config.json: not JSON"], 1),
    "newer format": (newer, ["config.json: format 2, this version reads 1"], 1),
    "misspelt config": (misspelt, ["model.dims: unknown field"], 1),
    "no preprocessor": (lambda p: without(p, "preprocessor.json"), ["preprocessor.json: missing"], 1),
    "impossible scale": (no_scale, ["preprocessing.scales: 0 is not a side of 1 to 4096"], 1),
    "no tokenizer": (lambda p: without(p, "tokenizer.json"), ["no usable tokenizer"], 1),
    "no weights": (lambda p: without(p, "model.safetensors"), ["model.safetensors: missing"], 1),
    "damaged weights": (
        lambda p: with_file(p, "model.safetensors", b"\x00" * 100),
        ["model.safetensors: damaged"],
        1,
    ),
    "missing tensor": (
        lambda p: p.damaged(lambda t: t.pop("visual_connector.bias")),
        ["missing visual_connector.bias"],
        1,
    ),
    "unexpected tensor": (
        lambda p: p.damaged(lambda t: t.update(h4=t["visual_connector.bias"].clone())),
        ["unexpected h4"],
        1,
    ),
    "wrong shape": (
        lambda p: p.damaged(
            lambda t: t.update({"visual_connector.bias": t["visual_connector.bias"][1:].clone()})
        ),
        ["wrong shape visual_connector.bias (15,) instead of (16,)"],
        1,
    ),
    # indexes
    "no index": (lambda p: ["search", p.folder / "idx", "a dog"], ["no search index here"], 2),
    "no index of texts": (
        lambda p: ["corpus", "search", "a dog", "--index", p.folder / "idx"],
        ["no index of texts; mmgem corpus index makes one"],
        2,
    ),
    "no corpus": (
        lambda p: ["corpus", "ask", "a dog", "--model", p.good_model],
        ["this model has learned no corpus; see mmgem corpus train"],
        2,
    ),
    "no store": (
        lambda p: ["store", "search", f"lance:{p.folder / 'no'}", "a dog"],
        ["no such folder; mmgem store push makes it"],
        2,
    ),
    "no photo for a heat map": (lambda p: ["heatmap", "no.jpg", "a dog"], ["no.jpg: no such file"], 2),
    "index of another model": (other_models_index, ["was built by another model"], 1),
    "damaged index": (damaged_index, ["idx: file is not a database"], 1),
    "model of the index is gone": (model_gone, ["gone: no such model", "say where it is with --model"], 1),
    "index cannot be written": (
        lambda p: ["index", p.photo.parent, "--out", below_a_file(p), "-m", p.good_model],
        ["file/out: "],
        1,
    ),
    # arguments
    "no such verb": (lambda p: ["capton", p.photo], ["No such command 'capton'", "(see mmgem --help)"], 2),
    "no such option": (
        lambda p: p.caption(p.photo, "--beam", "2"),
        ["--beam", "(see mmgem caption --help)"],
        2,
    ),
    "malformed box": (lambda p: p.caption(p.photo, "--box", "1,2,3"), ["--box 1,2,3: must be four"], 2),
    "box in the wrong order": (lambda p: p.caption(p.photo, "--box", "9,0,3,4"), ["x0 < x1"], 2),
    "box outside": (
        lambda p: p.caption(p.photo, "--box", "900,0,950,9"),
        ["outside the image of 48 x 36"],
        2,
    ),
    "no beams": (lambda p: p.caption(p.photo, "--beams", "0"), ["'--beams'"], 2),
    "fewer than no results": (lambda p: ["search", p.index(), "a dog", "-k", "-1"], ["'-k'"], 2),
    "empty query": (lambda p: ["search", p.index(), " "], ["text to search for is empty"], 2),
    "no date": (lambda p: ["search", p.index(), "x", "--date", "soon"], ["--date 'soon': must be 2021,"], 2),
    "no place": (lambda p: ["search", p.index(), "x", "--near", "1,2"], ["--near '1,2': must be"], 2),
    "open quote": (lambda p: ["search", p.index(), 'a "dog'], ["query, character 3: the quote is not"], 2),
    "no query": (lambda p: ["search", p.index()], ["give a text or --image"], 2),
    "no query photo": (lambda p: ["search", p.index(), "--image", "no.jpg"], ["no.jpg: no such file"], 2),
    "box without a photo": (lambda p: ["search", p.index(), "x", "--box", "0,0,1,1"], ["needs --image"], 2),
    "empty text": (lambda p: ["embed", "--text", "", "-m", p.good_model], ["--text: the text is empty"], 2),
    "box of a text": (lambda p: ["embed", "--text", "a", "--box", "1,1,9,9"], ["--box needs photos"], 2),
    "no classes": (lambda p: ["classify", p.photo, "--classes", ""], ["two or more names"], 2),
    "no class file": (lambda p: ["classify", p.photo, "--classes", "no.txt"], ["'no.txt': give two"], 2),
    "no folder for vectors": (
        lambda p: ["embed", p.photo, "--out", below_a_file(p), "-m", p.good_model],
        ["file/out: its folder cannot be made: ", "file is a file"],
        2,
    ),
    "more dimensions than there are": (
        lambda p: ["embed", p.photo, "--dimensions", "9", "-m", p.good_model],
        ["dimensions must be from 1 to 8, not 9"],
        2,
    ),
    "vectors over a photo": (
        lambda p: ["embed", p.photo, "--out", p.photo, "-m", p.good_model],
        ["must end in .npy"],
        2,
    ),
    "page over a photo": (
        lambda p: ["search", p.index(), "--image", p.photo, "--html", p.photo],
        ["must end in .html or .htm"],
        2,
    ),
    "heat map over its photo": (
        lambda p: ["heatmap", p.photo, "a dog", "--out", p.photo, "-m", p.good_model],
        ["is the photo itself"],
        2,
    ),
    "page is a folder": (
        lambda p: ["search", p.index(), "a dog", "--html", p.folder],
        ["place: is a folder, not a file to write"],
        2,
    ),
    "heat map of no photo": (
        lambda p: ["heatmap", p.write("a.txt", "x"), "a dog", "-m", p.good_model],
        ["a.txt: not an image in a known format"],
        1,
    ),
    "box outside the query photo": (
        lambda p: ["search", p.index(), "--image", p.photo, "--box", "900,0,950,9"],
        ["outside the image of 48 x 36"],
        2,
    ),
    "index is a file": (
        lambda p: ["index", p.photo.parent, "--out", p.write("a.idx", ""), "-m", p.good_model],
        ["a.idx: is a file; an index is a folder"],
        1,
    ),
    "no origin": (
        lambda p: ["serve", "--allow-origin", "foo"],
        ["--allow-origin foo: must be a site like https://"],
        2,
    ),
    "origin with a path": (
        lambda p: ["serve", "--allow-origin", "https://a.org/b"],
        ["--allow-origin https://a.org/b: must be a site"],
        2,
    ),
    "no token file": (
        lambda p: ["serve", "--token-file", p.folder / "no"],
        ["no: cannot be read: No such file or directory"],
        2,
    ),
    "no recipe": (
        lambda p: ["train", p.folder / "no.toml"],
        ["no.toml: cannot be read: No such file or directory"],
        2,
    ),
    "page cannot be written": (
        lambda p: ["search", p.index(), "a dog", "--html", below_a_file(p)],
        ["file/out: "],
        2,
    ),
    "demo cannot be written": (
        lambda p: ["demo", "--photos", p.photo.parent, "--out", below_a_file(p), "-m", p.good_model],
        ["file/out: cannot be written"],
        2,
    ),
    "unknown eval task": (lambda p: ["eval", "speed"], ["no eval task 'speed'; there are retrieval"], 2),
    "another task's option": (
        lambda p: [*p.evaluate(), "--rerank"],
        ["--rerank is for eval retrieval"],
        2,
    ),
    "no test set": (lambda p: ["eval", "caption"], ["--data or --preset"], 2),
    "unknown preset": (
        lambda p: ["eval", "caption", "--preset", "coco", "--root", p.folder],
        ["no preset 'coco'; there are coco-retrieval"],
        2,
    ),
    "preset of another task": (
        lambda p: ["eval", "retrieval", "--preset", "nocaps", "--root", p.folder],
        ["for mmgem eval caption"],
        2,
    ),
    "preset without files": (
        lambda p: ["eval", "caption", "--preset", "nocaps", "--root", p.folder],
        ["preset nocaps needs its data there: nocaps_val"],
        2,
    ),
    "preset without folder": (lambda p: ["eval", "caption", "--preset", "nocaps"], ["needs --root"], 2),
    "nothing to pull": (lambda p: ["pull", "huge"], ["called 'huge'; there are tiny"], 2),
}


@pytest.mark.parametrize("row", ROWS)
def test_one_line_says_what_is_wrong(row, tmp_path, tiny_model_folder, model_copy, tiny_photos, capfd):
    folder = tmp_path / "place"
    folder.mkdir()
    build, fragments, code = ROWS[row]
    argv = build(Place(folder, tiny_model_folder, model_copy, tiny_photos[0]))
    capfd.readouterr()
    assert main([str(arg) for arg in argv]) == code
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("mmgem: error: ")
    for fragment in fragments:
        assert fragment in line
    assert "Traceback" not in line and "\x1b" not in line


def test_one_bad_photo_in_a_thousand(tmp_path, tiny_model_folder, capfd):
    photos = save_photos(tmp_path / "photos", 1000)
    photos[500].write_bytes(photos[500].read_bytes()[:100])
    argv = ["index", str(tmp_path / "photos"), "--out", str(tmp_path / "idx"), "-m", str(tiny_model_folder)]
    assert main(argv) == 0
    out, err = capfd.readouterr()
    assert "999 photos (999 embedded" in out and "1 not readable" in out
    (line,) = err.splitlines()
    assert line.startswith(f"mmgem: skipped {photos[500]}: ")
    assert main([*argv, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["photos"], report["unchanged"], report["embedded"]) == (999, 999, 0)
    assert [failed["file"] for failed in report["failed"]] == [str(photos[500])]


def test_bad_photos_among_good_ones_are_skipped(tmp_path, tiny_model_folder, capfd):
    photos = save_photos(tmp_path, 5)
    photos[1].write_bytes(b"")
    photos[4].write_text("hello")
    argv = ["caption", *map(str, photos), str(tmp_path / "no.jpg"), "-m", str(tiny_model_folder), "--json"]
    assert main(argv) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert [entry["file"] for entry in told["captions"]] == [str(photos[i]) for i in (0, 2, 3)]
    assert [Path(entry["file"]).name for entry in told["failed"]] == ["0001.png", "0004.png", "no.jpg"]
    assert told["failed"][0]["reason"] == "is empty"
    assert [line.split(": ")[1] for line in err.splitlines()] == [
        f"skipped {path}" for path in (photos[1], photos[4], tmp_path / "no.jpg")
    ]


def test_nothing_but_bad_photos_is_an_error(tmp_path, tiny_model_folder, capfd):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert main(["caption", str(tmp_path), "-m", str(tiny_model_folder)]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1] == "mmgem: error: none of the 2 photos could be read"
    out_folder = tmp_path / "idx"
    assert main(["index", str(tmp_path), "--out", str(out_folder), "-m", str(tiny_model_folder)]) == 1
    assert capfd.readouterr().err.splitlines()[-1].endswith("none of the 2 photos could be read")


def test_a_box_outside_some_of_the_photos(tmp_path, tiny_model_folder, capfd):
    small, large = save_photos(tmp_path, 2)
    Image.open(large).resize((200, 100)).save(large)
    argv = [str(small), str(large), "--box", "60,10,150,90", "-m", str(tiny_model_folder), "--json"]
    for verb, key in (("caption", "captions"), ("embed", "embeddings")):
        assert main([verb, *argv]) == 0
        told = json.loads(capfd.readouterr().out)
        assert [entry["file"] for entry in told[key]] == [str(large)]
        assert told["failed"][0]["reason"].startswith("box (60.0, 10.0, 150.0, 90.0) lies outside the image")
