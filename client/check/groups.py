"""Check of patient groups: which ones there are, and how much of their tables would be withheld."""

import shutil
from pathlib import Path

import numpy as np

from client.check.context import CheckContext, CheckResult
from client.check.data import WHOLE
from client.hospital.told_rows import CountedPart
from fedmed.config import FairnessConfig
from fedmed.data import ImagePart


def check_groups(context: CheckContext, name: str) -> CheckResult:
    """Say for validation and test how many rows (group, class) would be told under the site's thresholds.

    What the site has told before counts: rows that would differ by few images are withheld.
    """
    told_before = Path(context.config.state_dir) / "told_rows"
    if told_before.is_dir():
        shutil.copytree(told_before, context.folder / WHOLE / told_before.name, dirs_exist_ok=True)
    fairness = context.plan.fairness if context.plan is not None else FairnessConfig()
    site, texts, lost, unit = context.get_site(), [], set(), "images"
    for part in ("validation", "test"):
        images: ImagePart = getattr(site.data, part)
        counted = site.count_part(part, fairness)
        unit = counted.unit if len(images) else unit
        texts.append(
            f"{part}: {'; '.join(_describe_attributes(images, counted)) or 'no images'}{_say_set_aside(counted)}"
        )
        lost |= {
            attribute
            for attribute, plan in counted.plan.attributes.items()
            if len(images) and not (plan.counted | plan.rare).any()
        }
    limits = context.config.policy.suppression
    found = f"{'. '.join(texts)}. Groups from k = {limits.k} and rows from k_row = {limits.k_row} {unit} are told"
    if lost:
        return CheckResult(
            name,
            "warning",
            found,
            f"Nothing would be told about: {', '.join(sorted(lost))}. The groups are too small here, or would follow "
            "from others. Coarser groups help, such as fewer age bands (data.bands), or leave the attribute out.",
        )
    return CheckResult(name, "ok", found)


def _describe_attributes(images: ImagePart, counted: CountedPart) -> list[str]:
    texts = []
    for attribute, of_images in counted.groups.items():
        plan = counted.plan.attributes[attribute]
        rows = list(zip(of_images, images.labels.tolist(), strict=True))
        told = {rows[place] for place in np.flatnonzero(plan.counted).tolist()}
        rare = int(plan.rare.sum())
        if rows:
            groups = f"{len(set(of_images))} groups, " if attribute != "site" else ""
            without = f", {rare} images without their class" if rare else ""
            texts.append(f"{attribute} {groups}{len(told)} of {len(set(rows))} rows{without}")
    return texts


def _say_set_aside(counted: CountedPart) -> str:
    number = int(counted.plan.set_aside.sum())
    return f"; {number} images in no table, since they would give others away" if number else ""
