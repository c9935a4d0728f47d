"""Before a simulation begins, its proxy images are compared with all images on which a model is judged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmed.data import load_site
from fedmed.errors import DataError
from server.finish import proxy_images
from tests.server.finish.test_small_network import fopro
from tests.support.federation import Federation

Make = Callable[..., Federation]
CLASSES = ("a", "b")


def write_folders(root: Path, per_class: int = 15) -> dict[str, Any]:
    for index, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            save(root / name / f"{number:02d}.png", 100 * index + number)
    return {"source": "class_folders", "root": str(root), "classes": list(CLASSES), "image_size": 16} | DIRICHLET


def write_npz(file: Path, number: int = 30) -> dict[str, Any]:
    images = np.stack([draw(seed) for seed in range(number)])
    np.savez(file, images=images, labels=np.arange(number) % 2, class_names=np.array(CLASSES))
    return {"source": "npz", "file": str(file), "image_size": 16} | DIRICHLET


DIRICHLET = {"partition": {"kind": "dirichlet", "alpha": 100.0}}


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def save(path: Path, seed: int) -> None:
    Image.fromarray(draw(seed)).save(path)


@pytest.fixture
def proxy(tmp_path: Path) -> Path:
    folder = tmp_path / "proxy"
    folder.mkdir()
    for seed in range(1000, 1004):
        save(folder / f"{seed}.png", seed)
    return folder


def begin(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until the first round would begin."""
    monkeypatch.setattr("server.rounds.loop.RoundLoop.run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        federation.go()


def test_files_of_the_test_are_refused_and_those_of_training_are_not(
    make_federation: Make, tmp_path: Path, proxy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folders(tmp_path / "images")
    federation = make_federation(sites=2, data=data, fopro=fopro(proxy=("folder", str(proxy))))
    config = federation.config
    site = load_site(config.data, 2, config.seed, federation.run.splits, federation.sites[1], 0)
    shutil.copy(tmp_path / "images" / site.train.items[0], proxy / "training.png")
    begin(federation, monkeypatch)
    for number, part in enumerate((site.validation, site.test)):
        shutil.copy(tmp_path / "images" / part.items[0], proxy / f"also_{number}.png")
    with pytest.raises(DataError, match=r"2 of the 7 proxy images") as raised:
        federation.go()
    first = f"also_0.png', is '{site.validation.items[0]}' of the validation images of {federation.sites[1]}."
    assert first in str(raised.value)


def test_arrays_are_compared_by_pixels(
    make_federation: Make, tmp_path: Path, proxy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_npz(tmp_path / "images.npz")
    federation = make_federation(sites=2, data=data, fopro=fopro(proxy=("folder", str(proxy))))
    begin(federation, monkeypatch)
    config = federation.config
    site = load_site(config.data, 2, config.seed, federation.run.splits, federation.sites[0], 0)
    save(proxy / "2000.png", int(site.test.items[0]))
    with pytest.raises(DataError, match=r"1 of the 5 proxy images .*2000\.png'.* of the test images of"):
        federation.go()


@pytest.mark.parametrize("source", ["phantom", "folder"])
def test_the_phantom_is_in_no_file(
    make_federation: Make, proxy: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(proxy_images, "check_disjoint", lambda *_: pytest.fail("compared"))
    told: Any = ("phantom", 40) if source == "phantom" else ("folder", str(proxy))
    begin(make_federation(fopro=fopro(proxy=told)), monkeypatch)
