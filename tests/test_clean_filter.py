"""Captions that do not fit: how they are scored, where is cut, what is written; a kill costs little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from mmgem import MMGEM
from mmgem.clean.filter import filter_pairs
from mmgem.clean.judge import make_judge
from mmgem.clean.mixture import MIN_PAIRS, Gaussian, fit_mixture
from mmgem.clean.pairs import PairData
from mmgem.clean.recaption import recaption_pairs
from mmgem.clean.scores import ScoredPairs, ScoreFile, Scores
from mmgem.cli.main import main
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, read_jsonl, write_jsonl
from mmgem.data.shards import find_shards, open_shard, pack
from mmgem.errors import DataError, ImageError, UsageError
from mmgem.utils.work_file import WorkFile


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty photos with three captions each; one more that cannot be read, and one without captions."""
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    path = toys.photos(tmp_path / "my", train=30, dev=10)
    (tmp_path / "my" / "images" / "bad.png").write_bytes(b"no photo")
    lines = [{"image": "images/bad.png", "captions": ["a dog"]}, {"image": "images/3.png", "label": "dog"}]
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


def scored(path: Path, data: Path, model: MMGEM) -> ScoredPairs:
    with ScoreFile(path, PairData(data), model.fingerprint) as file:
        file.run(lambda: model)
        return file.results()


def test_scores_equal_the_model(data: Path, model: MMGEM, tmp_path: Path) -> None:
    pairs = scored(tmp_path / "scores", data, model)
    records = load_dataset(data)
    assert pairs.errors.keys() == {40} and len(pairs.scores.cosine) == 120
    for n in (0, 31, 39):
        start, stop = int(pairs.starts[n]), int(pairs.stops[n])
        captions, image = records[n].captions, records[n].image
        assert stop - start == len(captions)
        cosine = model.embed_texts(captions) @ model.embed_images([image])[0]
        np.testing.assert_allclose(pairs.scores.cosine[start:stop], cosine, atol=2e-5)
        log_prob = model.score([image] * len(captions), captions)
        np.testing.assert_allclose(pairs.scores.log_prob[start:stop], log_prob, atol=2e-5)
    # the first caption of each photo beside the next photo of its block
    wrong = model.embed_texts([records[4].captions[0]]) @ model.embed_images([records[5].image])[0]
    np.testing.assert_allclose(pairs.wrong.cosine[4], wrong[0], atol=2e-5)
    assert len(pairs.wrong.cosine) == 40


def test_a_kill_changes_no_score(data: Path, model: MMGEM, tmp_path: Path) -> None:
    whole = scored(tmp_path / "a" / "scores", data, model)
    append, blocks = WorkFile.append, [1]

    class Killed(Exception):
        pass

    def dying(self: WorkFile, rows: Any) -> None:
        if not blocks[0]:
            append(self, list(rows)[:3])  # a part of the block
            with self.path.open("ab") as file:
                file.write(b'{"scores": [[0.1')
            raise Killed
        blocks[0] -= 1
        append(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkFile, "append", dying)
        with pytest.raises(Killed):
            scored(tmp_path / "b" / "scores", data, model)
    resumed = scored(tmp_path / "b" / "scores", data, model)
    for name in ("cosine", "log_prob", "prior"):
        np.testing.assert_array_equal(getattr(resumed.scores, name), getattr(whole.scores, name))
        np.testing.assert_array_equal(getattr(resumed.wrong, name), getattr(whole.wrong, name))
    assert (tmp_path / "a" / "scores").read_bytes() == (tmp_path / "b" / "scores").read_bytes()


def test_what_is_written(data: Path, model: MMGEM, tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept" / "data.jsonl"
    report = filter_pairs(data, tiny_model_folder, out, keep=0.5, load=lambda: model)
    assert (report.pairs, report.kept, report.photos) == (120, 60, 42)
    before = {(r.image.name, c) for r in load_dataset(data) for c in r.captions}
    kept = [(r.image.name, c) for r in read_jsonl(out) for c in r.captions]
    dropped = [json.loads(line) for line in report.dropped_file.read_text().splitlines()]
    assert report.dropped_file == tmp_path / "kept" / "data.dropped.jsonl"
    gone = [(Path(row["image"]).name, row["caption"]) for row in dropped if row["caption"]]
    assert len(kept) == 60 and set(kept) | set(gone) | {("bad.png", "a dog")} == before and len(gone) == 60
    assert [row["reason"] for row in dropped if not row["caption"]] == [
        "not an image in a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, AVIF, JPEG2000), or its "
        "header is damaged or of a kind not read here"
    ]
    assert read_jsonl(out)[-1].label == "dog" and read_jsonl(out)[0].split == "train"
    # the best by the mean of both scores, each over its deviation
    pairs = scored(out.with_name(".data.jsonl.scores"), data, model)
    table = pairs.scores.columns().astype(np.float64)
    values = ((table - table.mean(0)) / table.std(0)).mean(1)
    captions = [(r.image.name, c) for r in load_dataset(data)[:40] for c in r.captions]
    best = {captions[i] for i in np.argsort(-values)[:60]}
    assert set(kept) == best


def test_another_threshold_scores_nothing_again(
    data: Path, model: MMGEM, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept.jsonl"
    filter_pairs(data, tiny_model_folder, out, keep=0.5, load=lambda: model)

    def never() -> MMGEM:
        raise AssertionError("loaded")

    report = filter_pairs(data, tiny_model_folder, out, min_cosine=-0.02, load=never)
    pairs = scored(tmp_path / ".kept.jsonl.scores", data, model)
    assert report.kept == (pairs.scores.cosine >= -0.02).sum() and report.resumed == 42
    assert {row["reason"].split()[0] for row in report.dropped if row["caption"]} <= {"cosine"}


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_shards_stay_shards(
    data: Path, model: MMGEM, tiny_model_folder: Path, tmp_path: Path, form: Any
) -> None:
    records = [r for r in load_dataset(data) if r.captions and r.image.name != "bad.png"]
    pack(records, tmp_path / "shards", form, per_shard=12)
    report = filter_pairs(
        tmp_path / "shards", tiny_model_folder, tmp_path / "out", keep=0.4, load=lambda: model
    )
    assert report.kept == 48
    shards = [open_shard(path) for path in find_shards(tmp_path / "out")]
    samples = [shard.read(i) for shard in shards for i in range(len(shard))]
    assert sum(len(sample.record.captions) for sample in samples) == 48 and not any(
        s.problems for s in shards
    )
    sources = {r.image.name: r for r in records}
    for sample in samples:
        source = sources[sample.record.image.name]
        assert sample.photo == source.image.read_bytes() and sample.record.split == source.split
        assert set(sample.record.captions) <= set(source.captions)
    assert {path.name for path in find_shards(tmp_path / "out")} <= {
        path.name for path in find_shards(tmp_path / "shards")
    }
    with pytest.raises(UsageError, match="is the data itself"):
        filter_pairs(tmp_path / "shards", tiny_model_folder, tmp_path / "shards", load=lambda: model)


def test_recaption(data: Path, model: MMGEM, tiny_model_folder: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        out = tmp_path / name
        report = recaption_pairs(data, tiny_model_folder, out, load=lambda: model, **options)
        return report, {r.image.name: r.captions for r in read_jsonl(out) if not r.label}

    filtered = filter_pairs(data, tiny_model_folder, tmp_path / "f.jsonl", min_cosine=0.0, load=lambda: model)
    report, captions = run("a.jsonl", min_cosine=0.0)
    assert report.kept == filtered.kept
    images = [r.image for r in load_dataset(data)[:40]]
    own = dict(zip((i.name for i in images), model.caption(images), strict=True))
    said = [text or " " for text in own.values()]
    texts = np.stack([model.embed_texts([t])[0] if t.strip() else np.zeros(8) for t in said])
    cosines = (model.embed_images(images) * texts).sum(1)
    fits = {i.name for i, c, t in zip(images, cosines, said, strict=True) if c >= 0 and t.strip()}
    kept = {r.image.name: r.captions for r in read_jsonl(tmp_path / "f.jsonl") if not r.label}
    for record in load_dataset(data)[:40]:
        name = record.image.name
        expected = list(kept.get(name, ()))
        if name in fits and len(expected) < len(record.captions):
            first = next(i for i, c in enumerate(record.captions) if c not in expected)
            expected.insert(first, own[name])
        assert list(captions.get(name, ())) == expected
    _, both = run("b.jsonl", min_cosine=0.0, keep_both=True)
    for record in load_dataset(data)[:40]:
        name = record.image.name
        added = {own[name]} if name in fits else set()
        assert set(both.get(name, ())) == set(kept.get(name, ())) | added


def draw(share: float, seed: int = 0, count: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    wrong = rng.multivariate_normal([0.1, 0.0], [[0.01, 0.002], [0.002, 0.1]], count)
    right = rng.multivariate_normal([0.4, 0.9], [[0.015, 0.005], [0.005, 0.2]], count)
    is_wrong = rng.random(count) < share
    known = rng.multivariate_normal([0.1, 0.0], [[0.01, 0.002], [0.002, 0.1]], count)
    return np.where(is_wrong[:, None], wrong, right), known, is_wrong


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_the_mixture_finds_what_was_mixed(share: float) -> None:
    points, known, is_wrong = draw(share)
    mixture = fit_mixture(points, known)
    assert abs(mixture.share - share) < 0.03
    np.testing.assert_allclose(mixture.right.mean, [0.4, 0.9], atol=0.06)
    assert ((mixture.right_prob(points) < 0.5) == is_wrong).mean() > 0.93


def test_the_mixture_equals_sums_over_points() -> None:
    """The fixed point of expectation maximisation, each sum written out."""
    points, known, _ = draw(0.3, count=300)
    mixture = fit_mixture(points, known)

    def density(x: np.ndarray, gaussian: Gaussian) -> float:
        inverse = np.linalg.inv(gaussian.covariance)
        apart = x - gaussian.mean
        scale = np.sqrt((2 * np.pi) ** len(x) * np.linalg.det(gaussian.covariance))
        return float(np.exp(-0.5 * apart @ inverse @ apart) / scale)

    mean, count = np.zeros(2), 0.0
    shares = []
    for x in points:
        wrong = mixture.share * density(x, mixture.wrong)
        right = (1 - mixture.share) * density(x, mixture.right)
        shares.append(right / (wrong + right))
        mean, count = mean + shares[-1] * x, count + shares[-1]
    covariance = np.zeros((2, 2))
    for x, part in zip(points, shares, strict=True):
        covariance += part * np.outer(x - mean / count, x - mean / count) / count
    np.testing.assert_allclose(mixture.right.mean, mean / count, atol=1e-3)
    np.testing.assert_allclose(mixture.right.covariance, covariance, atol=1e-3)
    assert abs(mixture.share - (1 - count / len(points))) < 1e-3
    np.testing.assert_allclose(mixture.wrong.mean, known.mean(0))
    np.testing.assert_allclose(mixture.wrong.covariance, np.cov(known.T, bias=True), rtol=1e-4)
    inside = (points >= np.minimum(mixture.wrong.mean, mixture.right.mean)).all(1)
    inside &= (points <= np.maximum(mixture.wrong.mean, mixture.right.mean)).all(1)
    np.testing.assert_allclose(mixture.right_prob(points)[inside], np.array(shares)[inside], atol=1e-9)


def test_pairs_with_one_score_are_judged_by_it() -> None:
    points, known, _ = draw(0.3)
    points[:3, 1] = np.nan
    points[3] = np.nan
    zeros = np.zeros(len(points), np.float32)
    ends = np.arange(1, len(points) + 1)
    pairs = ScoredPairs(
        ends - 1,
        ends,
        Scores(points[:, 0].astype(np.float32), points[:, 1].astype(np.float32), zeros),
        Scores(known[:, 0].astype(np.float32), known[:, 1].astype(np.float32), zeros),
        {},
    )
    judge = make_judge(pairs)
    values = judge.values(pairs.scores)
    assert judge.mixture is not None and np.isnan(values[3]) and not np.isnan(values[:3]).any()
    alone = judge.mixture.marginal(0).right_prob(pairs.scores.cosine[:3, None].astype(np.float64))
    np.testing.assert_allclose(values[:3], alone)
    assert not judge.keeps(pairs.scores)[3] and judge.reason(values[3]).startswith("no score")
    with pytest.raises(UsageError, match="one of keep"):
        make_judge(pairs, 0.5, 0.1)
    with pytest.raises(UsageError, match="between 0 and 1"):
        make_judge(pairs, 1.5)
    with pytest.raises(DataError, match="too few"):
        fit_mixture(points[10 : 9 + MIN_PAIRS], known)


def test_commands(data: Path, tiny_model_folder: Path, tmp_path: Path, capsys: Any) -> None:
    def run(*argv: object) -> tuple[int, str, str]:
        code = main([*map(str, argv), "-m", str(tiny_model_folder)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    out = tmp_path / "o.jsonl"
    code, text, err = run("data", "filter", data, "--out", out, "--keep", "0.7")
    assert code == 0 and text == f"{out}: 84 of 120 captions, {len(read_jsonl(out))} of 42 photos\n"
    assert f"the others are in {tmp_path}/o.dropped.jsonl" in err
    code, text, _ = run("data", "recaption", data, "--out", out, "--keep-both", "--json")
    assert code == 0 and json.loads(text)["pairs"] == 120 and json.loads(text)["wrong_share"] is not None
    for argv, line in (
        (["filter", data, "--out", data], "is the data itself"),
        (["filter", data, "--out", tmp_path / "o.csv"], "must be a file that ends in .jsonl"),
        (["filter", data, "--out", out, "--keep", 0.5, "--min-cosine", 0.1], "give one of"),
    ):
        code, _, err = run("data", *argv)
        assert code == 2 and line in err


def test_no_photo_can_be_read(tmp_path: Path, model: MMGEM, tiny_model_folder: Path) -> None:
    records = [Record(tmp_path / f"{n}.png", ("a dog",)) for n in range(3)]
    write_jsonl(tmp_path / "d.jsonl", records)
    with pytest.raises(ImageError, match="none of the photos"):
        filter_pairs(tmp_path / "d.jsonl", tiny_model_folder, tmp_path / "o.jsonl", load=lambda: model)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("mine\n")
    with pytest.raises(DataError, match="not what mmgem writes"):
        WorkFile(tmp_path / "rows", {})
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
