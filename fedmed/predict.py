"""Classify images with an exported model. Research software, not a medical device.

    python -m fedmed.predict --model DIR IMAGE... --csv out.csv
    python predict.py IMAGE...                                    inside the folder of an exported model

This file is copied into every exported model, with predict_tables.py and predict_watch.py beside it. They need numpy,
pillow and onnxruntime, for a released model, whose manifest is signed, also cryptography, and nothing else.
"""

import argparse
import base64
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before it is imported: onnxruntime reports its use over the network
try:
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as lacking:  # a person at a fresh machine needs the line to type, not a traceback
    raise SystemExit(f"{lacking.name} is not installed here. Type: pip install -r requirements.txt") from None

BANNER = "Research software, not a medical device: do not base a decision about a patient on it."
MODEL_FILE, MANIFEST_FILE, FORMAT, SUFFIXES = "model.onnx", "manifest.json", 2, (".jpeg", ".jpg", ".png")
SIGNATURE_FILE, KEY_FILE = "manifest.sig", "release.pub"
# A hospital that has collected the model writes the public key of its federation here, in the copy beside the model.
KEY = ""
Array = np.ndarray[Any, Any]


class PredictionError(Exception):
    """A foreseeable failure; its text is meant for the person at the keyboard."""


@dataclass(frozen=True)
class Artefact:
    """An exported model that is sound and ready to run."""

    classes: tuple[str, ...]
    preprocessing: dict[str, Any]  # image_size, resize, mean, std; the manifest says more, for people
    expected: dict[str, list[float] | str]  # ranges of what the model was trained on; empty where nothing is known
    sha256: str
    session: Any
    temperature: float = 1.0  # divides the logits before they become probabilities
    alerts: tuple[int, ...] = ()  # classes that raise an alert together, from this log-odds of their probability on
    threshold: float | None = None
    point: dict[str, Any] | None = None  # how that was chosen, as the manifest tells it

    def compute_logits(self, x_BCHW: Array) -> Array:
        """Return float32 (B, K) from a normalised float32 batch (B, 3, S, S)."""
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: x_BCHW})[0])


def open_artefact(folder: Path, threads: int = 0, key_file: Path | None = None) -> Artefact:
    """Read an exported model's folder; check hash and, of a released one, signature; raises PredictionError."""
    try:
        written = (folder / MANIFEST_FILE).read_bytes()
        manifest = json.loads(written)
        check_origin(folder, written, key_file, is_released="released" in manifest)
        if manifest["format"] != FORMAT or (wanted := manifest["sha256"].get(MODEL_FILE)) is None:
            problem = f"has format {manifest['format']!r}; needed is {FORMAT}, with the hash of {MODEL_FILE}"
            raise PredictionError(f"The manifest in '{folder}' {problem}. Use the predict.py beside the model.")
        classes, expected = tuple(map(str, manifest["classes"])), dict(manifest.get("expected") or {})
        prepare_image(np.zeros((1, 1, 3), np.uint8), preprocessing := manifest["preprocessing"])  # all is there
        if not 0 < (temperature := float(manifest.get("temperature", 1.0))) < float("inf"):
            raise ValueError(f"the temperature is {temperature}")
        point = manifest.get("operating_point") or {}  # of models from before there were any, nothing
        alerts, threshold = tuple(map(classes.index, point.get("alert_classes", []))), point.get("threshold")
        if threshold is not None and not (alerts and -100 < float(threshold) < 100):
            raise ValueError(f"the operating point is {point}")
        model = (folder / MODEL_FILE).read_bytes()
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise PredictionError(f"'{folder}' is no exported model: {_explain(error)}. Name it with --model.") from None
    if (found := hashlib.sha256(model).hexdigest()) != wanted:
        problem = f"has been changed: its SHA-256 is {found[:16]}..., the manifest says {str(wanted)[:16]}..."
        raise PredictionError(f"'{folder / MODEL_FILE}' {problem}. Copy the folder again from where it came.")
    session = open_session(model, threads)
    return Artefact(classes, preprocessing, expected, found, session, temperature, alerts, threshold, point)


def check_origin(folder: Path, manifest: bytes, key_file: Path | None, *, is_released: bool) -> None:
    """Check the signature if anything here or in the folder says that there is one; raises PredictionError."""
    if not (KEY or key_file or is_released or any((folder / name).exists() for name in (SIGNATURE_FILE, KEY_FILE))):
        return
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        line = KEY if KEY and key_file is None else (key_file or folder / KEY_FILE).read_text("ascii")
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(line.split()[1], validate=True)[-32:])
        key.verify(base64.b64decode((folder / SIGNATURE_FILE).read_text("ascii").strip(), validate=True), manifest)
    except Exception as error:  # what is wrong with a key or a signature has no common class
        lacking = "cryptography is not installed here; type: pip install -r requirements.txt"
        unfit = f"{SIGNATURE_FILE} or {KEY_FILE} is missing or does not fit (a key elsewhere is named with --key)"
        reason = f"cannot be confirmed: {lacking if isinstance(error, ImportError) else unfit}"
        raise PredictionError(f"The model in '{folder}' is not used, because its signature {reason}.") from None


def open_session(model: Path | bytes, threads: int = 0) -> Any:
    """Return an ``InferenceSession`` on the CPU, 0: one thread a core; raises PredictionError if it cannot run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3  # errors
    # No other file is opened, whatever the model names: nothing lies in this "folder".
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class of its errors
        raise PredictionError(f"onnxruntime {onnxruntime.__version__} cannot run it: {_explain(error)}") from None


def decode_image(path: Path) -> Array:
    """Read a JPEG or PNG file as the manifest says, as uint8 (H, W, 3), RGB; raises PredictionError."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return np.array(_convert_to_rgb(image))
    except Exception as error:  # a broken file may raise anything
        raise PredictionError(_explain(error)) from None


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    try:
        is_turned = image.getexif().get(0x0112, 1) != 1
    except Exception:  # broken EXIF data says nothing about the pixels, so the image is taken as it lies
        is_turned = False
    image = ImageOps.exif_transpose(image) if is_turned else image
    if image.mode.startswith("I"):  # Pillow would clip 16-bit values at 255
        grey = np.rint(np.clip(np.asarray(image).astype(np.float64) / 257.0, 0, 255)).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def prepare_image(pixels: Array, preprocessing: dict[str, Any]) -> Array:
    """Turn uint8 (H, W, 3) into what the model sees: float32 (3, S, S), ``(value / 255 - mean) / std``."""
    x_CHW = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    size, rule = int(preprocessing["image_size"]), preprocessing["resize"]
    if rule["kind"] == "shorter_side":
        short, (height, width) = int(rule["size"]), x_CHW.shape[1:]
        long = short * max(height, width) // min(height, width)
        x_CHW = resize(x_CHW, short, long) if height <= width else resize(x_CHW, long, short)
        top, left = (round((side - size) / 2) for side in x_CHW.shape[1:])
        x_CHW = x_CHW[:, top : top + size, left : left + size]
    else:
        x_CHW = resize(x_CHW, size, size)
    mean, std = (np.array(row, np.float32)[:, None, None] for row in (preprocessing["mean"], preprocessing["std"]))
    return np.asarray((x_CHW.astype(np.float32) / np.float32(255) - mean) / std)


def resize(x_CHW: Array, height: int, width: int) -> Array:
    """Resize uint8 planes along rows, then columns, bilinear with antialiasing, to the bits of PyTorch for uint8."""
    # i is the sum of j around c = (i + 0.5) * scale with weights max(0, 1 - |j + 0.5 - c| / max(scale, 1)) in 16 bits.
    channels, rows, columns = x_CHW.shape
    if columns != width:
        flat = x_CHW.reshape(channels * rows, columns)
        parts = [_round(flat[:, span] @ w.T, bits) for span, w, bits in _weigh(columns, width)]
        x_CHW = np.concatenate(parts, axis=1).reshape(channels, rows, width)
    if rows != height:
        parts = [_round(np.matmul(w, x_CHW[:, span]), bits) for span, w, bits in _weigh(rows, height)]
        x_CHW = np.concatenate(parts, axis=1)
    return x_CHW


def _weigh(size: int, target: int, block: int = 8) -> Iterator[tuple[slice, Array, int]]:
    """Yield for some results: their inputs, whole-numbered weights (in float64 such sums are exact), and their bits."""
    support = max(size / target, 1.0)
    centres = [(i + 0.5) * (size / target) for i in range(target)]
    spans = [(max(int(c - support + 0.5), 0), min(int(c + support + 0.5), size)) for c in centres]
    pairs = zip(spans, centres, strict=True)
    taps = [np.maximum(0.0, 1 - np.abs((np.arange(*span) - c + 0.5) * (1 / support))) for span, c in pairs]
    rows = [row / row.sum() for row in taps]
    largest, bits = max(row.max() for row in rows), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    for first in range(0, target, block):
        chosen = range(first, min(first + block, target))
        begin, end = spans[chosen[0]][0], spans[chosen[-1]][1]
        weights = np.zeros((len(chosen), end - begin))
        for i in chosen:
            weights[i - first, spans[i][0] - begin : spans[i][1] - begin] = np.floor(0.5 + rows[i] * 2**bits)
        yield slice(begin, end), weights, bits


def _round(sums: Array, bits: int) -> Array:
    return np.asarray(np.clip(np.floor(sums / 2**bits + 0.5), 0, 255), dtype=np.uint8)


def describe_pixels(pixels: Array) -> tuple[dict[str, float], str]:
    """Return size, mean and standard deviation of all values, 0 to 1, by name, and the colour, of uint8 (H, W, 3)."""
    counts = np.array(Image.fromarray(pixels).histogram(), np.float64).reshape(3, 256).sum(axis=0)
    values, total = np.arange(256) / 255, counts.sum()
    mean, (red, green, blue) = float(counts @ values / total), pixels.transpose(2, 0, 1)
    std = max(float(counts @ values**2 / total) - mean**2, 0.0) ** 0.5
    numbers = {"width": pixels.shape[1], "height": pixels.shape[0], "mean": mean, "std": std}
    return numbers, "grey" if np.array_equal(red, green) and np.array_equal(green, blue) else "colour"


def find_oddities(numbers: dict[str, float], colour: str, expected: dict[str, list[float] | str]) -> str:
    """Return a note about everything that lies outside the ranges of the manifest; empty if nothing does."""
    notes = []
    for key, value in numbers.items():
        if isinstance(bound := expected.get(key), list) and bound and not bound[0] <= value <= bound[1]:
            notes.append(f"{key} {value:.4g} is outside {bound[0]:.4g} to {bound[1]:.4g}")
    if expected.get("colour", "both") not in {"both", colour}:
        notes.append(f"a {colour} image, where {expected['colour']} images are expected")
    return "; ".join(notes)


def find_images(paths: Iterable[str]) -> Iterator[Path]:
    """Yield files as they are named, and of folders all JPEG and PNG files, also of folders inside, sorted."""
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
        for folder, subfolders, names in os.walk(path):  # of a file: nothing
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            chosen = (name for name in sorted(names) if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            yield from filter(Path.is_file, (Path(folder, name) for name in chosen))  # a pipe would be waited for


def predict_files(artefact: Artefact, files: Sequence[Path], batch_size: int = 16) -> Iterator[list[str]]:
    """Yield a row for each file, with the columns of :func:`list_columns`; no answer if it cannot be read."""
    for first in range(0, len(files), batch_size):
        batch, notes, ready, answers = files[first : first + batch_size], {}, {}, {}
        for file in batch:
            try:
                pixels = decode_image(file)
                notes[file] = find_oddities(*describe_pixels(pixels), artefact.expected)
                ready[file] = prepare_image(pixels, artefact.preprocessing)
            except (PredictionError, MemoryError) as error:
                notes[file] = f"not read: {_explain(error)}"
        if ready:
            logits = artefact.compute_logits(np.stack(list(ready.values()))).astype(np.float64) / artefact.temperature
            answers = dict(zip(ready, (_answer(artefact, row) for row in logits), strict=True))
        for file in batch:
            cells = answers.get(file, [""] * (len(list_columns(artefact)) - 3))
            yield [make_safe(str(file)), *cells, artefact.sha256, make_safe(notes[file])]


def list_columns(artefact: Artefact) -> list[str]:
    """Return the columns of a row."""
    alert = ["alert"] if artefact.threshold is not None else []
    return ["file", *map(make_safe, artefact.classes), "predicted", "probability", *alert, "model", "note"]


def _answer(artefact: Artefact, logits: Array) -> list[str]:
    """Return the probabilities of one image, the predicted class and its probability, and whether it is an alert."""
    powers = np.exp(logits - logits.max())
    shares, best = powers / powers.sum(), int(logits.argmax())
    cells = [*(f"{share:.6f}" for share in shares), make_safe(artefact.classes[best]), f"{shares[best]:.6f}"]
    if artefact.threshold is None:
        return cells
    own, rest = logits[list(artefact.alerts)], np.delete(logits, artefact.alerts)
    is_alert = np.logaddexp.reduce(own) - np.logaddexp.reduce(rest) >= artefact.threshold
    return [*cells, "yes" if is_alert else "no"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _load("predict_tables").parse(arguments, BANNER, FORMAT, Path(__file__).parent)
    print(BANNER, file=sys.stderr)
    warnings.filterwarnings("ignore", module="PIL")  # remarks about size and metadata
    try:
        _run(open_artefact(options.model, options.threads, options.key), options)
    except KeyboardInterrupt:
        print("\nStopped; the table is not complete.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"\n'{error.filename}' cannot be written: {_explain(error)}.", file=sys.stderr)
        return 1
    except (PredictionError, ValueError) as error:  # of what lies beside this program, too
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def _run(artefact: Artefact, options: argparse.Namespace) -> None:
    columns, answer = list_columns(artefact), partial(predict_files, artefact, batch_size=options.batch_size)
    tables = _load("predict_tables")
    if options.watch:
        measure, names = lambda file: describe_pixels(decode_image(file))[0], partial(tables.name_file, make_safe)
        told = (options.watch, options.csv, columns, artefact.sha256, find_images, answer, measure, names)
        _load("predict_watch").watch(*told, options.every, artefact.expected, artefact.point or {}, once=options.once)
        return
    images = list(find_images(options.images))
    if not images:
        raise PredictionError("There is no JPEG or PNG file in what was named.")
    rows = tables.write_table(columns, answer(images), images, options.csv, make_safe)
    if options.report:
        rule = ([make_safe(artefact.classes[label]) for label in artefact.alerts], artefact.threshold)
        tables.write_page(options.report, images, rows, BANNER, lambda file: Image.fromarray(decode_image(file)), rule)


def _load(name: str) -> Any:
    """Return a program that lies beside this one."""
    module = ModuleType(name)
    try:  # by its place, whatever else is called like it
        SourceFileLoader(name, str(Path(__file__).with_name(f"{name}.py"))).exec_module(module)
    except (ImportError, OSError) as error:
        advice = "Copy all files of the model again from where they came."
        raise SystemExit(f"{name}.py beside this program cannot be used ({error}). {advice}") from None
    return module


def make_safe(text: str) -> str:
    """Return a text that a spreadsheet does not take for a formula and a terminal not for a command."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def _explain(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "neither JPEG nor PNG, or empty"
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return f"it has no {text}" if isinstance(error, KeyError) else text


if __name__ == "__main__":
    sys.exit(main())
