"""Draw ``who_dials_whom.svg``: hospitals dial out to one port of the coordinating site, and nobody dials a hospital.

python .github/pictures/who_dials_whom.py
"""

from pathlib import Path
from xml.sax.saxutils import escape

PICTURE = Path(__file__).with_suffix(".svg")
WIDTH, HEIGHT = 960, 470
TITLE = "Who dials whom"
SPOKEN = (
    "Three hospitals, each with its images and flower-client, open a connection to one port of the coordinating site. "
    "Weights and counts leave with their requests; the server's requests and the model come with the answers. No "
    "connection is opened towards a hospital."
)
INK, QUIET, LINE = "#1f2933", "#52606d", "#9aa5b1"
HOSPITAL, SERVER, PORT = "#e3f2ec", "#e6eefa", "#1f6f54"
_PORT_X, _PORT_Y = 604, 235


def draw() -> str:
    """Return the picture as SVG."""
    parts = [
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10" fill="#ffffff" stroke="{LINE}"/>',
        *(part for row, name in enumerate(("hospital_a", "hospital_b", "hospital_c")) for part in _hospital(row, name)),
        *_server(),
        *_between(),
        *_legend(),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
            ' role="img" aria-labelledby="title text" font-family="Helvetica, Arial, sans-serif" font-size="14">',
            f'<title id="title">{TITLE}</title>',
            f'<desc id="text">{escape(SPOKEN)}</desc>',
            *parts,
            "</svg>\n",
        ]
    )


def _hospital(row: int, name: str) -> list[str]:
    top = 24 + row * 126
    return [
        _box(24, top, 330, 110, HOSPITAL),
        _text(40, top + 24, name, bold=True),
        _box(40, top + 40, 92, 54, "#ffffff"),
        _text(86, top + 63, "images", middle=True),
        _text(86, top + 82, "stay here", middle=True, quiet=True),
        _box(150, top + 40, 188, 54, "#ffffff"),
        _text(244, top + 63, "flower-client", middle=True, bold=True),
        _text(244, top + 82, "policy, audit log, training", middle=True, quiet=True),
        _line(132, top + 67, 150, top + 67),
        _arrow(338, top + 67, _PORT_X - 4, _PORT_Y - 20 + 20 * row),
    ]


def _server() -> list[str]:
    return [
        _box(620, 50, 316, 320, SERVER),
        _text(644, 84, "coordinating site: flower-server", bold=True),
        f'<rect x="{_PORT_X}" y="{_PORT_Y - 34}" width="32" height="68" rx="4" fill="{PORT}"/>',
        _text(_PORT_X - 26, _PORT_Y + 54, "one port,", middle=True, small=True),
        _text(_PORT_X - 26, _PORT_Y + 70, "8443", middle=True, small=True),
        _box(676, 112, 236, 58, "#ffffff"),
        _text(794, 136, "gate", middle=True, bold=True),
        _text(794, 156, "knows the sites' keys, holds questions", middle=True, small=True),
        _box(676, 190, 236, 58, "#ffffff"),
        _text(794, 214, "SuperLink", middle=True, bold=True),
        _text(794, 234, "messages, on the loopback interface", middle=True, small=True),
        _box(676, 268, 236, 78, "#ffffff"),
        _text(794, 292, "ServerApp", middle=True, bold=True),
        _text(794, 312, "rounds, average, proof of the model", middle=True, small=True),
        _text(794, 332, "run folder: model, report, audit log", middle=True, small=True),
        _line(794, 170, 794, 190),
        _line(794, 248, 794, 268),
        _line(_PORT_X + 32, _PORT_Y, 656, _PORT_Y),
        _line(656, _PORT_Y, 656, 141),
        _line(656, 141, 676, 141),
    ]


def _between() -> list[str]:
    return [
        _text(480, 44, "TLS, every request signed", middle=True, bold=True),
        _text(480, 66, "out: weights and counts", middle=True, quiet=True),
        _text(480, 86, "back, as answers: requests", middle=True, quiet=True),
        _text(480, 104, "and the common model", middle=True, quiet=True),
    ]


def _legend() -> list[str]:
    return [
        _arrow(30, 434, 86, 434),
        _text(
            98, 439, "who opens the connection. Nobody opens one towards a hospital: it needs no open port.", quiet=True
        ),
    ]


def _box(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{LINE}"/>'


def _line(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{QUIET}" stroke-width="1.5"/>'


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """Return a line with a head at its second end; the head is a path, which every viewer draws."""
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    dx, dy = (x2 - x1) / length, (y2 - y1) / length
    base_x, base_y = x2 - 12 * dx, y2 - 12 * dy
    corners = [(x2, y2), (base_x - 5 * dy, base_y + 5 * dx), (base_x + 5 * dy, base_y - 5 * dx)]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{base_x:.1f}" y2="{base_y:.1f}" stroke="{PORT}" stroke-width="2.5"/>'
        f'<polygon points="{head}" fill="{PORT}"/>'
    )


def _text(
    x: int, y: int, words: str, *, bold: bool = False, middle: bool = False, quiet: bool = False, small: bool = False
) -> str:
    style = f'fill="{QUIET if quiet or small else INK}"'
    style += ' font-weight="bold"' if bold else ""
    style += ' text-anchor="middle"' if middle else ""
    style += ' font-size="12"' if small else ""
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)
