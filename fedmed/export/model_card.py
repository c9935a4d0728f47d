"""``model_card.md``: what a model is for, how well it does and where, and what it must not be used for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from fedmed.clinical.entry import say_operating_point
from fedmed.export.manifest import NOTICE, ModelManifest, PooledComparison
from fedmed.storage.environment import TeacherOrigin

FIGURES = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "macro_f1": "macro F1", "auc": "macro AUC"}
BY_CLASS = {"sensitivity": "sensitivity", "specificity": "specificity"}
_MARKUP = str.maketrans({mark: f"\\{mark}" for mark in "\\|*_`[]<>#&~!$"})


class Figure(TypedDict, total=False):
    """A figure, of all classes or of one."""

    value: float | None
    interval: list[float] | None
    n: int
    """Images."""
    by_class: "dict[str, Figure] | None"


class ReportedSite(TypedDict, total=False):
    """What a report says of a site, as far as the card needs it."""

    train_images: int | None
    test: dict[str, Figure] | None


class ReportedTeacher(TypedDict):
    """What a report says of the distillation, as far as the card needs it."""

    teacher: TeacherOrigin | None


class ReportedThresholds(TypedDict, total=False):
    """Below how many patients or images sites withhold their tables; 1 withholds nothing."""

    k: int
    k_row: int
    k_bin: int


class ReportData(TypedDict):
    """Content of ``report.json``, as far as the card needs it."""

    sites: dict[str, ReportedSite]
    classes: list[str]
    figures: dict[str, Figure]
    """Of all sites together."""
    synthetic: NotRequired[bool]
    distillation: NotRequired[ReportedTeacher | None]
    thresholds: NotRequired[ReportedThresholds | None]


def read_report(folder: Path) -> ReportData | None:
    """Return the content of a report's ``report.json``, for the card; None where there is none."""
    file = folder / "report.json"
    content: ReportData | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return content


def write_model_card(manifest: ModelManifest, report: ReportData | None = None) -> str:
    """Return the card as Markdown.

    Parameters
    ----------
    manifest : ModelManifest
        Of the deploy form; the hashes are not needed.
    report : ReportData, optional
        Of the same model. Without it the card says that no figures are known.
    """
    compared, point = manifest["proof"].get("sites"), manifest.get("operating_point")
    parts = [
        f"# {_plain(manifest['title'])}\n\n**{NOTICE}** No decision about a patient may rest on it.",
        _describe_use(manifest),
        _describe_data(manifest, report),
        _describe_results(report),
        _describe_proof(manifest),
        *([] if compared is None else [_section("Compared at the sites", _describe_comparison(compared))]),
        *([] if point is None else [_section("Alerts", say_operating_point(point, _list(point["alert_classes"])))]),
        _describe_limits(manifest, report),
        _describe_handling(),
    ]
    return "\n\n".join(parts) + "\n"


def _describe_use(manifest: ModelManifest) -> str:
    plan, release = manifest["plan"], manifest["release"]
    by = f", by {_plain(release['by'])}" if release.get("by") else ""
    if release.get("kind") in {"manual", "two_persons"} and not by:
        by = ", not decided yet: this is a candidate and no person has released it"
    doubts = [f"**Warning.** {_plain(text)}" for text in release.get("doubts", [])]
    return _section(
        "Intended use",
        *doubts,
        "For research on classifiers of images of the kind described below. Given one image, the model states for each "
        f"of {len(manifest['classes'])} classes how probable it holds it: {_list(manifest['classes'])}. It knows no "
        "other class: an image of anything else gets probabilities that sum to 1 all the same.",
        f"Network `{_code(plan['model']['name'])}`, trained in {plan['rounds']} rounds, of which round "
        f"{manifest['chosen_round']} was chosen on validation images"
        + (f"; for the site {_plain(manifest['site'])} only, with its own BatchNorm" if manifest.get("site") else "")
        + f". Study: {_plain(plan['study'])}; approval: {_plain(plan['approval'] or 'none stated')}. "
        f"Release: {_plain(release.get('kind', 'not stated').replace('_', ' '))}{by}.",
    )


def _describe_data(manifest: ModelManifest, report: ReportData | None) -> str:
    paragraphs = []
    if report and report.get("synthetic"):
        paragraphs.append(
            "**The images are synthetic.** The figures say that the software works, nothing about patients."
        )
    if report:
        rows = [[_plain(name), _number(site.get("train_images"))] for name, site in report["sites"].items()]
        paragraphs.append("Trained on images of these sites, none of which left its site:")
        paragraphs.append(_table(["site", "training images"], rows))
    paragraphs += _describe_distillation(manifest, report)
    expected = manifest["expected"]
    if expected:
        basis = expected.get("basis", "of the training images")
        shown = [f"{key} {expected[key][0]:g} to {expected[key][1]:g}" for key in _RANGES if expected.get(key)]
        shown += [f"colour: {_plain(expected['colour'])}"] if expected.get("colour") else []
        paragraphs.append(
            f"`predict.py` writes a note beside every image outside these ranges ({_plain(basis)}): "
            f"{'; '.join(shown)}. Mean and standard deviation are of the pixel values, 0 to 1."
        )
    else:
        paragraphs.append(
            "Nothing is known of the size and look of the training images, so `predict.py` notes nothing."
        )
    return _section("Data", *paragraphs)


def _describe_distillation(manifest: ModelManifest, report: ReportData | None) -> list[str]:
    """Return what the sites learned from beside the labels, as far as it is known."""
    kind = manifest.get("fopro")
    if kind == "disabled":
        return ["`fopro: disabled`. The sites learned from their labels alone, not from another network."]
    if kind == "self":
        return [
            "`fopro: self`. Beside the labels, the sites held their features near to those of the global model of the "
            "round before. This is not FoPro-KD."
        ]
    told = report.get("distillation") if report else None
    teacher = manifest.get("teacher") or (told["teacher"] if told else None)
    return [] if teacher is None else [_describe_teacher(teacher)]


def _describe_teacher(teacher: TeacherOrigin) -> str:
    source, digest = _plain(teacher.get("source", "unknown")), teacher.get("sha256")
    shown = f"{source}; SHA-256 `{_code(digest)}`" if digest else source
    return (
        f"`fopro: client`. Beside the labels, the sites learned from the features of a frozen public network, "
        f"{_plain(teacher.get('name', 'unknown'))} ({shown}), after FoPro-KD; the Fourier prompt of that method is a "
        "reconstruction. Nothing of it is in the released files."
    )


_ALLOWED = "allowed: 1e-4 or, if that is more, 2e-6 of the largest logit; probabilities 1e-4"
_RANGES: tuple[Literal["width", "height", "mean", "std"], ...] = ("width", "height", "mean", "std")


def _describe_results(report: ReportData | None) -> str:
    if not report:
        return _section("Results", "No report lies beside this model, so no figures are stated here.")
    sites = {"**all sites**": report["figures"]} | {
        _plain(name): site.get("test") or {} for name, site in report["sites"].items()
    }
    rows = [
        [name, _number(_count(figures)), *(_show(figures.get(key)) for key in FIGURES)]
        for name, figures in sites.items()
    ]
    classes = [
        [_plain(name), *(_show(_find_class(report["figures"], key, name)) for key in BY_CLASS)]
        for name in report["classes"]
    ]
    return _section(
        "Results",
        "On test images that were scored once, with the train form of the chosen round; 95 % intervals in brackets.",
        _table(["site", "test images", *FIGURES.values()], rows),
        "All sites together, by class:",
        _table(["class", *BY_CLASS.values()], classes),
    )


def _describe_proof(manifest: ModelManifest) -> str:
    proof, sizes = manifest["proof"], manifest["sizes"]
    rows = [
        [name, _number(form.get("parameters")), f"{form['bytes'] / 2**20:.1f}", f"{form['latency_ms']:.1f}"]
        for name, form in (
            ("train form", sizes["train_form"]), ("deploy form", sizes["deploy_form"]), ("ONNX file", sizes["onnx"])
        )
    ]  # fmt: skip
    onnx, machine = proof["onnx"], sizes["machine"]
    return _section(
        "What was deployed",
        f"The network was merged into its deploy form ({proof['merged_places']} places). On {_plain(proof['images'])}, "
        f"the logits of the ONNX file differ from those of the trained network by {onnx['max_abs_error']:.1e} at most "
        f"({_ALLOWED}); the class is the same for {onnx['num_agreeing']} of the "
        f"{onnx['num_images'] - onnx['num_ties']} images that are no ties. "
        f"`{_code(proof['details'])}` has the details.",
        _table(["form", "parameters", "MiB", "ms for one image"], rows),
        f"Times on a CPU ({_plain(machine['processor'])}, {machine['threads']} threads), which may have been busy.",
    )


def _describe_comparison(pooled: PooledComparison) -> str:
    """Return what the sites found before the release; see :func:`fedmed.export.release_form.pool`."""
    silent = pooled.get("num_silent", 0)
    others = f" {silent} further sites gave no comparison." if silent else ""
    if not pooled["num_images"]:
        return (
            "**No site has compared the forms on images**, so this model was released on the proof without images "
            f"alone, which is block by block in float64.{others}"
        )
    onnx, rows = pooled["onnx"], pooled["paired"]
    changed = sum(row[1] + row[2] for row in rows)
    return (
        f"{pooled['num_sites']} sites compared train form, deploy form and ONNX file on {pooled['num_images']} of "
        f"their own test images before the release. The largest difference of a logit was {onnx['max_abs_error']:.1e} "
        f"({_ALLOWED}, at each site); {onnx['num_agreeing']} of the "
        f"{onnx['num_images'] - onnx['num_ties']} images that are no ties have the same class; {changed} images "
        f"are right in one form and wrong in the other.{others}"
    )


def _describe_limits(manifest: ModelManifest, report: ReportData | None) -> str:
    limits = [
        "It has not been shown to help patients, and no authority has approved it.",
        "It was tested on images of the sites named above. Other devices, populations and ways of taking images may "
        "give worse results, without a sign of it in the probabilities.",
        _describe_calibration(manifest),
        "Figures from few images are uncertain: read the intervals.",
        "The weights may reveal something about training images to whoever examines them.",
    ]
    if report and _is_anything_withheld(report.get("thresholds") or {}):
        limits.append("Sites withhold figures of small groups, so rare classes may be missing from the results.")
    if manifest["batch_norm"] == "local":
        limits.append("Its BatchNorm is one site's own; at another site it is not the model that was tested there.")
    return _section("Limits", "\n".join(f"- {limit}" for limit in limits))


def _is_anything_withheld(thresholds: ReportedThresholds) -> bool:
    return max(thresholds.get("k", 1), thresholds.get("k_row", 1), thresholds.get("k_bin", 1)) > 1


def _describe_calibration(manifest: ModelManifest) -> str:
    fitted = manifest.get("calibration")
    limit = "Probabilities are not guaranteed to be calibrated; the report states the calibration error."
    if not fitted:
        return f"{limit} They are the softmax of the network's outputs; no temperature was fitted."
    return (
        f"{limit} `predict.py` divides the network's outputs by the temperature {manifest['temperature']:.3f}, fitted "
        f"on {fitted['n']:,} validation images of the sites; whoever runs the network alone has to do the same. Mean "
        f"negative log-likelihood of these images: {fitted['nll_before']:.4f} before, {fitted['nll_after']:.4f} after."
    )


def _describe_handling() -> str:
    return _section(
        "How to use it",
        "    python -m venv .venv && .venv/bin/pip install -r requirements.txt\n"
        "    .venv/bin/python predict.py IMAGE_OR_FOLDER... --csv out.csv",
        "Columns: `file`, one probability for each class, `model` (SHA-256 of `model.onnx`) and `note`. A file that "
        "cannot be read has a row with the reason and no probabilities. Rows with a note are of images unlike those "
        "that the model was made with: look at them before anything is concluded from them.",
        "In PyTorch, with fedmed installed: `from load_model import load_model`. `manifest.json` states how a file "
        "becomes the network's input, in words and numbers, and the hashes of all files.",
    )


def _section(title: str, *paragraphs: str) -> str:
    return "\n\n".join([f"## {title}", *paragraphs])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(figure: Figure | None) -> str:
    if not figure or figure.get("value") is None:
        return "n/a"
    interval = figure.get("interval")
    return f"{figure['value']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _find_class(figures: Mapping[str, Figure], key: str, name: str) -> Figure | None:
    return (figures.get(key, Figure()).get("by_class") or {}).get(name)


def _count(figures: Mapping[str, Figure]) -> int | None:
    return figures.get("accuracy", Figure()).get("n")


def _number(value: int | None) -> str:
    return "n/a" if value is None else f"{value:,}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(_plain, names))


def _plain(text: object) -> str:
    """Return a text that came from elsewhere, fit for Markdown: one line, in which nothing is a mark."""
    return _flatten(text).translate(_MARKUP)


def _code(text: object) -> str:
    """Return a text that came from elsewhere, fit to stand between backticks, where no mark counts but these."""
    return _flatten(text).replace("`", "'").replace("|", "/")


def _flatten(text: object) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(text))
