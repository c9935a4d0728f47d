"""Which images of a part are counted in what leaves this site, chosen once for each state of the data.

What has been told is kept, since a later table must not differ from an earlier one by a few images. It is kept for the
site as a whole and not for a run, because the images of all runs are the same, and also after ``--forget``. ::

    state_dir/told_rows/test.json    ids of images (hashes of their names), and which of them were in a row together
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from fedmed.config import FairnessConfig
from fedmed.data import ImagePart, SiteData
from fedmed.errors import RunFolderError
from fedmed.fairness.disclosure.rows import Disclosure, DisclosurePlan, ToldRows, plan_disclosure
from fedmed.fairness.figures.groups import assign_groups
from fedmed.processes import private_folder, write_secret

_ID_BYTES = 12


@dataclass(frozen=True)
class CountedPart:
    """The images of one part, by patient group, and which of them are counted."""

    groups: dict[str, tuple[str, ...]]
    """Attribute to the group of each image."""
    plan: DisclosurePlan
    patients: tuple[str, ...] = ()
    """Patient of each image, as the record names them."""
    unit: Literal["patients", "images"] = "images"
    """What the thresholds count: patients where the data has their ids."""


_planned: WeakKeyDictionary[ImagePart, dict[tuple[str, Disclosure, Path], CountedPart]] = WeakKeyDictionary()


_patients: WeakKeyDictionary[SiteData, dict[str, str]] = WeakKeyDictionary()


def list_patients(data: SiteData) -> Mapping[str, str]:
    """Return image -> id of its patient or lesion at a simulated site, which holds back tables as a hospital does."""
    if data not in _patients:
        parts = (data.train, data.validation, data.test)
        _patients[data] = {one: own for part in parts for one, own in zip(part.items, part.patients, strict=True)}
    return _patients[data]


def count_part(  # noqa: PLR0917
    part: ImagePart,
    site: str,
    fairness: FairnessConfig,
    disclosure: Disclosure,
    record: Path,
    patients: Mapping[str, str] | None = None,
) -> CountedPart:
    """Choose the images of a part that are counted; the same as before while the part is.

    Parameters
    ----------
    part : ImagePart
        Images that may be used now.
    site : str
        Name of the site.
    fairness : FairnessConfig
        Which patient groups are told apart.
    disclosure : Disclosure
        The site's thresholds; with thresholds of 1 everything is counted and nothing recorded.
    record : Path
        File that keeps what has been told; it is on the disk when this returns.
    patients : mapping of str to str, optional
        Image to the id of its patient or lesion; an image that is not in it is a patient by itself.

    Raises
    ------
    RunFolderError
        If the file cannot be read; to begin anew would give small groups away.
    FedmedError
        If the attributes cannot be used, or the file cannot be written.
    """
    key = (fairness.model_dump_json(), disclosure, record)
    known = _planned.setdefault(part, {})
    if key not in known:
        groups = assign_groups(site, part.attributes, fairness, len(part))
        told = read_told(record) if max(disclosure.k, disclosure.k_row) > 1 else ToldRows()
        items = [_hash_item(item) for item in part.items]
        owners = [(patients or {}).get(item, item) for item in part.items]
        has_ids = any(owner != item for owner, item in zip(owners, part.items, strict=True))
        hashed = tuple(map(_hash_item, owners))
        plan = plan_disclosure(part.labels, groups, items, disclosure, told, hashed)
        if plan.told != told:
            private_folder(record.parent)
            write_secret(record, _encode(plan.told))
        known[key] = CountedPart(groups, plan, hashed, "patients" if has_ids else "images")
    return known[key]


def read_told(record: Path) -> ToldRows:
    """Return what a site has told, nothing where there is no file yet.

    Raises
    ------
    RunFolderError
        If the file cannot be read.
    """
    try:
        values = json.loads(record.read_bytes())
        ids = [str(item) for item in values["images"]]

        def read_sets(key: str) -> frozenset[frozenset[str]]:
            return frozenset(frozenset(ids[index] for index in row) for row in values[key])

        return ToldRows(
            classes={ids[index]: int(label) for index, label in values["classes"]},
            rows=read_sets("rows"),
            set_aside=frozenset(ids[index] for index in values["set_aside"]),
            protected=read_sets("protected"),
            patients=dict(values.get("patients", {})),
        )
    except FileNotFoundError:
        return ToldRows()
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise RunFolderError(
            f"{record}, in which this site keeps which images it has counted so far, cannot be read "
            f"({type(error).__name__}). No tables are sent without it, because they could give single patients away "
            "together with earlier ones. Put it back from a backup. Move it away only between studies."
        ) from error


def _encode(told: ToldRows) -> bytes:
    ids = sorted({*told.classes, *told.set_aside, *(item for row in told.protected for item in row)})
    index = {item: number for number, item in enumerate(ids)}

    def number_all(items: Any) -> list[int]:
        return sorted(index[item] for item in items)

    values = {
        "images": ids,
        "classes": sorted([index[item], label] for item, label in told.classes.items()),
        "rows": sorted(map(number_all, told.rows)),
        "set_aside": number_all(told.set_aside),
        "protected": sorted(map(number_all, told.protected)),
        "patients": dict(sorted(told.patients.items())),
    }
    return json.dumps(values, separators=(",", ":")).encode()


def _hash_item(item: str) -> str:
    """Return an id that is no longer than needed; the split beside it names the images in full anyhow."""
    return hashlib.blake2b(item.encode(errors="surrogateescape"), digest_size=_ID_BYTES).hexdigest()
