"""How to read the page, and what was run."""

from collections.abc import Iterator, Mapping

import yaml
from pydantic import JsonValue

from fedmed.report.drawing.markup import Numbers, Table
from fedmed.report.drawing.wording import EXPLANATIONS, MERGED_EXPLANATIONS, label_figure, name_direction
from fedmed.report.sections.patients import name_id, name_ids
from fedmed.report.sections.values import Values

MIXED_UNITS = "patients or images"
PATIENTS = "patients"
INTERVALS = (
    "A 95 % interval says how far chance alone could move a figure, given how many images it rests on; several "
    "images of one {id}, where {ids} are known, count as fewer. Single shares (accuracy; sensitivity, "
    "specificity and precision of one class) have Wilson intervals, a little wider for one to three misses. Means of "
    "them are put together from these; areas under ROC curves have DeLong's interval on the scale of the log-odds; the "
    "worst and the largest difference of several classes or groups, intervals that hold for all of them at once; the "
    "Brier score, one from its standard error. F1, precision over all classes, kappa, correlation and calibration "
    "errors have bootstrap intervals: 1,000 draws from the tables, with half an image more in each cell. A spread "
    "over classes or groups has none. Images of one patient in several classes are taken for those of several "
    "patients: where all patients have five images of mixed classes, an interval holds the truth in 88 instead of 95 % "
    "of cases, and 11 instead of 5 % of comparisons of equal models end in a verdict. Intervals speak of these "
    "sites and these kinds of images only; a hospital that did not take part may see other results."
)
_OVER_PATIENTS = (
    "Where the notes say that intervals are drawn over this site's patients, those of figures are; the others are made "
    "as follows. "
)
GAPS = (
    "A gap between the best and the worst of several groups is hardly ever 0, even if all groups have the same "
    "chances, and its interval is no test. So in 1,000 sets the answers to the images of each class are dealt out anew "
    "between the groups. The p-value is the share of these sets with a gap at least as large. A gap is flagged when "
    "its p-value, adjusted for the figures (Westfall and Young) and the attributes (Holm) that are looked at, is at "
    "most 0.05. Only gaps in accuracy and balanced accuracy, equal opportunity, equalised odds and the largest gap of "
    "one class are tested, equalised odds only where all wrong answers are told class by class; the others are shown "
    "for completeness."
)
PAIRED = (
    "Two models at one site answer the same images, so the difference between them rests on the images on which only "
    "one of them is right. A site is called better or worse off only if the 95 % interval of the difference leaves out "
    "0 and a test agrees at 5 % in which each of these images goes either way by chance; its p-value is adjusted for "
    "the two figures that are looked at, each weighted by how precise it is."
)
TABLES = (
    "Images stay at the sites. For every evaluation a site sends tables that add up over the sites, for all its images "
    "and for each patient group: images by true and predicted class (and so the class counts of its evaluation "
    "images), how right answers vary between {ids}, histograms of the scores by class and areas under their "
    "curves, sums for calibration, and sums of the Brier score; where models are compared, also on how many images "
    "which of two models was right. All figures on this page are computed from these tables."
)
COARSE = (
    "Hospitals tell less of this. Wrong answers are told class by class only where they are of enough {ids}, the "
    "others of a class as one number; a figure that needs them is n/a where it could be more than 0.05 off. No "
    "histogram of scores or by class leaves a site. Its AUC does, so that the AUC of this page compares images within "
    "sites only; its calibration does in bins that are put together until each holds enough {ids}, and over such "
    "coarse bins the calibration error is smaller as a rule; and sums over images have three significant digits. "
    "Patient groups have counts only, unless a site allows more."
)
LOST = (
    "What is lost by that was measured on dermatoscopic images of four hospitals (HAM10000, three briefly trained "
    "models): the calibration error moved by at most 0.2 points, the Brier score by 0.4, balanced accuracy, F1, kappa "
    "and correlation by at most 1, and the macro AUC by 1.3, 1.7 and 6.5 points (of a single class by up to 16), since "
    "these hospitals see different diseases and images of different hospitals are not compared."
)

DISTILLATION = (
    "Beside its labels, every site learns from a teacher: a network that was trained on photographs by others, is "
    "public and stays as it is. A projection of the network's features is drawn towards the teacher's features of the "
    "same image (Effective Knowledge Distillation, after Elbatel, Martí and Li, FoPro-KD, IEEE Transactions on Medical "
    "Imaging 43(3), 2024). The Fourier prompt, which raises or lowers frequencies of the image that the teacher sees, "
    "is a reconstruction: its authors have published no code of it. Teacher, projection and prompt are no part of the "
    "released model."
)


def describe_reading(numbers: Numbers) -> Values:
    """Return the definitions of the figures that the page shows."""
    directions = {key: figure["better"] for key, figure in numbers.get("figures").items()}
    for gaps in numbers.get("gaps").values():
        directions |= {key: gap["better"] for key, gap in gaps.items()}
    explanations = EXPLANATIONS | (MERGED_EXPLANATIONS if is_coarse(numbers) else {})
    told = {
        TABLES: True,
        f"{COARSE} {LOST}": is_coarse(numbers),
        f"{_OVER_PATIENTS if is_own_page(numbers) else ''}{INTERVALS}": True,
        GAPS: bool(numbers.get("gaps")),
        PAIRED: bool(numbers.get("benefit")),
        DISTILLATION: bool(numbers.get("distillation")),
    }
    words = {"id": name_id(numbers), "ids": name_ids(numbers)}
    return {
        "paragraphs": [text.format(**words) for text, is_told in told.items() if is_told],
        "is_coarse": is_coarse(numbers),
        "unit": name_unit(numbers),
        "is_mixed": numbers.get("thresholds").get("unit", MIXED_UNITS) == MIXED_UNITS,
        "with_bins": "k_bin" in numbers.get("thresholds"),
        "terms": [
            (f"{label_figure(key)} ({name_direction(better)})", explanations[key].format(**words))
            for key, better in directions.items()
            if key in explanations
        ],
    }


def is_coarse(numbers: Numbers) -> bool:
    """Return whether some site tells less than a simulation, since it has thresholds."""
    return bool(max(numbers.get("thresholds", key) for key in ("k", "k_row")) > 1)


def is_own_page(numbers: Numbers) -> bool:
    """Return whether this is the page that a site makes for itself of a released model."""
    return "flower-client" in str(numbers.get("command"))


def name_unit(numbers: Numbers) -> str:
    """Return what thresholds count; an older report does not say."""
    return str(numbers.get("thresholds").get("unit", MIXED_UNITS)).replace(PATIENTS, name_ids(numbers))


def describe_run(numbers: Numbers) -> Values:
    """Return settings, environment, seed and the command that repeats the run."""
    settings = yaml.safe_dump(numbers.get("config"), sort_keys=False, allow_unicode=True)
    rows = [[name, str(value)] for name, value in _flatten(numbers.get("environment"))]
    command = numbers.get("command")
    return {
        "command": command,
        "with_folders": "NEW_FOLDER" in command,
        "step": _describe_step(numbers),
        "settings": settings,
        "environment": Table("Software and hardware.", ["Part", "Value"], rows) if rows else None,
    }


def _describe_step(numbers: Numbers) -> str:
    """Return how the server went on from each average, nothing where that is the next model."""
    step: dict[str, str | float] = numbers.get("config").get("server_step") or {"kind": "average"}
    if step["kind"] == "average":
        return ""
    return f"{step['kind']} ({', '.join(f'{key} {value}' for key, value in step.items() if key != 'kind')})"


def _flatten(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe_notes(numbers: Numbers) -> Values | None:
    """Return the notes, None where there are none."""
    notes = numbers.get("notes")
    return {"notes": notes} if notes else None
