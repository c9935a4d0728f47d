"""The artefact in an environment with numpy, pillow and onnxruntime and nothing else."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fedmed.data import load_site, make_eval_transform
from fedmed.data.sources.decoding import decode_image
from fedmed.export.run import export_run, load_network, read_chosen_round
from tests.support.federation import Federation


def ask(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )


@pytest.mark.slow
def test_artefact_is_enough_by_itself(tmp_path: Path) -> None:
    settings = {"rounds": 1, "model": {"name": "mobilenet_v2"}, "data": {"image_size": 32, "images_per_site": 40}}
    data = {"source": "phantom", "num_classes": 3} | dict(settings["data"])  # type: ignore[call-overload]
    federation = Federation(tmp_path / "run", settings | {"data": data})
    federation.go()
    run, config = federation.run, federation.config
    export_run(run, tmp_path / "built")
    place = tmp_path / "hospital"
    (tmp_path / "built").rename(place)
    images = place / "images"
    images.mkdir()
    part = load_site(config.data, config.sites, config.seed, run.splits, "site_01", 0.0).test
    for index in range(len(part)):
        image = Image.fromarray(part.images([index])[0].permute(1, 2, 0).numpy())
        image.resize((47, 61)).save(images / f"{index:03}.{'png' if index % 2 else 'jpg'}")

    python = str(place / ".venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(place / ".venv")], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(place / "requirements.txt")],
        check=True,
    )
    listed = ask([python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], place).stdout
    assert not {"torch", "fedmed"} & {line.split("==")[0] for line in listed.splitlines()}

    result = ask([python, "predict.py", "images", "--csv", "out.csv"], place)
    assert result.returncode == 0, result.stderr
    assert "not a medical device" in result.stderr
    rows = list(csv.DictReader(io.StringIO((place / "out.csv").read_text())))
    files = sorted(images.iterdir())
    assert [row["file"] for row in rows] == [str(file.relative_to(place)) for file in files]
    model = load_network(run, config, read_chosen_round(run)).model.eval()
    with torch.no_grad():
        shown = make_eval_transform(config.data.augmentation, 32)([decode_image(file) for file in files])
        expected = model(shown).softmax(dim=1)
    classes = config.classes or []
    found = torch.tensor([[float(row[name]) for name in classes] for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
