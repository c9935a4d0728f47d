"""What ``predict.py`` is asked and what it writes: the table of answers, and a page of images that need a person.

Lies beside ``predict.py`` in every exported model, and like it needs nothing of the library.
"""

import argparse
import base64
import csv
import hashlib
import html
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

MOST_SHOWN = 100
"""Images of each part of a page."""
SIDE = 160
SHORTEST, LONGEST = 0.1, 86_400.0
"""Seconds between two looks into a folder."""
TITLE = "Images that need a person"
KINDS = {"csv": (".csv", b"model,note"), "report": (".html", TITLE.encode())}
"""Ending of what is written, and what such a file holds at its beginning."""
MOST_READ = 65_536
_STYLE = (
    "body{font:16px/1.4 system-ui,sans-serif;margin:1.5rem;max-width:75rem;color:#1a1a1a;background:#fff}"
    ".banner{border-left:4px solid #b3261e;padding:.3rem .8rem;font-weight:600}"
    "ul{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:1rem;list-style:none;padding:0}"
    "li{border:1px solid #767676;border-radius:4px;padding:.5rem;overflow-wrap:anywhere;break-inside:avoid}"
    "img{display:block;max-width:100%;margin:0 auto .4rem}p{margin:.3rem 0}"
    "@media (prefers-color-scheme:dark){body{color:#eee;background:#161616}}"
)


def parse(arguments: Sequence[str] | None, banner: str, number: int, folder: Path) -> argparse.Namespace:
    """Read the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        None: those of the process.
    banner : str
        What the software is not.
    number : int
        Format of the models that it opens.
    folder : Path
        The model's, unless one is named.
    """
    parser = argparse.ArgumentParser(
        description=f"Classify JPEG and PNG images with an exported model. {banner}",
        epilog="exit code: 0 finished (single files may be unreadable); 1 explained problem; 2 wrong arguments",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, or folders to search")
    parser.add_argument("--version", action="version", version=f"predict.py, for models of the format {number}")
    parser.add_argument("--model", type=Path, default=folder, metavar="DIR", help="default: here")
    parser.add_argument("--key", type=Path, metavar="FILE", help="public key with which the model must be signed")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="where to write the table (default: standard output)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (default: 16)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads (default: one for each core)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="a page (HTML) with the images that need a person")
    parser.add_argument("--watch", type=Path, metavar="FOLDER", help="answer each new image in it once, into --csv")
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two looks (default: 5)")
    parser.add_argument("--once", action="store_true", help="with --watch: end after what is there now")
    options = parser.parse_args(arguments)
    if options.watch and (options.images or options.report or not options.csv):
        parser.error("--watch needs --csv, and goes without other images and --report")
    if options.watch and not options.watch.is_dir():
        parser.error(f"'{options.watch}' is no folder")
    if not options.watch and not options.images:
        parser.error("name images, or folders of them")
    if not SHORTEST <= options.every <= LONGEST:
        parser.error(f"allowed is --every from {SHORTEST:g} to {LONGEST:g}")
    if options.batch_size < 1 or options.threads < 0:
        parser.error("allowed are --batch-size from 1 and --threads from 0")
    for option, path in (("csv", options.csv), ("report", options.report)):
        suffix, holds = KINDS[option]  # a watched folder's table is continued, and looked at when it is read
        if path is not None and (problem := _find_problem(path, suffix, b"" if options.watch else holds)):
            parser.error(f"--{option} {path}: {problem}. Name another file")
    return options


def _find_problem(path: Path, suffix: str, holds: bytes) -> str | None:
    """Return why a file is not written, so that nothing but an earlier answer is ever replaced."""
    if path.suffix.lower() != suffix:
        return f"its name must end in {suffix}"
    try:
        if not path.exists():
            return None
        if not path.is_file():
            return "it is there, and is no file"
        with path.open("rb") as stream:
            head = stream.read(MOST_READ)
    except OSError as error:
        return str(error.strerror)
    return None if not head or holds in head else "it is there, and holds something else"


def name_file(make_safe: Callable[[str], str], file: Path) -> str:
    """Return a file's name for the table; of one that cannot stand there as it is, with a number of its own."""
    shown = make_safe(str(file))
    return shown if shown == str(file) else f"{shown} ({hashlib.sha256(os.fsencode(file)).hexdigest()[:8]})"


def write_table(
    columns: Sequence[str],
    rows: Iterable[list[str]],
    files: Sequence[Path],
    path: Path | None,
    make_safe: Callable[[str], str],
) -> list[dict[str, str]]:
    """Write a row for each file, and return them by the names of their columns.

    Parameters
    ----------
    columns : sequence of str
        Heads of the columns, ``file`` first and ``note`` last.
    rows : iterable of list of str
        Cells of each file.
    files : sequence of Path
        What they are of, in the same order.
    path : Path, optional
        Takes its name only when it is complete; None: standard output.
    make_safe : callable
        Gives a text as it may stand in the table.
    """
    start, unread, noted, end = time.monotonic(), 0, 0, ""
    told = []
    with _open_table(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for number, (file, (_, *cells)) in enumerate(zip(files, rows, strict=True), start=1):
            row = [name_file(make_safe, file), *cells]
            writer.writerow(row)
            told.append(dict(zip(columns, row, strict=True)))
            unread, noted = unread + (row[1] == ""), noted + (row[1] != "" and row[-1] != "")
            if sys.stderr.isatty() and (path or not sys.stdout.isatty()):
                end = "\n"
                print(f"\r{number} of {len(files)} files", end="", file=sys.stderr, flush=True)
    took = f"{end}{len(files)} files in {time.monotonic() - start:.1f} s"
    print(f"{took}: {unread} not read, {noted} with a note.", file=sys.stderr)
    return told


@contextmanager
def _open_table(path: Path | None) -> Iterator[IO[str]]:
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
    finally:
        partial.unlink(missing_ok=True)


def choose_shown(rows: Sequence[dict[str, str]]) -> tuple[list[int], list[int], list[int]]:
    """Return the places of the rows with an alert, of others in the order of their certainty, and of unread files."""
    read = [place for place, row in enumerate(rows) if row["probability"]]
    alerts = [place for place in read if rows[place].get("alert") == "yes"]
    others = sorted((p for p in read if p not in set(alerts)), key=lambda place: float(rows[place]["probability"]))
    return alerts, others, [place for place, row in enumerate(rows) if not row["probability"]]


def write_page(  # noqa: PLR0917
    path: Path,
    files: Sequence[Path],
    rows: Sequence[dict[str, str]],
    banner: str,
    decode: Callable[[Path], Image.Image],
    rule: tuple[Sequence[str], float | None] = ((), None),
) -> None:
    """Write one page, complete in itself, with the images that need a person.

    Parameters
    ----------
    path : Path
        An HTML file, which takes its name only when it is complete.
    files : sequence of Path
        The images.
    rows : sequence of dict
        Their answers, in the same order, by column.
    banner : str
        What the software is not.
    decode : callable
        Gives an image of a file.
    rule : (sequence of str, float or None)
        The columns of the alert classes, and the log-odds of their probability from which on there is an alert; None
        without an operating point.
    """
    alerts, others, unread = choose_shown(rows)
    has_alerts = any("alert" in row for row in rows)
    body = [
        f'<p class="banner">{html.escape(banner)}</p>',
        f"<h1>{TITLE}</h1>",
        f"<p>{len(rows)} files: {len(alerts)} with an alert, {len(unread)} not read.</p>"
        if has_alerts
        else f"<p>{len(rows)} files, {len(unread)} not read. This model has no operating point, so no alerts.</p>",
        f"<p>{_explain_page(*rule)}</p>",
    ]

    def show(title: str, places: Sequence[int]) -> None:
        items = "".join(_show_image(files[place], rows[place], decode, rule[0]) for place in places[:MOST_SHOWN])
        more = len(places) - MOST_SHOWN
        body.append(f"<h2>{title}</h2>\n<ul>{items}</ul>" + (f"<p>{more} more: in the table.</p>" if more > 0 else ""))

    if alerts:
        show("Alerts", alerts)
    if others:
        show("The least certain of the others", others[: max(10, len(others) // 10)])
    if unread:
        lines = [f"{rows[place]['file']}: {rows[place]['note']}" for place in unread]
        names = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        body.append(f"<h2>Not read</h2>\n<ul>{names}</ul>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    text = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )
    with _open_table(path) as stream:
        stream.write(text)


def _explain_page(alert_classes: Sequence[str], threshold: float | None) -> str:
    """Return what an alert is, and what stands below an image."""
    below = "Below an image: its most probable class, with its probability"
    if threshold is None:
        return f"{below}."
    least, names = 1 / (1 + math.exp(-threshold)), html.escape(", ".join(alert_classes))
    return (
        f"An alert: the alert classes ({names}) have together a probability of at least {least:.3f}, whichever class "
        f"is the most probable. An image without an alert may still show one of them. {below}, and that of the alert "
        "classes together."
    )


def _show_image(
    file: Path, row: dict[str, str], decode: Callable[[Path], Image.Image], alert_classes: Sequence[str]
) -> str:
    image = decode(file)
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    source = base64.b64encode(content.getvalue()).decode("ascii")
    name, note = html.escape(row["file"]), html.escape(row["note"])
    answer = html.escape(f"{row['predicted']} ({float(row['probability']):.2f})")
    share = sum(float(row[column]) for column in alert_classes)
    together = f"<p>alert classes {share:.2f}</p>" if alert_classes else ""
    return (
        f'<li><img src="data:image/jpeg;base64,{source}" alt="{name}" width="{image.width}" height="{image.height}">'
        f"<p>{name}</p><p><strong>{answer}</strong></p>{together}" + (f"<p>{note}</p>" if note else "") + "</li>"
    )
