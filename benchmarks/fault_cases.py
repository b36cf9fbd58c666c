"""What the faults of ``faults.py`` are tried on: commands, what they write, and whether that is right."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import toys
from tiny import save_photos, save_tiny_model

from mmgem.checkpoints.model_folder import save_model
from mmgem.search.index_store import read_index
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.prompts import Prompts

RIGHT, CLEAR, WRONG, LOST, RAW = "right", "clear error", "silent wrong", "lost", "raw error"

Verdict = str
Check = Callable[[Path, Sequence[int]], Verdict]


@dataclass
class Case:
    """A command. ``argv(place, n)``: as writer ``n`` (0 or 1) gives it, writing into the folder ``place``.

    ``check(place, done)``: whether what is there is what the writers ``done``, which ended well, were to
    leave. ``prepare(place)``: what is there before. ``use(place)``: a command that reads it; ``damaged``:
    the folder whose files are damaged, and which ``mmgem check`` looks at.
    """

    name: str
    argv: Callable[[Path, int], list[str]]
    check: Check
    prepare: Callable[[Path], None] = field(default=lambda place: None)
    use: Callable[[Path], list[str]] | None = None
    damaged: str = ""


class Assets:
    """Toy models, photos and texts in ``folder``."""

    def __init__(self, folder: Path, photos: int = 24, passages: int = 12) -> None:
        self.folder = folder
        save_photos(folder / "photos", photos)
        self.data = toys.photos(folder / "data", photos, 8)
        self.models = [save_tiny_model(folder / f"model-{seed}", seed) for seed in (0, 1)]
        self.passages = toys.passages(passages)
        half = passages // 2
        self.base, more = self.passages[:half], self.passages[half:]
        self.more = [more[0::2], more[1::2]]
        for n, some in enumerate(self.more):
            text = "".join(json.dumps(asdict(passage)) + "\n" for passage in some)
            (folder / f"more-{n}.jsonl").write_text(text)
        network, tokenizer = toys.network("tied llama", "none"), toys.tokenizer()
        corpus = Corpus.build(self.base, Prompts(tokenizer))
        save_model(folder / "corpus-model", network, tokenizer, "", more=corpus.save_in)
        lm, encoder = toys.base_models(folder / "bases", "tied llama")
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(
            f"""[data]
train = "{self.data}"
cache = "{folder / "features"}"
[preprocessing]
size = 32
lowercase = true
[init]
encoder = "{encoder}"
llm = "{lm}"
[model]
dim = 8
[model.encoder]
kind = "transformers"
[optim]
warmup_steps = 2
lr_heads = 1e-2
[train]
out = "unset"
epochs = 4
batch_size = 8
log_every = 1
checkpoint_every = 3
evaluate_every = 4
threads = 1
[image_text]
"""
        )


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder`` and the hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def equals(name: str, references: dict[int, dict[str, str]], shared: bool = False) -> Check:
    """The folder ``name`` is as one of the writers that ended well leaves it alone; ``shared``: each does the
    same, so it need not have ended."""

    reference = references[0]
    wholes = {digest for files in references.values() for digest in files.values()}

    def check(place: Path, done: Sequence[int]) -> Verdict:
        found = contents(place / name)
        if not done:  # what is there is whole
            whole = [file for file in found if file in reference and not file.endswith(".json")]
            return RIGHT if all(found[file] in wholes for file in whole) else WRONG
        if found in ([reference] if shared else [references[n] for n in done]):
            return RIGHT
        return WRONG if found else LOST

    return check


def passage_check(assets: Assets, writers: dict[int, list[Passage]]) -> Check:
    """The corpus has what was there, and what each writer that ended well has added."""

    def check(place: Path, done: Sequence[int]) -> Verdict:
        try:
            corpus = Corpus.open(place / "model" / "corpus")
        except Exception:
            return LOST
        texts = {passage.id: passage.text for passage in corpus.passages}
        wanted = [*assets.base, *(passage for n in done for passage in writers.get(n, ()))]
        if any(passage.id not in texts for passage in wanted):
            return LOST
        right = all(texts[passage.id] == passage.text for passage in wanted)
        return RIGHT if right and len(corpus.passage_trie) == len(corpus.passages) else WRONG

    return check


def index_state(folder: Path) -> dict[str, bytes]:
    """The vector of every photo of an index."""
    snapshot = read_index(folder)
    return {path.decode(): np.asarray(snapshot.vectors[row]).tobytes() for row, path, _ in snapshot.entries}


def cases(assets: Assets, run: Callable[[list[str]], None], names: Sequence[str] = ()) -> list[Case]:
    """The commands, or those of ``names``. ``run`` a command line to its good end: what a writer leaves that
    is alone is what others are compared with."""
    models, photos = [str(model) for model in assets.models], str(assets.folder / "photos")

    def index(place: Path, n: int) -> list[str]:
        return ["index", photos, "--out", str(place / "index"), "--model", models[0]]

    def add(place: Path, n: int) -> list[str]:
        more = str(assets.folder / f"more-{n}.jsonl")
        return ["corpus", "add", more, "--model", str(place / "model")]

    def add_or_export(place: Path, n: int) -> list[str]:
        model = str(place / "model")
        return ["export", model, model] if n else add(place, 0)

    def pack(place: Path, n: int) -> list[str]:
        return ["data", "pack", str(assets.data), "--out", str(place / "shards"), "--per-shard", "4"]

    def train(place: Path, n: int) -> list[str]:
        return ["train", str(assets.recipe), f"train.out={place / 'run'}"]

    def mosaic(place: Path, n: int) -> list[str]:
        out = ["--out", str(place / "mosaics"), "--count", "8", "--side", "64", "--seed", str(n)]
        return ["mosaic", str(assets.data), *out]

    def export(place: Path, n: int) -> list[str]:
        return ["export", models[n], str(place / "small")]

    def embed(place: Path, n: int) -> list[str]:
        (place / "vectors").mkdir(exist_ok=True)
        texts = [option for text in ("a dog", "a cat")[: n + 1] for option in ("--text", text)]
        return ["embed", *texts, "--out", str(place / "vectors" / "v.npy"), "--model", models[n]]

    def corpus_model(place: Path) -> None:
        shutil.copytree(assets.folder / "corpus-model", place / "model")

    def references(argv: Callable[[Path, int], list[str]], name: str, writers: int) -> dict[int, dict]:
        made = {}
        for n in range(writers):
            place = assets.folder / "alone" / f"{name}-{n}"
            place.mkdir(parents=True)
            run(argv(place, n))
            made[n] = contents(place / name)
        return made

    def index_check() -> Check:
        place = assets.folder / "alone"
        place.mkdir(exist_ok=True)
        run(index(place, 0))
        wanted = index_state(place / "index")

        def check(place: Path, done: Sequence[int]) -> Verdict:
            if not done:
                return RIGHT
            try:
                return RIGHT if index_state(place / "index") == wanted else WRONG
            except Exception:
                return LOST

        return check

    def train_check() -> Check:
        place = assets.folder / "alone"
        run(train(place, 0))
        weights = Path("run", "model", "model.safetensors")
        wanted = (place / weights).read_bytes()

        def check(place: Path, done: Sequence[int]) -> Verdict:
            return RIGHT if not done or (place / weights).read_bytes() == wanted else WRONG

        return check

    def search(place: Path) -> list[str]:
        return ["search", str(place / "index"), "a dog", "--json"]

    def corpus_search(place: Path) -> list[str]:
        return ["corpus", "search", "the dog", "--model", str(place / "model"), "--json"]

    def embed_text(place: Path) -> list[str]:
        return ["embed", "--text", "a dog", "--model", str(place / "small"), "--json"]

    made: dict[str, Callable[[], Case]] = {
        "index": lambda: Case("index", index, index_check(), use=search, damaged="index"),
        "corpus add": lambda: Case(
            "corpus add",
            add,
            passage_check(assets, dict(enumerate(assets.more))),
            corpus_model,
            use=corpus_search,
            damaged="model/corpus",
        ),
        "corpus add, export": lambda: Case(
            "corpus add, export", add_or_export, passage_check(assets, {0: assets.more[0]}), corpus_model
        ),
        "data pack": lambda: Case(
            "data pack", pack, equals("shards", references(pack, "shards", 1), shared=True), damaged="shards"
        ),
        "mosaic": lambda: Case("mosaic", mosaic, equals("mosaics", references(mosaic, "mosaics", 2))),
        "export": lambda: Case(
            "export",
            export,
            equals("small", references(export, "small", 2)),
            use=embed_text,
            damaged="small",
        ),
        "embed": lambda: Case("embed", embed, equals("vectors", references(embed, "vectors", 2))),
        "train": lambda: Case("train", train, train_check()),
    }
    return [make() for name, make in made.items() if not names or name in names]
