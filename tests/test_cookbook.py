"""Every line of docs/cookbook.md runs, as it stands, in bash, over photos of all kinds and a toy model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from tiny import save_photo

from mmgem.search.search import PhotoIndex

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cookbook.md").read_text()
TASKS = re.findall(r"^([^\n]+[:?])\n\n```sh\n(.*?)\n```", PAGE, re.M | re.S)

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def with_exif(path: Path, seed: int, date: str, camera: str, place: tuple[float, float] | None) -> Path:
    """A photo with EXIF."""
    save_photo(path, seed, (96, 64))
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = camera
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.DateTimeOriginal: date}
    if place is not None:
        exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (place[0], 0.0, 0.0), 3: "E", 4: (place[1], 0.0, 0.0)}
    with Image.open(path) as image:
        pixels = image.copy()
    pixels.save(path, exif=exif, quality=95)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A home with photos, and mmgem on the path, whose packaged model is a toy."""
    home = tmp_path_factory.mktemp("home")
    photos = home / "Pictures"
    for day in (11, 12, 20):
        file = photos / "2021" / "summer" / f"{day}.jpg"
        with_exif(file, day, f"2021:07:{day} 12:00:00", "iPhone 12", (48.1, 11.5))
    with_exif(photos / "2024" / "a b.jpg", 4, "2024:03:01 08:00:00", "Apple iPhone 15", None)
    save_photo(photos / "Screenshot 1.png", 50, (64, 96))
    save_photo(photos / "wide.jpg", 51, (1920, 1200))
    for seed in (55, 56):
        save_photo(photos / f"other {seed}.png", seed)
    shutil.copy(photos / "wide.jpg", photos / "wide again.jpg")
    for number in range(6):
        save_photo(photos / "more" / f"thumb_{number}.png", 60 + number)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    save_photo(home / "query.jpg", 70, (80, 60))
    (home / "bin").mkdir()
    code = (
        "import sys\nfrom pathlib import Path\nfrom mmgem.checkpoints import resolve\n"
        f"resolve.PACKAGED = Path({str(tiny_model_folder.parent)!r})\n"
        "from mmgem.cli.main import main\nsys.exit(main())\n"
    )
    (home / "bin" / "mmgem").write_text(f"#!{sys.executable}\n{code}")
    (home / "bin" / "mmgem").chmod(0o755)
    link = tiny_model_folder.parent / "tiny"
    if not link.exists():
        link.symlink_to(tiny_model_folder)
    return home


def run(home: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line in bash, which fails where a part of a pipe does; to a random model nothing fits well."""
    environment = {name: value for name, value in os.environ.items() if name[:3] not in ("MMG", "XDG")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{home / 'bin'}:{os.environ['PATH']}"
    line = line.replace("--min-score 0.25", "--min-score -1")
    command = ["bash", "-o", "pipefail", "-c", line]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)


def test_every_task_does_what_it_says(home: Path) -> None:
    assert len(TASKS) >= 30
    assert len(TASKS) == PAGE.count("```sh\n")
    said: dict[str, list[str]] = {}
    for title, line in TASKS:
        assert "\n" not in line, f"{title} takes more than a line"
        done = run(home, line)
        assert done.returncode == 0, f"{title}\n{line}\n{done.stderr}"
        said[title] = done.stdout.splitlines()
        if "mv -t" in line:
            assert run(home, "mmgem index").returncode == 0

    def names(start: str) -> list[str]:
        lines = next(lines for title, lines in said.items() if title.startswith(start))
        return [Path(line.split("\t")[1]).name for line in lines]

    summer = {"11.jpg", "12.jpg", "20.jpg"}
    for title in ("All photos of 2021", "Photos taken near", "Only one"):
        assert set(names(title)) == summer
    assert names("The screenshot") == ["Screenshot 1.png"]
    assert set(names("A landscape that")) <= {"wide.jpg", "wide again.jpg"}
    assert names("What my phone") == ["a b.jpg"]
    placeless = names("Which photos do not say where")
    assert summer.isdisjoint(placeless) and "a b.jpg" in placeless
    assert len(names("What has come")) == len(names("The last twenty")) == 15
    assert names("The last twenty")[-3:] == ["20.jpg", "12.jpg", "11.jpg"], "by EXIF, the others being of now"
    assert len(list((home / "cars").iterdir())) == 3 and len(list((home / "receipts").glob("*.txt"))) == 5
    assert all(link.is_symlink() for link in (home / "beach").iterdir())
    assert Image.open(home / "holiday.jpg").width == 1280
    assert (home / "cake.html").stat().st_size > 1000 and (home / "garden.tar.gz").stat().st_size > 1000
    assert said["How much disk do those photos take?"][0].endswith("total")
    assert 5 < len(said["The names of the ten best, for another program:"]) <= 10
    taken = {path.name for name in ("spare", "receipts") for path in (home / name).iterdir()}
    assert taken & {"wide.jpg", "wide again.jpg"}, "the same bytes; a random model knows no near ones"
    assert any("broken.jpg" in line for line in said["Which files could not be read, and why?"])
    index = PhotoIndex.open(home / ".local" / "share" / "mmgem" / "photos.idx")
    assert not any(path.name.startswith("thumb_") for path in index.paths)
    assert len(np.load(home / "vectors.npy")) == len((home / "captions.tsv").read_text().splitlines())
