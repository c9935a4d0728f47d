"""Where the model errs: confusion matrices and ROC curves."""

from fedmed.report.drawing.markup import Numbers, render_figure, render_legend, render_section, show_name
from fedmed.report.drawing.palette import NUM_SHADES
from fedmed.report.drawing.plots import draw_roc
from fedmed.report.drawing.wording import count
from fedmed.report.sections.results import rank_sites, split_ends

MOST_SMALL_MATRICES = 12


def render_confusion(numbers: Numbers) -> str:
    """Return the pooled confusion matrix, and small ones of at most 12 sites."""
    classes = numbers.get("classes")
    heading = [f"<small>predicted</small><br>{show_name(name)}" for name in classes]
    rows = [
        [show_name(name), *_render_cells(numbers, "pooled", (), row, shares=True)] for row, name in enumerate(classes)
    ]
    if _has_other(numbers):
        heading.append("<small>wrong, not told</small><br>as what")
    intro = (
        "<p>A row is a true class, a column what the model said; right answers are on the diagonal. The percentage and "
        "the shade are shares of the row, the number below is images.</p>"
    )
    if _has_other(numbers):
        intro += (
            "<p>Wrong answers that are few are not told class by class; they are in the last column, and the cell that "
            "they would be in shows 0.</p>"
        )
    pooled = _render_matrix("All sites.", ["True class", *heading], rows, "matrix")
    small = _render_small_matrices(numbers)
    return render_section("confusion", "Confusion: what is taken for what", intro, pooled, small)


def _has_other(numbers: Numbers) -> bool:
    """Return whether some wrong answers are not told class by class."""
    return any(numbers.get("confusion").get("other_pooled", []))


def _render_cells(numbers: Numbers, which: str, site: tuple[str, ...], row: int, shares: bool) -> list[str]:
    path: tuple[str | int, ...] = ("confusion", which, *site, row)
    other: tuple[str | int, ...] = ("confusion", f"other_{which}", *site, row)
    places = [(images, (*path, column)) for column, images in enumerate(numbers.get(*path))]
    if _has_other(numbers):
        places.append((numbers.get(*other), other))
    total = max(sum(images for images, _ in places), 1)
    cells = []
    for images, place in places:
        share = f"{100 * images / total:.0f} %" if shares else ""
        step = round((NUM_SHADES - 1) * images / total)
        cells.append(f'<td class="q{step}">{share}{numbers.show(*place)}</td>')
    return cells


def _render_matrix(caption: str, columns: list[str], rows: list[list[str]], css: str) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "\n".join(f'<tr><th scope="row">{row[0]}</th>{"".join(row[1:])}</tr>' for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{css}"><caption><span>{caption}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _render_small_matrices(numbers: Numbers) -> str:
    available = numbers.get("confusion", "sites")
    ranked = [name for name in rank_sites(numbers) if name in available]
    if len(ranked) < 2:
        return ""
    classes = numbers.get("classes")
    key = "; ".join(f"{number} {show_name(name)}" for number, name in enumerate(classes, start=1))
    which = "The sites, the best balanced accuracy first."
    if len(ranked) > MOST_SMALL_MATRICES:
        half = MOST_SMALL_MATRICES // 2
        top, _, bottom = split_ends(ranked, half)
        which = (
            f"The {half} sites with the highest and the {half} with the lowest balanced accuracy of "
            f"{count(len(ranked), 'site')}; report.json has all."
        )
        ranked = top + bottom
    matrices = [_render_small_matrix(numbers, name) for name in ranked]
    intro = (
        f"<p>{which} True classes in rows, predicted ones in columns; images, shaded by their share of the row. "
        f"Classes: {key}.</p>"
    )
    return f'<h3>By site</h3>\n{intro}\n<div class="tiles">{"".join(matrices)}</div>'


def _render_small_matrix(numbers: Numbers, site: str) -> str:
    size = len(numbers.get("classes"))
    columns = [
        "true",
        *map(str, range(1, size + 1)),
        *(["?"] if _has_other(numbers) else []),
    ]
    rows = [[str(row + 1), *_render_cells(numbers, "sites", (site,), row, shares=False)] for row in range(size)]
    return _render_matrix(show_name(site), columns, rows, "small matrix")


def render_scores(numbers: Numbers) -> str:
    """Return the ROC curves of the pooled test images."""
    return render_section("scores", "ROC curves", f'<div class="grid">{_render_roc(numbers)}</div>')


def _render_roc(numbers: Numbers) -> str:
    classes = numbers.get("classes")
    curves = [
        (index, numbers.get("roc", name)["fpr"], numbers.get("roc", name)["tpr"])
        for index, name in enumerate(classes)
        if numbers.get("roc", name) is not None
    ]
    if not curves and numbers.get("figures", "auc").get("within_sites"):
        return (
            "<p>The sites tell no histograms of scores, so that no curve can be drawn; the areas under the curves are "
            "among the results by class.</p>"
        )
    left_out = [name for name in classes if numbers.get("roc", name) is None]
    caption = (
        "ROC of each class against all others. A curve that hugs the upper left corner separates the class well; "
        "the dashed diagonal is guessing."
    )
    if left_out:
        names = ", ".join(show_name(name) for name in left_out)
        caption += f" Not defined without images of the class and of others: {names}."
    return render_figure(draw_roc(curves), caption, render_legend(classes))
