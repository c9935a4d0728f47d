"""``python simulations/benchmarks/report_picture.py RUN``: the picture of a report's first page in README.md.

A browser (chromium) takes the picture of the report of a run, which is drawn again before; the end of the first page is
where the table of contents begins. The run of the picture in README.md: ``simulations/run.py`` with ``--set rounds=6
--set model.name=resnet18 --set data.image_size=32 --set loss.cws=0``.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from fedmed.report.__main__ import main as draw_report

PICTURE = Path(__file__).parents[2] / ".github" / "pictures" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH, MOST_HEIGHT = 1000, 2400
COLOURS = 64
MOST_BYTES = 300_000
# The picture is of the first page: what comes after it is not shown, and the page is as high as what is left.
_FIRST_PAGE_ONLY = "<style>nav.contents, .first ~ * { display: none; } .page { padding-bottom: 1rem; }</style></head>"


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write; default: .github/pictures/report.png")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"No browser was found (looked for {', '.join(BROWSERS)}).", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="fedmed-picture-") as folder:
        if draw_report([str(options.run), "--out", folder]):
            return 1
        data = crop_picture(take_picture(browser, Path(folder)))
    assert len(data) < MOST_BYTES, f"the picture has {len(data):,} bytes"
    options.out.write_bytes(data)
    print(f"{options.out}: {len(data):,} bytes")
    return 0


def take_picture(browser: str, folder: Path) -> Path:
    """Return the file with a picture of the page's beginning."""
    page, file = folder / "first.html", folder / "picture.png"
    page.write_text((folder / "index.html").read_text(encoding="utf-8").replace("</head>", _FIRST_PAGE_ONLY, 1))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    size = [f"--window-size={WIDTH},{MOST_HEIGHT}", f"--user-data-dir={folder / 'profile'}"]
    command = [browser, *options, *size, f"--screenshot={file}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603  # our own page
    return file


def crop_picture(file: Path) -> bytes:
    """Return the picture without the empty space below the page, as a PNG of few colours."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    background = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    box = ImageChops.difference(picture, background).getbbox()
    bottom = picture.height if box is None else min(box[3] + 16, picture.height)
    cut = picture.crop((0, 0, WIDTH, bottom))
    written = io.BytesIO()
    cut.quantize(COLOURS).save(written, "PNG", optimize=True)
    return written.getvalue()


if __name__ == "__main__":
    sys.exit(main())
