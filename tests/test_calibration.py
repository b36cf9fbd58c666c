"""What cosines mean: fitted, kept beside the weights, told wherever hits and classes are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from serving import data_uri, picture, serving
from test_rerank import photo_index

from mmgem import MMGEM, open_index
from mmgem.checkpoints.resolve import fingerprint
from mmgem.cli.main import main
from mmgem.data.records import Record
from mmgem.errors import CheckpointError, DataError, ImageError, UsageError
from mmgem.evaluate.calibrate import (
    CalibrationOptions,
    fit_calibration,
    fit_captions,
    logistic_regression,
    shared_words,
)
from mmgem.evaluate.match import alike_by_text, auroc, draw_classes, draw_names, draw_searches
from mmgem.export.compress import compress_model
from mmgem.inference.calibration import (
    CALIBRATION_FILE,
    Background,
    CaptionWeights,
    MatchCalibration,
    MatchWeights,
)
from mmgem.inference.captioning import DecodedCaption
from mmgem.report.data import Match, QueryRow, Report
from mmgem.report.html import write_report
from mmgem.search.hits import with_match

DIM = 24
OPTIONS = CalibrationOptions(sizes=(5, 20, 100), class_counts=(3, 10), draws=800, rank=6)


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def photos_and_captions(
    photos: int = 240, captions: int = 2, noise: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of photos that lie around a mean, and captions near their photo."""
    rng = np.random.default_rng(seed)
    images = units(rng.standard_normal((photos, DIM)) * np.linspace(1.5, 0.5, DIM) + 0.3)
    owners = np.repeat(np.arange(photos), captions)
    return images, units(images[owners] + noise * rng.standard_normal((len(owners), DIM)) / DIM**0.5), owners


class Embeddings:
    """A model that knows its photos and captions by heart."""

    def __init__(self, images: np.ndarray, texts: np.ndarray) -> None:
        self.images, self.texts = images, texts

    def embed_images(self, images: list[Path]) -> np.ndarray:
        if any(path.stem == "bad" for path in images):
            raise ImageError("bad.jpg: cannot be read")
        return self.images[[int(path.stem) for path in images]]

    def embed_queries(self, texts: list[str]) -> np.ndarray:
        return self.embed_texts(texts)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return self.texts[[int("".join(c for c in text if c.isdigit())) for text in texts]]


def known(**options: float) -> tuple[Embeddings, list[Record]]:
    """A model and the captioned photos it knows."""
    images, texts, owners = photos_and_captions(**options)
    records = [
        Record(Path(f"/{n}.jpg"), tuple(str(row) for row in np.flatnonzero(owners == n)))
        for n in range(len(images))
    ]
    return Embeddings(images, texts), records


def calibration_for(
    dim: int, search: MatchWeights | None = None, classes: MatchWeights | None = None
) -> MatchCalibration:
    """One whose background is that of random photos."""
    images = units(np.random.default_rng(0).standard_normal((50, dim)))
    return MatchCalibration(Background.of(images, 3), search, classes)


ALWAYS, NEVER = (MatchWeights(1.0, 0.0, 0.0, 0.0, bias) for bias in (20.0, -20.0))


def test_the_background_is_what_photos_say() -> None:
    images, texts, _ = photos_and_captions()
    cosines = texts @ images.T
    mean, std = Background.of(images, DIM).cosines(texts)
    np.testing.assert_allclose(mean, cosines.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(std, cosines.std(axis=1), atol=1e-3)
    few = Background.of(images, 6)
    assert few.components.shape == (DIM, 6)
    assert np.corrcoef(few.cosines(texts)[1], std)[0, 1] > 0.8
    assert np.isfinite(Background.of(images[:3], 20).cosines(texts)[1]).all()  # fewer photos than numbers


def test_auroc_counts_pairs_in_order() -> None:
    assert auroc([3, 2], [1, 0]) == 1 and auroc([0], [1]) == 0 and auroc([1, 1], [1]) == 0.5
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 50), rng.integers(0, 9, 70)
    pairs = (one[:, None] > other).mean() + (one[:, None] == other).mean() / 2
    assert auroc(one, other) == pytest.approx(pairs)


def test_logistic_regression_finds_the_weights() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40_000, 2)) * [1, 30] + [0, 5]
    chances = 1 / (1 + np.exp(-(2 * features[:, 0] - 0.05 * features[:, 1] + 0.5)))
    weights, bias = logistic_regression(features, (rng.random(40_000) < chances).astype(float))
    np.testing.assert_allclose([*weights, bias], [2, -0.05, 0.5], rtol=0.08)
    split, _ = logistic_regression(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]))
    assert np.isfinite(split).all()  # a line separates all


def test_searches_are_drawn_with_the_photo_and_without() -> None:
    images, texts, owners = photos_and_captions(photos=30)
    draws = draw_searches(images, texts, owners, 10, 60)
    assert draws.size == 10 and len(draws.present) == len(draws.absent) == 60
    own = np.einsum("nd,nd->n", texts[draws.present_query], images[owners[draws.present_query]])
    assert (draws.present >= own - 1e-6).all()
    everything = draw_searches(images, texts, owners, 1000, 30)
    cosines = texts @ images.T
    cosines[np.arange(len(texts)), owners] = -1
    assert everything.size == 30
    np.testing.assert_allclose(everything.absent, cosines.max(axis=1)[everything.absent_query], atol=1e-6)
    asked = draw_searches(images, texts, owners, 5, 20, pool=np.arange(12), asked=np.array([3, 20]))
    assert set(owners[asked.present_query]) == {3}
    with pytest.raises(UsageError, match="no text belongs"):
        draw_searches(images, texts, owners, 5, 20, pool=np.arange(12), asked=np.array([20]))


def test_lookalikes_are_taken_out() -> None:
    images, texts, owners = photos_and_captions(photos=40, noise=0.2)
    images, texts = np.concatenate([images, images]), np.concatenate([texts, texts])
    owners = np.concatenate([owners, owners + 40])  # every photo twice
    alike = alike_by_text(texts, owners, 80, 0.05)
    assert alike is not None
    is_alike = alike(np.arange(len(texts)), np.arange(80))
    assert is_alike[np.arange(len(texts)), (owners + 40) % 80].mean() > 0.9 and is_alike.mean() < 0.1
    plain = draw_searches(images, texts, owners, 80, 80)
    without = draw_searches(images, texts, owners, 80, 80, alike=alike)
    assert auroc(plain.present, plain.absent) == 0.5
    assert auroc(without.present, without.absent) > 0.9
    assert alike_by_text(texts[:3], np.arange(3), 3) is None  # a caption each


def test_classes_are_drawn_with_the_label_and_without() -> None:
    classes = np.eye(DIM, dtype=np.float32)[:8]
    labels = np.arange(40) % 8
    draws = draw_classes(classes[labels], classes, labels, 7, 50)
    assert (draws.present == 1).all() and (draws.absent == 0).all() and draws.size == 7


def test_a_fit_tells_what_is_there_and_what_chance_that_has() -> None:
    model, records = known()
    calibration, report = fit_calibration(model, records, replace(OPTIONS, lookalike_quantile=1.0))
    assert calibration.search is not None and calibration.classes is None and not report.classes
    assert (report.photos, report.texts, report.labelled) == (240, 480, 0)
    assert list(report.search) == [5, 20, 100]
    assert report.search[5] > 0.9 and report.search[5] > report.search[20] > report.search[100] > 0.6
    images, texts, owners = photos_and_captions(seed=1)  # others than it was fitted on
    predicted, true = [], []
    for size in OPTIONS.sizes:
        draws = draw_searches(images, texts, owners, size, 800, 1)
        for cosines, query, there in (
            (draws.present, draws.present_query, 1),
            (draws.absent, draws.absent_query, 0),
        ):
            predicted.append(calibration.probability(cosines, texts[query], size))
            true.append(np.full(len(cosines), there))
    chances, there = np.concatenate(predicted), np.concatenate(true)
    assert chances.dtype == np.float32
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (chances >= low) & (chances < low + 0.25)
        assert there[inside].mean() == pytest.approx(chances[inside].mean(), abs=0.15)


def test_a_larger_index_asks_for_a_higher_cosine() -> None:
    calibration, _ = fit_calibration(*known(), OPTIONS)
    query = known()[0].texts[0]
    few, many = (calibration.probability(np.array([0.2, 0.5, 0.8]), query, size) for size in (10, 10_000))
    assert (np.diff(few) > 0).all() and (np.diff(many) > 0).all() and (few > many).all()


def test_labels_calibrate_classes() -> None:
    rng = np.random.default_rng(0)
    classes = units(rng.standard_normal((30, DIM)) + 0.3)
    labels = rng.integers(0, 30, 300)
    images = units(classes[labels] + 0.7 * rng.standard_normal((300, DIM)) / DIM**0.5)
    records = [Record(Path(f"/{n}.jpg"), label=f"{label:02}") for n, label in enumerate(labels)]
    calibration, report = fit_calibration(Embeddings(images, classes), records, OPTIONS)
    assert calibration.search is None and calibration.probability(images[:, 0], images, 10) is None
    assert report.classes[3] > 0.9 and report.labelled == 300
    none = calibration.none_of_these(images, classes)
    assert none.dtype == np.float32 and (none < 0.5).mean() > 0.7
    is_last = labels >= 25
    wrong = calibration.none_of_these(images[is_last], classes[:5])
    assert (wrong > 0.5).mean() > 0.7


def test_names_that_are_searched_for_are_calibrated_with_captions() -> None:
    """Photos lie farther from their name than from their caption: what says no to that has to learn it."""
    captioned, texts, _ = photos_and_captions(noise=0.3)
    rng = np.random.default_rng(1)
    kinds = units(rng.standard_normal((40, DIM)) + 0.3)
    labels = np.repeat(np.arange(40), 6)
    labelled = units(kinds[labels] + 0.9 * rng.standard_normal((240, DIM)) / DIM**0.5)
    names = units(kinds)
    model = Embeddings(np.concatenate([captioned, labelled]), np.concatenate([texts, names]))
    records = known(noise=0.3)[1] + [
        Record(Path(f"/{240 + n}.jpg"), label=f"{480 + label}") for n, label in enumerate(labels)
    ]
    both, report = fit_calibration(model, records, OPTIONS)
    alone, without = fit_calibration(model, records[:240], OPTIONS)
    assert list(report.names) == [5, 20, 100] and not without.names
    assert report.names[5] > 0.9 and report.search[5] > 0.9

    def accuracy(calibration: MatchCalibration) -> float:
        draws = draw_names(labelled, names, labels, 20, 500, 1)
        sides = (draws.present, draws.present_query), (draws.absent, draws.absent_query)
        yes, no = (calibration.probability(cosines, names[query], 20) >= 0.5 for cosines, query in sides)
        return float((yes.mean() + 1 - no.mean()) / 2)

    assert accuracy(both) > accuracy(alone) + 0.1


def test_searches_for_names_have_a_photo_of_it_or_none() -> None:
    names = np.eye(DIM, dtype=np.float32)[:8]
    labels = np.arange(40) % 8
    draws = draw_names(names[labels], names, labels, 10, 50)
    assert draws.size == 10 and (draws.present == 1).all() and (draws.absent == 0).all()
    assert (labels[draws.present_photos[:, 0]] == draws.present_query).all()
    assert (labels[draws.absent_photos] != draws.absent_query[:, None]).all()
    assert draw_names(names[labels], names, labels, 1000, 5).size == 35  # all of other labels
    with pytest.raises(UsageError, match="same label"):
        draw_names(names[:2], names, np.zeros(2, int), 10, 5)


def test_unreadable_photos_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model, records = known(photos=40)
    _, report = fit_calibration(model, [*records, Record(Path("/bad.jpg"), ("1",))], OPTIONS)
    assert report.photos == 40 and "bad.jpg" in caplog.text
    with pytest.raises(ImageError, match="none of the 1 photos"):
        fit_calibration(model, [Record(Path("/bad.jpg"), ("1",))], OPTIONS)


def test_too_little_is_refused() -> None:
    model, records = known(photos=40)
    with pytest.raises(DataError, match="four photos with captions, or four with labels of three classes"):
        fit_calibration(model, records[:3], OPTIONS)
    with pytest.raises(DataError, match="three classes"):
        fit_calibration(model, [Record(r.image, label=str(n % 2)) for n, r in enumerate(records)], OPTIONS)


def test_cosines_that_say_nothing_never_count_against_a_hit() -> None:
    images, texts, _ = photos_and_captions()
    backwards = Embeddings(images, -texts)
    calibration, _ = fit_calibration(backwards, known()[1], replace(OPTIONS, lookalike_quantile=0.999))
    assert calibration.search is not None and calibration.search.cosine >= 0


def test_it_lies_in_the_model_folder_and_changes_no_fingerprint(model_copy: Path, tmp_path: Path) -> None:
    before, dim = fingerprint(model_copy), MMGEM.from_pretrained(model_copy).dim
    assert MMGEM.from_pretrained(model_copy).calibration is None
    calibration = calibration_for(dim, ALWAYS)
    calibration.save(model_copy)
    assert fingerprint(model_copy) == before
    loaded = MMGEM.from_pretrained(model_copy)
    assert loaded.calibration.search == ALWAYS and loaded.calibration.classes is None
    np.testing.assert_array_equal(loaded.calibration.background.components, calibration.background.components)
    loaded.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / CALIBRATION_FILE).read_bytes() == (
        model_copy / CALIBRATION_FILE
    ).read_bytes()


def test_a_file_that_cannot_be_is_an_error_of_one_line(model_copy: Path) -> None:
    calibration_for(5, ALWAYS).save(model_copy)
    with pytest.raises(CheckpointError, match=rf"{CALIBRATION_FILE}: of embeddings of 5 numbers"):
        MMGEM.from_pretrained(model_copy)
    (model_copy / CALIBRATION_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"{CALIBRATION_FILE}: damaged"):
        MMGEM.from_pretrained(model_copy)


def test_exports_keep_it_and_averages_do_not(
    model_copy: Path, tiny_photos: list[Path], tmp_path: Path
) -> None:
    model = MMGEM.from_pretrained(model_copy)
    calibration_for(model.dim, ALWAYS).save(model_copy)
    compress_model(model_copy, tmp_path / "small")
    compress_model(model_copy, tmp_path / "rotated", embed=lambda n, t: MMGEM(n, t).embed_images(tiny_photos))
    compress_model(model_copy, tmp_path / "averaged", other=model_copy)
    small, rotated, averaged = (
        MMGEM.from_pretrained(tmp_path / name) for name in ("small", "rotated", "averaged")
    )
    assert averaged.calibration is None
    texts = ["a dog", "a red house"]
    old = small.calibration.background.cosines(small.embed_texts(texts))
    new = rotated.calibration.background.cosines(rotated.embed_texts(texts))
    np.testing.assert_allclose(new, old, atol=1e-3)
    assert not np.allclose(rotated.calibration.background.mean, small.calibration.background.mean, atol=1e-3)


def test_hits_of_texts_get_a_probability_and_others_none(model_copy: Path) -> None:
    model = MMGEM.from_pretrained(model_copy)
    weights = MatchWeights(9, 0.5, -2, -0.4, 1)
    model.calibration = calibration_for(model.dim, weights)
    vectors = units(np.random.default_rng(1).standard_normal((20, model.dim)))
    index = photo_index(vectors)
    index.load_embedder = lambda: model
    query = model.embed_queries(["a dog"])[0]
    hits = index.search_text("a dog", 5)
    expected = model.calibration.probability(np.array([h.score for h in hits]), query, 20)
    assert [hit.match for hit in hits] == pytest.approx(expected.tolist())
    assert [hit.match for hit in hits] == sorted((hit.match for hit in hits), reverse=True)
    reranked = model.rerank(index, "a dog", 20)
    all_hits = {hit.path: hit.match for hit in index.search_text("a dog", 20)}
    assert {hit.path: hit.match for hit in reranked} == pytest.approx(all_hits)
    assert {hit.match for hit in index.search_image(picture())} == {None}
    assert with_match([], model.calibration, query, 20) == []
    with pytest.raises(UsageError, match="numbers each"):
        model.calibration.probability(np.ones(1), np.ones(3), 20)


@pytest.mark.parametrize("weights", [ALWAYS, NEVER])
def test_a_heat_map_says_whether_its_text_fits_the_photo(
    weights: MatchWeights, model_copy: Path, tiny_photos: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    model = MMGEM.from_pretrained(model_copy)
    calibration_for(model.dim, weights).save(model_copy)
    command = ["heatmap", str(tiny_photos[0]), "a dog", "-m", str(model_copy)]
    assert main(command) == 0
    assert ("probably not in this photo" in capfd.readouterr().err) == (weights is NEVER)
    assert main([*command, "--json"]) == 0
    told, err = capfd.readouterr()
    assert json.loads(told)["match"] == pytest.approx(float(weights is ALWAYS), abs=1e-3) and err == ""
    calibration = calibration_for(model.dim, weights)
    image, query = model.embed_images(tiny_photos[:1])[0], model.embed_queries(["a dog"])[0]
    (alone,) = calibration.probability(image[None] @ query, query, 1)
    assert calibration.fits(image, query) == pytest.approx(float(alone), abs=1e-6)
    assert calibration_for(model.dim).fits(image, query) is None


def test_captions_are_calibrated_by_what_people_say() -> None:
    rng = np.random.default_rng(0)
    log_prob = -rng.random(4000) * 3
    shares = CaptionWeights(2.0, 3.0).confidence(log_prob)
    words = [f"w{n}" for n in range(10)]
    records, written = [], []
    for p, share in zip(log_prob.tolist(), shares.tolist(), strict=True):
        known = [word for word in words if rng.random() < share]
        records.append(Record(Path("/0.jpg"), (f"a photo of the {' '.join(known)}",)))
        written.append(DecodedCaption(f"The {' '.join(words)}.", 10, True, p))
    weights, found = fit_captions(records, written)
    np.testing.assert_allclose([weights.log_prob, weights.bias], [2.0, 3.0], rtol=0.1)
    assert found is not None and 0.8 < found < 1
    backwards = [replace(caption, log_prob=-caption.log_prob) for caption in written]
    assert fit_captions(records, backwards)[0].log_prob == 0
    assert fit_captions(records[:1], written[:1])[1] is None


def test_shared_words_are_those_that_people_say_too() -> None:
    assert shared_words("A dog is on the beach.", ["the dog runs", "sand on a Beach"]) == 1
    assert shared_words("a dog in the snow", ["a dog"]) == 0.5
    assert shared_words("the", ["the"]) == 0


def test_confidence_is_kept_with_the_weights(
    model_copy: Path, tiny_photos: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    model = MMGEM.from_pretrained(model_copy)
    made = model.caption_with_confidence(tiny_photos[:4])
    assert [caption.text for caption in made] == model.caption(tiny_photos[:4])
    assert all(caption.confidence is None for caption in made)
    told = [(photo, c) for photo, c in zip(tiny_photos, made, strict=False) if c.finished and c.text]
    scores = model.score([photo for photo, _ in told], [c.text for _, c in told])
    np.testing.assert_allclose([c.log_prob for _, c in told], scores, atol=1e-4)
    assert main(["caption", *map(str, tiny_photos[:4]), "--confidence", "-m", str(model_copy)]) == 0
    assert capfd.readouterr().out == "".join(
        f"{photo}\t{c.text}\tlog P {c.log_prob:.2f}\n" for photo, c in zip(tiny_photos, made, strict=False)
    )
    weights = CaptionWeights(0.5, 1.0)
    replace(calibration_for(model.dim), captions=weights).save(model_copy)
    again = MMGEM.from_pretrained(model_copy)
    assert again.calibration is not None and again.calibration.captions == weights
    sure = [caption.confidence for caption in again.caption_with_confidence(tiny_photos[:4])]
    np.testing.assert_allclose(sure, weights.confidence(np.array([c.log_prob for c in made])), atol=1e-5)
    assert main(["caption", str(tiny_photos[0]), "--confidence", "-m", str(model_copy)]) == 0
    assert capfd.readouterr().out == f"{tiny_photos[0]}\t{made[0].text}\t{sure[0]:.2f}\n"


def test_the_command_calibrates_and_search_tells(
    model_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: object) -> tuple[str, str]:
        capfd.readouterr()
        assert main([*map(str, argv)]) == 0, capfd.readouterr().err
        return capfd.readouterr()

    data = toys.photos(tmp_path / "data")
    run("index", tmp_path / "data" / "images", "--out", tmp_path / "idx", "-m", model_copy, "--regions", 2)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    labelled = tmp_path / "data" / "labelled.jsonl"
    labelled.write_text(
        "".join(
            json.dumps(line | {"captions": [], "label": f"kind {n % 4}"}) + "\n"
            for n, line in enumerate(lines)
        )
    )
    out, _ = run(*("calibrate", model_copy, "--data", data, "--data", labelled, "--split", "train", "--json"))
    told = json.loads(out)
    assert told["file"] == str(model_copy / CALIBRATION_FILE) and (model_copy / CALIBRATION_FILE).is_file()
    assert (told["photos"], told["texts"], told["labelled"]) == (24, 72, 24)
    assert set(told["search"]) == {"10"} and set(told["classes"]) == {"3"}
    assert "captions" in told
    fitted = MMGEM.from_pretrained(model_copy).calibration
    assert fitted is not None and fitted.captions is not None and fitted.captions.log_prob >= 0
    assert run("calibrate", model_copy, "--data", data)[0].splitlines()[-1] == told["file"]

    dim = MMGEM.from_pretrained(model_copy).dim
    for weights, doubtful in ((ALWAYS, False), (NEVER, True)):
        calibration_for(dim, weights, weights).save(model_copy)
        page = tmp_path / "hits.html"
        out, err = run("search", tmp_path / "idx", "a dog", "-k", 3, "--html", page)
        assert ("probably no match: that the best one fits is 0% likely" in err) is doubtful
        assert len(out.splitlines()) == 3 and out.count("\t") == 3
        assert page.read_text().count("probably no match") == 3 * doubtful
        for more in ([], ["--rerank"]):
            found = json.loads(run("search", tmp_path / "idx", "a dog", "-k", 3, "--json", *more)[0])["hits"]
            assert [hit["match"] < 0.5 for hit in found] == [doubtful] * 3
        for more in (["a dog", "--regions"], ["--image", tmp_path / "data" / "images" / "0.png"]):
            found = json.loads(run("search", tmp_path / "idx", *more, "--json")[0])["hits"]
            assert {hit["match"] for hit in found} == {None}
        photo = tmp_path / "data" / "images" / "1.png"
        out, _ = run("classify", photo, "--classes", "dog,cat", "-m", model_copy)
        assert (out.split("\t")[1] == "none of these 100%") is doubtful
        out, _ = run("classify", photo, "--classes", "dog,cat", "-m", model_copy, "--json")
        row = json.loads(out)["photos"][0]
        assert (row["none"] > 0.5) is doubtful
        assert row["class"] == (None if doubtful else row["guesses"][0]["class"])
        shown = [
            float(percent)
            for percent in re.findall(
                r"(\d+)%", run("classify", photo, "--classes", "dog,cat", "-m", model_copy)[0]
            )
        ]
        assert sum(shown) == pytest.approx(100, abs=1)
        assert sum(guess["probability"] for guess in row["guesses"]) == pytest.approx(1, abs=1e-5)
    index = open_index(tmp_path / "idx", model_copy)
    assert all(hit.match < 0.5 for hit in index.search_text("a dog"))


def test_the_server_tells(model_copy: Path, tiny_photos: list[Path], tmp_path: Path) -> None:
    model = MMGEM.from_pretrained(model_copy)
    index = model.index(tiny_photos[0].parent, tmp_path / "idx", regions=2)
    asked = {"image": data_uri(picture()), "classes": ["dog", "cat"]}
    with serving(model, tmp_path / "idx") as (client, _):

        def hits(**body: object) -> list[float | None]:
            return [hit["match"] for hit in client.post("/search", json=body).json()["hits"]]

        assert set(hits(text="a dog")) == {None}
        assert client.post("/classify", json=asked).json()["none"] is None
        weights = MatchWeights(9, 0.5, -2, -0.4, 1)
        model.calibration = calibration_for(model.dim, weights, NEVER)
        expected = [hit.match for hit in index.search_text("a dog", 4)]
        assert hits(text="a dog", k=4) == pytest.approx(expected, abs=1e-4)
        reranked = [hit.match for hit in model.rerank(index, "a dog", 4)]
        assert hits(text="a dog", k=4, rerank=True) == pytest.approx(reranked, abs=1e-4)
        assert set(hits(text="a dog", regions=True)) == set(hits(image=asked["image"])) == {None}
        doubtful = client.post("/classify", json=asked).json()
        assert doubtful["none"] == pytest.approx(1, abs=1e-4) and doubtful["class"] is None


def test_a_report_marks_doubtful_matches_in_words(tiny_photos: list[Path], tmp_path: Path) -> None:
    sure, doubtful = (Match(tiny_photos[0], 0.4, match=match) for match in (0.9, 0.1))
    rows = [QueryRow("one", [sure, doubtful]), QueryRow("none", [doubtful, doubtful])]
    write_report(tmp_path / "a.html", Report(title="a", queries=rows))
    page = (tmp_path / "a.html").read_text()
    assert page.count('class="doubt">probably no match') == 3 and page.count('class="match"') == 1
    assert page.count("none of the photos fits these words well") == 1
    assert not Match(tiny_photos[0], 0.4).is_doubtful
