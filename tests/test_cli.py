"""The verbs of ``mmgem``: what they print where, on a tiny random model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toys
from PIL import Image
from tiny import save_photos

from mmgem import __version__
from mmgem.cli import main as main_module
from mmgem.cli.main import main
from mmgem.data import image_kinds

VERBS = (  # noqa: SIM905
    "demo index watch search duplicates cluster caption classify heatmap embed bulk "
    "serve plan train adopt compare eval calibrate mosaic check export pull completion corpus data store"
).split()
ROOT = Path(main_module.__file__).parents[2]


@pytest.fixture
def photo_index(run, tiny_photos, tmp_path):
    run("index", tiny_photos[0].parent, "--out", tmp_path / "idx")
    return tmp_path / "idx"


def python(code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a Python of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, env=env, timeout=60
    )


def heavy(*argv: object) -> list[str]:
    """The heavy packages a command line imports."""
    code = (
        "import sys\nfrom mmgem.cli.main import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'rich', 'tokenizers', 'huggingface_hub'}\n"
        "print(*sorted(heavy & sys.modules.keys()), file=sys.stderr)\nsys.exit(code)"
    )
    done = python(code, *argv)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capfd):
    assert main([verb, "--help"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"Usage: mmgem {verb}") and err == ""
    assert len(out.splitlines()[2].strip()) > 20, "says what it does"
    assert max(map(len, out.splitlines())) <= 80


def test_help_lists_every_verb_and_no_other(capfd):
    for argv in ([], ["--help"]):
        assert main(argv) == 0
        out = capfd.readouterr().out
        listed = out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
        assert [line.split()[0] for line in listed] == list(VERBS)
        assert not any(line.endswith("...") for line in listed)
        assert "Exit codes" in out


def test_version(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"{__version__}\n"


def test_help_imports_nothing_heavy():
    assert heavy("--help") == []


def test_caption(run, model, tiny_photos):
    out, err = run("caption", *tiny_photos[:2], "--beams", 1)
    captions = model.caption(tiny_photos[:2], beams=1)
    assert out == "".join(f"{p}\t{c}\n" for p, c in zip(tiny_photos, captions, strict=False))
    assert err == ""


def test_caption_of_a_box_and_of_a_folder(run, model, tiny_photos):
    box = (4.0, 3.0, 20.5, 30.0)
    out, _ = run("caption", tiny_photos[0].parent, "--box", "4,3,20.5,30", "--json")
    expected = model.caption(tiny_photos, [box] * len(tiny_photos))
    told = json.loads(out)
    assert [(row["file"], row["caption"]) for row in told["captions"]] == [
        (str(p), c) for p, c in zip(tiny_photos, expected, strict=True)
    ]
    assert told["failed"] == [] and all(row["confidence"] is None for row in told["captions"])


def test_a_box_is_cut_to_the_photo(run, tiny_photos):
    width, height = Image.open(tiny_photos[0]).size
    whole = run("caption", tiny_photos[0], "--box", f"0,0,{width},{height}")[0]
    assert run("caption", tiny_photos[0], "--box=-50,-9,9999,9999")[0] == whole


def test_an_index_does_not_lie_among_the_photos(tiny_photos, tiny_model_folder, capfd):
    folder = tiny_photos[0].parent
    before = sorted(folder.iterdir())
    code = main(["index", str(folder), "--out", str(folder), "--model", str(tiny_model_folder)])
    assert code == 2 and "would lie among the photos" in capfd.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_place_words_without_regions_are_words(run, photo_index):
    out, err = run("search", photo_index, "the dog on the left", model=None)
    assert "place words count with --regions only" in err
    assert out == run("search", photo_index, "the dog on the left", model=None)[0]


def test_classify(run, tiny_photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("dog\n\ncat \nred house\n")
    out, _ = run("classify", tiny_photos[0], "--classes", names, "--top", 9, "--json")
    guesses = json.loads(out)["photos"][0]["guesses"]
    assert {guess["class"] for guess in guesses} == {"dog", "cat", "red house"}
    shares = [guess["probability"] for guess in guesses]
    assert sum(shares) == pytest.approx(1, abs=1e-4) and shares == sorted(shares, reverse=True)
    out, _ = run("classify", tiny_photos[0], "--classes", "dog,cat,red house", "--top", 1)
    best = guesses[0]
    assert out == f"{tiny_photos[0]}\t{best['class']} {best['probability']:.0%}\n"


def test_embed_prints_vectors(run, model, tiny_photos):
    out, _ = run("embed", tiny_photos[0], "--text", "a dog", "--text", "a cat", "--json")
    told = json.loads(out)
    assert told["dim"] == model.dim and told["failed"] == []
    assert [(e.get("file"), e.get("text")) for e in told["embeddings"]] == [
        (str(tiny_photos[0]), None),
        (None, "a dog"),
        (None, "a cat"),
    ]
    expected = np.concatenate([model.embed_images(tiny_photos[:1]), model.embed_texts(["a dog", "a cat"])])
    np.testing.assert_allclose([e["vector"] for e in told["embeddings"]], expected, atol=1e-5)
    lines = run("embed", "--text", "a\tdog")[0].splitlines()
    assert (
        len(lines) == 1 and lines[0].split("\t")[0] == "a dog" and len(lines[0].split("\t")) == 1 + model.dim
    )


def test_embed_a_box(run, model, tiny_photos):
    told = json.loads(run("embed", tiny_photos[0], "--box", "2,3,20,25", "--text", "a dog", "--json")[0])
    expected = model.embed_images(tiny_photos[:1], [(2, 3, 20, 25)])
    np.testing.assert_allclose(told["embeddings"][0]["vector"], expected[0], atol=1e-5)


def test_embed_writes_an_array(run, model, tiny_photos, tmp_path):
    out, err = run("embed", *tiny_photos, "--out", tmp_path / "v.npy")
    assert out.splitlines() == [str(path) for path in tiny_photos] and str(tmp_path / "v.npy") in err
    array = np.load(tmp_path / "v.npy")
    assert array.dtype == np.float32 and array.shape == (len(tiny_photos), model.dim)
    np.testing.assert_allclose(array, model.embed_images(tiny_photos), atol=1e-5)
    out, _ = run("embed", tiny_photos[0], "--out", tmp_path / "v.npy", "--json")
    assert json.loads(out)["embeddings"] == [{"file": str(tiny_photos[0])}]
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_index_is_incremental(run, tmp_path):
    photos = save_photos(tmp_path / "photos", 3)
    argv = ("index", tmp_path / "photos", "--out", tmp_path / "idx")
    out, err = run(*argv)
    assert len(out.splitlines()) == 1 and "3 photos (3 embedded" in out and err == ""
    photos[0].unlink()
    save_photos(tmp_path / "photos" / "more", 5)
    report = json.loads(run(*argv, "--json")[0])
    # Two of the five are copies of known ones, one is that which was deleted.
    assert {name: report[name] for name in ("photos", "embedded", "reused", "unchanged", "removed")} == {
        "photos": 7,
        "embedded": 2,
        "reused": 3,
        "unchanged": 2,
        "removed": 0,
    }


def test_index_without_changes_needs_no_torch(photo_index, tiny_photos, tiny_model_folder):
    argv = ("index", tiny_photos[0].parent, "--out", photo_index, "-m", tiny_model_folder)
    assert not {"torch", "transformers"} & set(heavy(*argv))


def test_search_by_text_uses_the_model_of_the_index(run, model, photo_index, tiny_photos):
    out, err = run("search", photo_index, "a red house", "-k", 4, "--json", model=None)
    told = json.loads(out)
    scores = model.embed_images(tiny_photos) @ model.embed_queries(["a red house"])[0]
    best = np.argsort(-scores)[:4]
    assert [hit["file"] for hit in told["hits"]] == [str(tiny_photos[i]) for i in best]
    assert [hit["score"] for hit in told["hits"]] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert told["query"] == {"text": "a red house"} and told["photos"] == len(tiny_photos) and err == ""
    lines = run("search", photo_index, "a red house", "-k", 1, model=None)[0].splitlines()
    assert lines == [f"{scores[best[0]]:.3f}\t{tiny_photos[best[0]]}"]


def test_search_by_photo_leaves_the_photo_out(run, photo_index, tiny_photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_photos[0].parent)
    out, _ = run("search", photo_index, "--image", tiny_photos[2].name, "-k", 100, "--json")
    found = [hit["file"] for hit in json.loads(out)["hits"]]
    assert sorted(found) == [str(p) for p in tiny_photos if p != tiny_photos[2]]
    copy = shutil.copy(tiny_photos[2], tmp_path / "copy.png")
    hit = {"file": str(tiny_photos[2]), "score": pytest.approx(1, abs=1e-4), "match": None, "copies": 0}
    hit |= {"start": None, "end": None}
    assert json.loads(run("search", photo_index, "--image", copy, "-k", 1, "--json")[0])["hits"] == [hit]


def test_search_by_box(run, model, photo_index, tiny_photos):
    out, _ = run("search", photo_index, "--image", tiny_photos[0], "--box", "0,0,10,10", "-k", 1, "--json")
    told = json.loads(out)
    assert told["query"]["box"] == [0, 0, 10, 10]
    vector = model.embed_images(tiny_photos[:1], [(0, 0, 10, 10)])[0]
    scores = model.embed_images(tiny_photos[1:]) @ vector
    assert told["hits"][0]["file"] == str(tiny_photos[1 + int(np.argmax(scores))])


def test_search_filters_and_combines(run, model, photo_index, tiny_photos):
    vector = model.embed_queries(["a dog"])[0] - 0.5 * model.embed_queries(["the sea"])[0]
    scores = model.embed_images(tiny_photos) @ (vector / np.linalg.norm(vector))
    told = json.loads(run("search", photo_index, "a", 'dog -"the sea"', "-k", 2, "--json", model=None)[0])
    assert [hit["file"] for hit in told["hits"]] == [str(tiny_photos[i]) for i in np.argsort(-scores)[:2]]
    assert told["query"]["terms"] == [{"text": "a dog", "weight": 1}, {"text": "the sea", "weight": -0.5}]
    argv = ("search", photo_index, "a dog", "--name", tiny_photos[1].name, "--date", "2020..", "--json")
    told = json.loads(run(*argv, "--orientation", "landscape", model=None)[0])
    assert [hit["file"] for hit in told["hits"]] == [str(tiny_photos[1])] and told["photos"] == 1
    both = json.loads(run("search", photo_index, "a dog", "--image", tiny_photos[2], "--json", model=None)[0])
    assert both["query"]["terms"][1] == {"image": str(tiny_photos[2]), "weight": 1}
    assert str(tiny_photos[2]) not in [hit["file"] for hit in both["hits"]]


def test_search_writes_a_page(run, photo_index, tiny_photos, tmp_path):
    run("search", photo_index, "a <red> house", "-k", 2, "--html", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "a &lt;red&gt; house" in page and page.count('class="match"') == 2
    run("search", photo_index, "--image", tiny_photos[0], "--html", tmp_path / "b.html")
    assert "Photos like" in (tmp_path / "b.html").read_text()


def test_search_refuses_another_model_before_it_loads_one(run, photo_index, model_copy):
    (model_copy / "preprocessor.json").write_text("{}")
    code = (
        "import sys\nfrom mmgem.cli.main import main\ncode = main(sys.argv[1:])\n"
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = python(code, "search", photo_index, "a dog", "--model", model_copy)
    assert done.returncode == 1 and "another model" in done.stderr


def test_train_prints_a_folder_that_captions(run, tmp_path):
    data = toys.photos(tmp_path / "set", train=8, dev=4)
    lm, encoder = toys.base_models(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[data]\ntrain = "{data}"\ncache = "{tmp_path / "features"}"\n'
        f'[preprocessing]\nsize = 32\n[init]\nllm = "{lm}"\nencoder = "{encoder}"\n'
        f'[model]\ndim = 8\n[model.encoder]\nkind = "transformers"\n'
        f'[train]\nout = "{tmp_path / "run"}"\nbatch = 4\nepochs = 5\n'
    )
    out, _ = run("train", recipe, "train.epochs=1", model=None)
    assert out == f"{tmp_path / 'run' / 'model'}\n"
    out, _ = run("caption", data.parent / "images" / "0.png", model=out.strip())
    assert out.startswith(str(data.parent))


def test_pull_tells_where_the_parts_are(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path))
    from mmgem.checkpoints.download import SETS, cache_folder

    for part in SETS["photos"]:
        cache_folder(part).mkdir(parents=True)
    out, err = run("pull", "photos", model=None)
    assert out == "".join(f"{part}\t{cache_folder(part)}\n" for part in SETS["photos"]) and err == ""


def test_interrupt_is_130_without_a_traceback(monkeypatch, tiny_photos, capfd):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmgem.cli.caption.load_model", stop)
    assert main(["caption", str(tiny_photos[0])]) == 130
    assert capfd.readouterr() == ("", "mmgem: interrupted\n")


def test_a_bug_is_one_line_that_says_how_to_see_more(monkeypatch, tiny_photos, capfd):
    def fail(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("mmgem.cli.caption.load_model", fail)
    monkeypatch.delenv("MMGEM_DEBUG", raising=False)
    assert main(["caption", str(tiny_photos[0])]) == 70
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("mmgem: error: RuntimeError: two lines (") and "MMGEM_DEBUG=1" in line
    monkeypatch.setenv("MMGEM_DEBUG", "1")
    assert main(["caption", str(tiny_photos[0])]) == 70
    assert "Traceback" in capfd.readouterr().err


def test_a_full_disk_is_not_called_a_bug(monkeypatch, tiny_photos, capfd):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/big/file")

    monkeypatch.setattr("mmgem.cli.caption.load_model", fail)
    assert main(["caption", str(tiny_photos[0])]) == 1
    assert capfd.readouterr().err == "mmgem: error: disk full: /big/file\n"


def test_a_reader_that_leaves_is_no_error():
    code = (
        "import sys\nfrom mmgem.cli.main import main, app\n"
        "app.command('talk')(lambda: print('x\\n' * 1_000_000, flush=True))\nsys.exit(main(['talk']))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as talker:
        assert talker.stdout is not None and talker.stderr is not None
        talker.stdout.readline()
        talker.stdout.close()
        assert talker.stderr.read() == b""
        assert talker.wait(30) == 141


def test_names_that_are_no_text_come_out_as_they_are(run, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save_photos(tmp_path, 1)[0].rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes only text")
    (told,) = json.loads(run("caption", tmp_path, "--json")[0])["captions"]
    assert told["file"] == str(tmp_path / "caf") + "\\xe9.png"
    run("index", tmp_path, "--out", tmp_path / "idx")


def test_regions_are_searched(run, tiny_photos, tmp_path):
    run("index", tiny_photos[0].parent, "--out", tmp_path / "idx", "--regions", 5)
    out, _ = run("search", tmp_path / "idx", "a dog at the top left", "--regions", "-k", 3, model=None)
    rows = [line.split("\t") for line in out.splitlines()]
    assert len(rows) == 3
    for _, _, box in rows:
        x0, y0, x1, y1 = map(float, box.split(","))
        assert (x0 + x1) / 2 < 24 and (y0 + y1) / 2 < 18
    argv = ("search", tmp_path / "idx", "a dog", "--regions", "--where", "top-left", "--json", "-k", 3)
    hits = json.loads(run(*argv, model=None)[0])["hits"]
    assert [",".join(f"{x:g}" for x in hit["box"]) for hit in hits] == [row[2] for row in rows]
    told = run("search", tmp_path / "idx", "a dog at the top left", "--json", model=None)[0]
    hits = json.loads(told)["hits"]
    assert "box" not in hits[0]


def test_heatmap(run, tiny_photos, tmp_path):
    out, _ = run("heatmap", tiny_photos[0], "a dog", "--out", tmp_path / "heat.png")
    place, score = re.fullmatch(r"peak at (\d+,\d+) \(similarity (-?[.\d]+)\)\n", out).groups()
    told = json.loads(run("heatmap", tiny_photos[0], "a dog", "--json")[0])
    assert [round(x) for x in told["peak"]] == [int(x) for x in place.split(",")]
    assert float(score) == pytest.approx(told["score"], abs=1e-3)
    assert np.max(told["heat"]) == pytest.approx(told["score"], abs=1e-3)
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.size == (48, 36)


def test_photos_in_foreign_formats_are_not_lost_in_silence(run, tiny_photos, tmp_path, monkeypatch):
    shutil.copytree(tiny_photos[0].parent, tmp_path / "mix")
    for name in ("a.HEIC", "b.jxl", "sub/c.heic", "notes.txt", ".hidden.heic"):
        (tmp_path / "mix" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mix" / name).write_bytes(b"x")
    monkeypatch.setattr(image_kinds, "_finds_heif", lambda: False)
    _, err = run("index", tmp_path / "mix", "--out", tmp_path / "idx")
    assert '4 files left out: 2 .heic (pip install "mmgem[heif]"), 1 .jxl, 1 .txt\n' in err
