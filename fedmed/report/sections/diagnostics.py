"""Where the model errs: confusion matrices and ROC curves."""

from markupsafe import Markup

from fedmed.report.drawing.markup import Numbers
from fedmed.report.drawing.palette import NUM_SHADES, make_legend
from fedmed.report.drawing.plots import draw_roc
from fedmed.report.drawing.templates import render_macro
from fedmed.report.drawing.wording import count
from fedmed.report.sections.method import is_coarse
from fedmed.report.sections.results import is_ranked, rank_sites, say_order, split_ends
from fedmed.report.sections.values import Values

MOST_SMALL_MATRICES = 12
MatrixCell = tuple[int, str, Markup]
"""Step of the shade, share of the row in words, images."""


def describe_confusion(numbers: Numbers) -> Values:
    """Return the pooled confusion matrix."""
    classes = numbers.get("classes")
    return {
        "classes": classes,
        "with_other": _has_other(numbers),
        "is_coarse": is_coarse(numbers),
        "pooled": [_list_cells(numbers, "pooled", (), row) for row in range(len(classes))],
    }


def describe_site_confusion(numbers: Numbers) -> Values | None:
    """Return the confusion matrices of at most 12 sites, None where there is only one."""
    classes = numbers.get("classes")
    available = numbers.get("confusion", "sites")
    ranked = [name for name in rank_sites(numbers) if name in available]
    if len(ranked) < 2:
        return None
    shown, which = ranked, f"The sites, {say_order(numbers)}."
    if len(ranked) > MOST_SMALL_MATRICES:
        half = MOST_SMALL_MATRICES // 2
        top, _, bottom = split_ends(ranked, half)
        shown = top + bottom
        which = (
            f"The first {half} and the last {half} sites by name of {count(len(ranked), 'site')}; report.json has all."
            if not is_ranked(numbers)
            else f"The {half} sites with the highest and the {half} with the lowest balanced accuracy of "
            f"{count(len(ranked), 'site')}; report.json has all."
        )
    return {
        "classes": classes,
        "with_other": _has_other(numbers),
        "is_coarse": is_coarse(numbers),
        "which": which,
        "sites": [
            (name, [_list_cells(numbers, "sites", (name,), row) for row in range(len(classes))]) for name in shown
        ],
    }


def _has_other(numbers: Numbers) -> bool:
    """Return whether some wrong answers are not told class by class."""
    return any(numbers.get("confusion").get("other_pooled", []))


def _list_cells(numbers: Numbers, which: str, site: tuple[str, ...], row: int) -> list[MatrixCell]:
    """Return the cells of a true class; one that hospitals do not tell has a dash, never a 0 that nobody knows of."""
    path: tuple[str | int, ...] = ("confusion", which, *site, row)
    other: tuple[str | int, ...] = ("confusion", f"other_{which}", *site, row)
    places = [(images, (*path, column)) for column, images in enumerate(numbers.get(*path))]
    not_told = numbers.get(*other) if _has_other(numbers) else 0
    total = sum(images for images, _ in places) + not_told
    # Right answers are told of every class that is.
    cells = [
        _draw_cell(numbers, place, images, total, bool(not_told) and column != row)
        for column, (images, place) in enumerate(places)
    ]
    if _has_other(numbers):
        cells.append(_draw_cell(numbers, other, not_told, total, False))
    return cells


def _draw_cell(numbers: Numbers, place: tuple[str | int, ...], images: int, total: int, has_untold: bool) -> MatrixCell:
    """Return a cell: a dash where it is not told, and no share where the class has no image."""
    if images == 0 and (has_untold or (total == 0 and is_coarse(numbers))):
        return 0, "", render_macro("not_told")
    share = "" if total == 0 else f"{100 * images / total:.0f} %"
    return round((NUM_SHADES - 1) * images / max(total, 1)), share, numbers.show(*place)


def describe_scores(numbers: Numbers) -> Values:
    """Return the ROC curves of the pooled test images."""
    classes = numbers.get("classes")
    curves = [
        (index, numbers.get("roc", name)["fpr"], numbers.get("roc", name)["tpr"])
        for index, name in enumerate(classes)
        if numbers.get("roc", name) is not None
    ]
    told = bool(curves) or not numbers.get("figures", "auc").get("within_sites")
    return {
        "told": told,
        "drawing": draw_roc(curves) if told else None,
        "legend": make_legend(classes),
        "left_out": [name for name in classes if numbers.get("roc", name) is None],
    }
