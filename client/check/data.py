"""Checks of this site's images and labels. They are split in the check's own folder, as they will be for training."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import torch
from pydantic import JsonValue

from client.check.context import CannotCheckError, CheckContext, CheckResult
from client.check.results import CheckFailedError
from client.hospital.bounded import bound_groups
from client.hospital.exclusions import RECORD_FILE
from client.hospital.measurements import advise_bands, describe_measurements, list_measurements
from client.hospital.site_data import Hospital
from fedmed.config import FairnessConfig
from fedmed.data import ImagePart, count_classes
from fedmed.data.checks import SKIPPED_FILE
from fedmed.errors import DataError, suggest_nearest

WHOLE = "whole"
"""Folder of a copy of the site with all its images."""
SAMPLE_IMAGES = 200
_UNKNOWN = "unknown"
_MANY_VALUES = 20
_MUCH_UNKNOWN = 0.2
_SPLIT_KEYS = ("settings", "fingerprint", "classes")


def check_data(context: CheckContext, name: str) -> CheckResult:
    """Read the labels, try every file and split the images into train, validation and test."""
    state = context.folder / WHOLE
    _copy_record(Path(context.config.state_dir), state)
    context.hospital = Hospital(context.config.model_copy(update={"state_dir": str(state), "device": "cpu"}))
    try:
        context.site = context.hospital.open_site()
    except DataError as error:
        skipped = _keep_skipped(context, state)
        if "max_bad_share" not in str(error):
            raise
        limit = f"{context.config.data.max_bad_share:.1%} of them (data.max_bad_share)"
        raise CheckFailedError(f"{_describe_skipped(skipped)}; allowed: {limit}.", _advise_skipped(context)) from None
    site = context.site
    parts = (site.data.train, site.data.validation, site.data.test)
    found = "{} images: {} for training, {} for validation, {} for the test".format(
        sum(map(len, parts)), *map(len, parts)
    )
    if not len(site.data.validation) or not len(site.data.test):
        return CheckResult(
            name, "warning", found, "A part without images gives no figures for this site. Add images if there are any."
        )
    skipped = _keep_skipped(context, state)
    if skipped:
        return CheckResult(name, "warning", f"{found}. {_describe_skipped(skipped)}", _advise_skipped(context))
    return CheckResult(name, "ok", found)


def _copy_record(own: Path, state: Path) -> None:
    """Copy what this site has told and left out so far, from which follows who is left out now."""
    state.mkdir(parents=True, exist_ok=True)
    if (own / RECORD_FILE).is_file():
        shutil.copy2(own / RECORD_FILE, state / RECORD_FILE)
    if (own / "told_rows").is_dir():
        shutil.copytree(own / "told_rows", state / "told_rows", dirs_exist_ok=True)


def check_splits(context: CheckContext, name: str) -> CheckResult:
    """Compare the split with the one that this site has used so far."""
    old = _read_index(Path(context.config.state_dir) / "splits")
    new = _read_index(context.folder / WHOLE / "splits")
    if old is None or new is None:
        return CheckResult(name, "ok", "new: this site has not taken part yet")
    changed = [key for key in _SPLIT_KEYS if old.get(key) != new.get(key)]
    if changed:
        raise CheckFailedError(
            f"The images or their settings were changed since this site began ({', '.join(changed)} differ).",
            "A changed table would mix training and test images, so it is refused. Put the old table and `data` "
            "settings back, or begin anew for a new study: flower-client --forget.",
        )
    return CheckResult(name, "ok", "the same images are for training, validation and test as before")


def check_exclusions(context: CheckContext, name: str) -> CheckResult:
    """Count the images that are left out because patients withdrew."""
    counts = context.hospital.data.exclusion_counts if context.hospital and context.hospital.data else None
    if counts is None:
        return CheckResult(name, "ok", "no list is named (exclude)")
    images = ", ".join(f"{number} {part}" for part, number in counts.images.items())
    found = f"{counts.listed} lines, {counts.matched} of them name images of this site; left out: {images}"
    if any(counts.further.values()):
        further = ", ".join(f"{number} {part}" for part, number in counts.further.items())
        found += f"; and of others, so that nobody can be told apart: {further}"
    if counts.matched < counts.listed:
        return CheckResult(
            name,
            "warning",
            found,
            "Lines that name nothing may be misspelt. Allowed: an id as in data.group_column, or the name of a file.",
        )
    return CheckResult(name, "ok", found)


def check_classes(context: CheckContext, name: str) -> CheckResult:
    """Compare the site's classes with the federation's."""
    own = list(context.get_site().data.classes)
    if context.plan is None:
        raise CannotCheckError(f"{len(own)} classes here: {', '.join(own)}. The federation's are not known.")
    wanted = context.plan.classes
    if own == wanted:
        return CheckResult(name, "ok", f"{len(own)} classes, the federation's: {', '.join(own)}")
    found = f"here: {', '.join(own)}; the federation's: {', '.join(wanted)}"
    if set(own) == set(wanted):
        raise CheckFailedError(
            f"The classes are the same but in another order; {found}.",
            f"Write in client.yaml, under data: classes: [{', '.join(wanted)}]",
        )
    unknown = [f"'{label}'{suggest_nearest(label, wanted)}" for label in own if label not in wanted]
    missing = [f"'{label}'" for label in wanted if label not in own]
    lists = [("not in the federation", unknown), ("without images here", missing)]
    problem = "; ".join(f"{text}: {', '.join(labels)}" for text, labels in lists if labels)
    raise CheckFailedError(
        f"The classes differ ({problem}); {found}.",
        "Rename labels in the table, or leave their rows out. All sites need the same classes in the same order.",
    )


def check_class_counts(context: CheckContext, name: str) -> CheckResult:
    """Count the images of every class in every part."""
    data = context.get_site().data
    counts = [count_classes(part, len(data.classes)) for part in (data.train, data.validation, data.test)]
    by_class = {label: of_class for label, *of_class in zip(data.classes, *counts, strict=True)}
    found = "training/validation/test: " + ", ".join(
        f"{label} {'/'.join(map(str, numbers))}" for label, numbers in by_class.items()
    )
    untrained = [label for label, (train, _, _) in by_class.items() if not train]
    if untrained:
        return CheckResult(
            name, "warning", found, f"No training image of: {', '.join(untrained)}. Add some if you can."
        )
    k_row = context.config.policy.suppression.k_row
    small = [label for label, (_, *scored) in by_class.items() if min(scored) < k_row]
    advice = ""
    if small:
        advice = (
            f"Fewer than {k_row} images (policy.suppression.k_row) in validation or test, so the server learns of them "
            f"without their class at most: {', '.join(small)}."
        )
    return CheckResult(name, "ok", f"{found}; shown here only", advice)


def check_attributes(context: CheckContext, name: str) -> CheckResult:
    """Count the values of patient attributes, and refuse numbers without bands before they are compared."""
    data, plan = context.get_site().data, context.plan
    if plan is not None:
        plan = bound_groups(context.config.policy, plan, list(data.train.attributes))
    unbanded = list_measurements(data, FairnessConfig() if plan is None else plan.fairness)
    if unbanded and plan is not None:
        raise CheckFailedError(describe_measurements(unbanded), advise_bands(unbanded))
    values: dict[str, Counter[str]] = {}
    for part in (data.train, data.validation, data.test):
        for attribute, found in part.attributes.items():
            values.setdefault(attribute, Counter()).update(found)
    if not values:
        return CheckResult(name, "ok", "none are named (data.attribute_columns)")
    texts, advice = [], [f"{describe_measurements(unbanded)} {advise_bands(unbanded)}"] if unbanded else []
    for attribute, counts in values.items():
        share = counts[_UNKNOWN] / counts.total()
        shown = ", ".join(f"{value} {number}" for value, number in counts.most_common(8))
        more = f", and {len(counts) - 8} more values" if len(counts) > 8 else ""
        texts.append(f"{attribute}: {shown}{more}; unknown {share:.1%}")
        if share > _MUCH_UNKNOWN:
            advice.append(f"{attribute} is unknown for {share:.0%} of the images; fill it in where you can.")
        if len(counts) > _MANY_VALUES:
            advice.append(f"{attribute} has {len(counts)} values; groups are meant, such as age bands.")
    return CheckResult(name, "warning" if advice else "ok", f"{'; '.join(texts)}; shown here only", " ".join(advice))


def check_statistics(context: CheckContext, name: str) -> CheckResult:
    """Compare the pixels of some images with the range that the federation expects."""
    mean, std, number = measure_pixels(context.get_site().data.train)
    found = f"mean {mean:.3f}, standard deviation {std:.3f} on a scale of 0 to 1 ({number} training images)"
    if context.hello is None:
        raise CannotCheckError(f"{found}. The expected range is not known.")
    problems = []
    expected_mean, expected_std = context.hello.get("expected_mean"), context.hello.get("expected_std")
    for what, value, expected in (("mean", mean, expected_mean), ("standard deviation", std, expected_std)):
        if expected is not None and not expected[0] <= value <= expected[1]:
            problems.append(f"the {what} is outside {expected[0]:g} to {expected[1]:g}")
    if problems:
        return CheckResult(
            name,
            "warning",
            f"{found}; {', '.join(problems)}, which the federation expects",
            "Look at some images: are they of the right kind, not inverted, not too dark, without black borders? If "
            "they are right, tell the coordinating site.",
        )
    known = expected_mean is not None or expected_std is not None
    return CheckResult(name, "ok", found + (", as expected" if known else "; the federation states no range"))


def measure_pixels(part: ImagePart, most: int = SAMPLE_IMAGES) -> tuple[float, float, int]:
    """Return mean and standard deviation of pixel values, 0 to 1, and the number of images they are from.

    Evenly chosen images, each of the same weight whatever its size, all colour channels together:
    ``std^2 = mean of x^2 - (mean of x)^2``.
    """
    number = min(most, len(part))
    chosen = [index * len(part) // number for index in range(number)]
    first, second = torch.zeros(2, dtype=torch.float64)
    for index in chosen:
        x = part.images([index])[0].double() / 255
        first += x.mean()
        second += x.square().mean()
    mean = float(first) / number
    return mean, max(float(second) / number - mean**2, 0.0) ** 0.5, number


def _read_index(folder: Path) -> dict[str, JsonValue] | None:
    try:
        index: dict[str, JsonValue] = json.loads((folder / "splits.json").read_text())
    except (OSError, ValueError):
        return None
    return index


def _keep_skipped(context: CheckContext, state: Path) -> list[str]:
    """Move the list of skipped rows to where a person can read it, and return their reasons."""
    source = state / "splits" / SKIPPED_FILE
    if not source.is_file():
        return []
    with source.open(newline="", encoding="utf-8") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    target = context.skipped_file
    target.write_bytes(source.read_bytes())
    target.chmod(0o600)
    return reasons


def _describe_skipped(reasons: list[str]) -> str:
    """Count reasons without what they say about single rows."""
    kinds = Counter(re.sub(r"\brows? [\d, ]+", "other rows ", reason) for reason in reasons)
    shown = "; ".join(f"{number} x {kind.strip()}" for kind, number in kinds.most_common(4))
    rows = "1 row" if len(reasons) == 1 else f"{len(reasons)} rows"
    return f"{rows} cannot be used: {shown}{'; and others' if len(kinds) > 4 else ''}"


def _advise_skipped(context: CheckContext) -> str:
    return f"All are listed in {context.skipped_file}. Correct them, or leave them out of the table."
