"""Classify images with an exported model. Research software, not a medical device.

    python -m fedmed.predict --model DIR IMAGE... --csv out.csv
    python predict.py IMAGE...                                    inside the folder of an exported model

This one file is copied into every exported model. It needs numpy, pillow and onnxruntime, for a released model, whose
manifest is signed, also cryptography, and nothing else.
"""

import argparse
import base64
import csv
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
        model = (folder / MODEL_FILE).read_bytes()
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise PredictionError(f"'{folder}' is no exported model: {_explain(error)}. Name it with --model.") from None
    if (found := hashlib.sha256(model).hexdigest()) != wanted:
        problem = f"has been changed: its SHA-256 is {found[:16]}..., the manifest says {str(wanted)[:16]}..."
        raise PredictionError(f"'{folder / MODEL_FILE}' {problem}. Copy the folder again from where it came.")
    return Artefact(classes, preprocessing, expected, found, open_session(model, threads), temperature)


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
            yield from (Path(folder, name) for name in chosen)


def predict_files(artefact: Artefact, files: Sequence[Path], batch_size: int = 16) -> Iterator[list[str]]:
    """Yield a row for each file: name, probabilities (empty if it cannot be read), hash of the model, note."""
    for first in range(0, len(files), batch_size):
        batch, notes, ready, shares = files[first : first + batch_size], {}, {}, {}
        for file in batch:
            try:
                pixels = decode_image(file)
                notes[file] = find_oddities(*describe_pixels(pixels), artefact.expected)
                ready[file] = prepare_image(pixels, artefact.preprocessing)
            except (PredictionError, MemoryError) as error:
                notes[file] = f"not read: {_explain(error)}"
        if ready:
            logits = artefact.compute_logits(np.stack(list(ready.values()))).astype(np.float64) / artefact.temperature
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares = dict(zip(ready, powers / powers.sum(axis=1, keepdims=True), strict=True))
        for file in batch:
            cells = [f"{share:.6f}" for share in shares[file]] if file in shares else [""] * len(artefact.classes)
            yield [_make_safe(str(file)), *cells, artefact.sha256, _make_safe(notes[file])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    print(BANNER, file=sys.stderr)
    warnings.filterwarnings("ignore", module="PIL")  # remarks about size and metadata
    try:
        artefact = open_artefact(options.model, options.threads, options.key)
        _write_table(artefact, list(find_images(options.images)), options)
    except KeyboardInterrupt:
        print("\nStopped; the table is not complete.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except PredictionError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"Classify JPEG and PNG images with an exported model. {BANNER}",
        epilog="exit code: 0 finished (single files may be unreadable); 1 explained problem; 2 wrong arguments",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders to search")
    parser.add_argument("--version", action="version", version=f"predict.py, for models of the format {FORMAT}")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: here")
    parser.add_argument("--key", type=Path, metavar="FILE", help="public key with which the model must be signed")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where to write the table (default: standard output)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: one for each core)")
    options = parser.parse_args(arguments)
    if options.batch_size < 1 or options.threads < 0:
        parser.error("allowed are --batch-size from 1 and --threads from 0")
    return options


def _write_table(artefact: Artefact, files: Sequence[Path], options: argparse.Namespace) -> None:
    if not files:
        raise PredictionError("There is no JPEG or PNG file in what was named.")
    start, unread, noted, end = time.monotonic(), 0, 0, ""
    with _open_table(options.csv) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["file", *map(_make_safe, artefact.classes), "model", "note"])
        for number, row in enumerate(predict_files(artefact, files, options.batch_size), start=1):
            writer.writerow(row)
            unread, noted = unread + (row[1] == ""), noted + (row[1] != "" and row[-1] != "")
            if sys.stderr.isatty() and (options.csv or not sys.stdout.isatty()):
                end = "\n"
                print(f"\r{number} of {len(files)} files", end="", file=sys.stderr, flush=True)
    took = f"{end}{len(files)} files in {time.monotonic() - start:.1f} s"
    print(f"{took}: {unread} not read, {noted} with a note.", file=sys.stderr)


@contextmanager
def _open_table(path: Path | None) -> Iterator[IO[str]]:
    """Open the table's file, which takes its name only when it is complete; or standard output."""
    if path is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="replace")
        yield sys.stdout
        sys.stdout.flush()
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="replace", newline="") as stream:
            yield stream
        partial.replace(path)
    except OSError as error:
        raise PredictionError(f"'{path}' cannot be written: {_explain(error)}.") from None
    finally:
        partial.unlink(missing_ok=True)


def _make_safe(text: str) -> str:
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
