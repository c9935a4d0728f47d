"""The program that lies beside an exported model, on files as hospitals have them."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from fedmed import predict
from fedmed.data import make_eval_transform
from fedmed.data.sources.decoding import decode_image
from fedmed.export.manifest import FORMAT, describe_preprocessing
from fedmed.export.onnx_file import write_onnx
from fedmed.seeding import make_rng, seeded_torch
from fedmed.storage.atomic_files import hash_file

CLASSES = ["benign", "=malignant", "other"]
SIZE = 24


def make_pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return smooth colours with some noise, as a photograph has."""
    rng = make_rng(3, "tests", "predict", height, width, channels)
    coarse = rng.uniform(40, 220, (channels, 4, 4)).astype(np.float32)
    smooth = functional.interpolate(torch.from_numpy(coarse)[None], (height, width), mode="bicubic")[0]
    noisy = smooth.permute(1, 2, 0).numpy() + rng.normal(0, 6, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def save_all_kinds(folder: Path) -> list[Path]:
    """Write one image of every kind, none of them square."""
    folder.mkdir(parents=True, exist_ok=True)
    colour, grey = Image.fromarray(make_pixels(37, 52)), Image.fromarray(make_pixels(41, 29, 1)[..., 0])
    alpha = make_pixels(30, 45, 4)
    deep = make_pixels(33, 47, 1)[..., 0].astype(np.uint16) * 257 + 11
    images: dict[str, Any] = {
        "rgb.png": colour,
        "rgb.jpg": colour,
        "large.jpeg": Image.fromarray(make_pixels(300, 410)),
        "small.png": Image.fromarray(make_pixels(9, 7)),
        "line.png": Image.fromarray(make_pixels(1, 90)),
        "grey.png": grey,
        "grey.JPG": grey,
        "grey_alpha.png": Image.fromarray(alpha).convert("LA"),
        "rgba.png": Image.fromarray(alpha),
        "palette.png": colour.quantize(40),
        "palette_transparent.png": colour.quantize(40),
        "bit.png": grey.convert("1"),
        "deep.png": Image.fromarray(deep),
        "cmyk.jpg": colour.convert("CMYK"),
        "square.png": Image.fromarray(make_pixels(SIZE, SIZE)),
    }
    for name, image in images.items():
        options = {"transparency": 3} if name == "palette_transparent.png" else {}
        image.save(folder / name, **options)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colour.save(folder / f"turned_{orientation}.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_all_kinds(tmp_path_factory.mktemp("images"))


def build_network() -> nn.Module:
    with seeded_torch(0, "tests", "predict"):
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 7 * 7, len(CLASSES))
        ).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the program needs, and nothing else."""
    folder = tmp_path_factory.mktemp("model")
    write_onnx(build_network(), SIZE, folder / "model.onnx")
    manifest = {
        "format": FORMAT,
        "classes": CLASSES,
        "preprocessing": describe_preprocessing("flips", SIZE),
        "expected": {"basis": "test", "width": [8, 420], "height": [8, 300], "mean": [0.1, 0.9], "colour": "colour"},
        "sha256": {"model.onnx": hash_file(folder / "model.onnx")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def change_manifest(model: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(model, target)
    manifest = json.loads((model / "manifest.json").read_text()) | changes
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[dict[str, str]], str]:
    code = predict.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, list(csv.DictReader(io.StringIO(shown.out))), shown.err


def test_version_is_that_of_the_models_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """It travels alone, so it knows no version of fedmed."""
    with pytest.raises(SystemExit) as end:
        predict.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == "predict.py, for models of the format 2\n"


def test_names_are_those_of_the_library() -> None:
    assert predict.FORMAT == FORMAT


def test_decoding_is_that_of_training(files: list[Path]) -> None:
    assert len(files) == 22
    for file in files:
        expected = decode_image(file).permute(1, 2, 0).numpy()
        assert np.array_equal(predict.decode_image(file), expected), file.name


@pytest.mark.parametrize("recipe", ["flips", "hifuse", "adsr", "aptos", "none"])
@pytest.mark.parametrize("size", [SIZE, 57])
def test_network_sees_the_same_bits_as_in_training(files: list[Path], recipe: str, size: int) -> None:
    preprocessing = describe_preprocessing(recipe, size)
    transform = make_eval_transform(recipe, size)
    for file in files:
        if recipe == "hifuse" and file.name == "line.png":
            continue  # 90 times as wide as high
        expected = transform([decode_image(file)])[0].numpy()
        found = predict.prepare_image(predict.decode_image(file), preprocessing)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected), file.name


def test_resize_is_that_of_torch_for_any_size() -> None:
    rng = make_rng(0, "tests", "resize")
    for _ in range(150):
        height, width, target_height, target_width = (int(side) for side in rng.integers(1, 200, 4))
        pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        wanted = (target_height, target_width)
        if wanted == (height, width):
            continue
        planes = torch.from_numpy(pixels.transpose(1, 2, 0).copy()).permute(2, 0, 1)  # as images are decoded
        expected = functional.interpolate(planes[None], wanted, mode="bilinear", antialias=True)[0]
        assert np.array_equal(predict.resize(pixels, *wanted), expected.numpy()), (pixels.shape, wanted)


def test_probabilities_are_those_of_torch(files: list[Path], model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows, error = run(capsys, "--model", model, "--batch-size", 4, "--threads", 1, files[0].parent)
    assert code == 0
    assert "not a medical device" in error
    assert [row["file"] for row in rows] == [str(file) for file in files]
    transform = make_eval_transform("flips", SIZE)
    with torch.no_grad():
        expected = build_network()(transform([decode_image(file) for file in files])).softmax(dim=1)
    found = torch.tensor([[float(row[name]) for name in ("benign", "'=malignant", "other")] for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert {row["model"] for row in rows} == {hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()}


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature_divides_the_logits(
    files: list[Path], model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, temperature: float
) -> None:
    changed = change_manifest(model, tmp_path / "changed", temperature=temperature)
    rgb = next(file for file in files if file.name == "rgb.png")
    code, rows, _ = run(capsys, "--model", changed, rgb)
    assert code == 0
    x_BCHW = make_eval_transform("flips", SIZE)([decode_image(rgb)])
    with torch.no_grad():
        expected = (build_network()(x_BCHW)[0] / temperature).softmax(dim=0)
    found = torch.tensor([float(rows[0][name]) for name in ("benign", "'=malignant", "other")])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_notes_where_an_image_is_unlike_the_others(
    files: list[Path], model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Image.new("RGB", (20, 20), (255, 250, 255)).save(tmp_path / "bright.png")
    chosen = [file for file in files if file.name in {"rgb.png", "grey.png", "small.png"}]
    _, rows, error = run(capsys, "--model", model, *chosen, tmp_path / "bright.png")
    notes = {Path(row["file"]).name: row["note"] for row in rows}
    assert notes == {
        "grey.png": "a grey image, where colour images are expected",
        "rgb.png": "",
        "small.png": "width 7 is outside 8 to 420",
        "bright.png": "mean 0.9935 is outside 0.1 to 0.9",
    }
    assert "4 files" in error
    assert "0 not read, 3 with a note" in error


def test_without_ranges_there_is_no_note(
    files: list[Path], model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bare = change_manifest(model, tmp_path / "bare", expected={})
    _, rows, _ = run(capsys, "--model", bare, *files)
    assert {row["note"] for row in rows} == {""}


def test_unreadable_files_are_rows(
    files: list[Path], model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes((files[0].parent / "large.jpeg").read_bytes()[:900])
    Image.fromarray(make_pixels(8, 8)).save(tmp_path / "other.bmp")
    names = ["empty.png", "text.jpg", "cut.jpg", "other.bmp", "missing.png"]
    code, rows, error = run(capsys, "--model", model, *(tmp_path / name for name in names), files[0])
    assert code == 0
    assert len(rows) == 6
    for row in rows[:5]:
        assert row["note"].startswith("not read: ")
        assert row["benign"] == row["'=malignant"] == row["other"] == ""
        assert len(row["model"]) == 64
    assert "neither JPEG nor PNG" in rows[1]["note"]
    assert "No such file" in rows[4]["note"]
    assert "5 not read" in error
    assert float(rows[5]["benign"]) > 0


def test_folders_are_searched(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/deep/3.png", "a/1.png", ".hidden/4.png", "b/.5.png", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_pixels(12, 12)).save(path, format="PNG")
    _, rows, _ = run(capsys, "--model", model, tmp_path)
    assert [row["file"].removeprefix(f"{tmp_path}/") for row in rows] == ["a/1.png", "b/2.PNG", "b/deep/3.png"]
    code, rows, _ = run(capsys, "--model", model, tmp_path / "b" / ".5.png", tmp_path / "b" / "notes.txt")
    assert (code, len(rows)) == (0, 2)  # what is named is tried
    (tmp_path / "none").mkdir()
    code, rows, error = run(capsys, "--model", model, tmp_path / "none")
    assert (code, rows) == (1, [])
    assert "no JPEG or PNG file" in error


@pytest.mark.parametrize("name", ["=cmd.png", "+1.png", "-1.png", "@x.png", "a\nb.png", "naïve 影像.png", 'a,b".png'])
def test_names_are_safe_in_a_spreadsheet(model: Path, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_pixels(12, 12)).save(tmp_path / name)
    assert predict.main(["--model", str(model), "--csv", "out.csv", "--", name]) == 0
    text = (tmp_path / "out.csv").read_bytes().decode("utf-8")
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    shown = name.replace("\n", "?")
    own = f" ({hashlib.sha256(name.encode()).hexdigest()[:8]})"  # two files may be shown alike
    if name[0] in "=+-@":
        assert row["file"] == f"'{shown}{own}"
    else:
        assert row["file"] == (shown if shown == name else shown + own)


def test_name_that_is_no_text(model: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(name)).write_bytes(b"")
    assert predict.main(["--model", str(model), "--csv", str(tmp_path / "out.csv"), os.fsdecode(name)]) == 0
    assert "??.png" in (tmp_path / "out.csv").read_text(encoding="utf-8")


def test_table_appears_complete_or_not_at_all(
    files: list[Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out.csv"
    table.write_text(older := "file,a,model,note\nolder")

    def stop(path: Path) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "decode_image", stop)
    assert run(capsys, "--model", model, "--csv", table, files[0])[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert table.read_text() == older
    code, _, error = run(capsys, "--model", model, "--csv", tmp_path / "none" / "out.csv", files[0])
    assert code == 1
    assert "cannot be written: No such file" in error


@pytest.mark.parametrize("option", ["--csv", "--report"])
def test_nothing_but_an_earlier_answer_is_replaced(
    files: list[Path], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    suffix = {"--csv": ".csv", "--report": ".html"}[option]
    labels, own = tmp_path / f"labels{suffix}", tmp_path / f"own{suffix}"
    labels.write_text("patient,label\n1,a\n")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    for path in (files[0], model / "model.onnx", Path("/dev/null"), labels, folder):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(SystemExit) as ended:
            predict.main(["--model", str(model), str(files[0]), option, str(path)])
        assert ended.value.code == 2
        assert "Name another file" in capsys.readouterr().err
        assert before is None or path.read_bytes() == before
    for _ in range(2):
        assert run(capsys, "--model", model, option, own, files[0])[0] == 0
    assert own.stat().st_size


def test_changed_model_is_refused(
    files: list[Path], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = change_manifest(model, tmp_path / "changed")
    with (changed / "model.onnx").open("ab") as file:
        file.write(b" ")
    code, rows, error = run(capsys, "--model", changed, files[0])
    assert (code, rows) == (1, [])
    assert "has been changed: its SHA-256 is" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 1}, "format 1; needed is 2"),
        ({"classes": None}, "no exported model"),
        ({"sha256": []}, "no exported model"),
        ({"sha256": {}}, "with the hash of model.onnx"),
        ({"preprocessing": {"image_size": 24}}, "it has no 'resize'"),
        ({"preprocessing": {"image_size": 24, "resize": {"kind": "exact"}, "mean": [0, 0, 0]}}, "it has no 'std'"),
        ({"preprocessing": {"image_size": "wide", "resize": {"kind": "exact"}}}, "no exported model"),
        ({"temperature": 0}, "the temperature is 0.0"),
        ({"temperature": "warm"}, "no exported model"),
        ({"temperature": None}, "no exported model"),
    ],
)
def test_manifest_that_makes_no_sense(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    code, rows, error = run(capsys, "--model", change_manifest(model, tmp_path / "changed", **changes), "any.png")
    assert (code, rows) == (1, [])
    assert words in error


def test_wrong_use(model: Path, files: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in ([], ["--batch-size", "0", "x.png"], ["--threads", "-1", "x.png"], ["--nonsense", "x.png"]):
        with pytest.raises(SystemExit) as caught:
            predict.main(["--model", str(model), *arguments])
        assert caught.value.code == 2
    capsys.readouterr()
    for folder in (tmp_path, tmp_path / "none", files[0]):
        code, _, error = run(capsys, "--model", folder, files[0])
        assert code == 1
        assert "is no exported model" in error
    assert run(capsys, files[0])[0] == 1  # fedmed's own folder holds no model


def test_alone_in_the_folder_of_the_model(model: Path, files: list[Path], tmp_path: Path) -> None:
    """As a process of its own, without this library on the path."""
    folder = tmp_path / "copy"
    shutil.copytree(model, folder)
    for name in ("predict.py", "predict_tables.py", "predict_watch.py"):
        shutil.copy(Path(predict.__file__).with_name(name), folder)
    code = (
        "import runpy, sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.argv[1])]\n"
        "sys.argv = ['predict.py', *sys.argv[2:]]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(sorted(m for m in sys.modules if m.split('.')[0] in {'fedmed', 'torch'}), file=sys.stderr)"
    )
    root = str(Path(predict.__file__).resolve().parents[1])
    command = [sys.executable, "-c", code, root, str(files[0]), "--csv", "out.csv"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "[]"
    assert "Traceback" not in result.stderr
    assert (
        (folder / "out.csv").read_text().startswith("file,benign,'=malignant,other,predicted,probability,model,note\n")
    )


def test_reader_that_has_seen_enough(model: Path, files: list[Path]) -> None:
    named = " ".join(map(str, files * 40))
    command = f"{sys.executable} -m fedmed.predict --model {model} {named} --batch-size 1 | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("file,benign")
    assert "Traceback" not in result.stderr
