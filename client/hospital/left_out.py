"""Patients who withdrew, and others who are left out with them, so that no difference between answers is about one.

The difference of two answers, one before and one after a withdrawal, would be about the patient alone. So in every part
of the data that loses somebody, ``k - 1`` further patients are left out, drawn with a secret seed. Whoever is left out
once stays so, also when the list no longer names them: to come back would be a difference again. Nobody further is left
out before this site has told anything, nor where its threshold is 1. ::

    state_dir/left_out.json    the seed, and hashes of the images of each withdrawal; mode 0600, kept after --forget
"""

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from fedmed.errors import RunFolderError
from fedmed.formats import LEFT_OUT
from fedmed.processes import private_folder, read_secret, write_secret

_ID_BYTES = 12
_SEED_BYTES = 32


@dataclass(frozen=True)
class Withdrawal:
    """Images that were left out on one occasion, as the file names them."""

    withdrawn: frozenset[str]
    further: frozenset[str] = frozenset()
    told: bool = True
    """Whether the site had told anything before."""


@dataclass(frozen=True)
class LeftOut:
    """All that a site has left out so far."""

    seed: bytes = field(repr=False)
    withdrawals: tuple[Withdrawal, ...] = ()

    def name(self, text: str) -> str:
        """Return the name of an image, or the rank of a patient, in the secret order of this site."""
        data = text.encode(errors="surrogateescape")
        return hashlib.blake2b(data, digest_size=_ID_BYTES, key=self.seed).hexdigest()

    def select(self, items: Iterable[str]) -> tuple[set[str], set[str]]:
        """Return which images are left out because their patient withdrew, and which beside them."""
        withdrawn = frozenset[str]().union(*(one.withdrawn for one in self.withdrawals))
        further = frozenset[str]().union(*(one.further for one in self.withdrawals))
        named = {item: self.name(item) for item in items}
        return (
            {item for item, name in named.items() if name in withdrawn},
            {item for item, name in named.items() if name in further - withdrawn},
        )

    def list_told(self, items: Iterable[str]) -> list[frozenset[str]]:
        """Return the images that were left out on each occasion after something had been told, in their order."""
        named = [(item, self.name(item)) for item in items]
        return [
            frozenset(item for item, name in named if name in one.withdrawn | one.further)
            for one in self.withdrawals
            if one.told
        ]


def leave_out(
    path: Path, parts: Mapping[str, str], patients: Mapping[str, str], named: Set[str], k: int, *, told: bool
) -> LeftOut:
    """Return who is left out now; what is new in it is on the disk when this returns.

    Parameters
    ----------
    path : Path
        The file.
    parts : mapping of str to str
        Every image of the site to its part of the data.
    patients : mapping of str to str
        Image to the id of its patient.
    named : set of str
        Images that the list of withdrawn patients names now.
    k : int
        So many patients at least are left out at a time, where any is.
    told : bool
        Whether this site has told anything yet.

    Raises
    ------
    RunFolderError
        If the file cannot be read: others would be left out than before.
    """
    before = _read(path) or LeftOut(secrets.token_bytes(_SEED_BYTES))
    if not told and not any(one.told for one in before.withdrawals):
        after = LeftOut(before.seed, (Withdrawal(frozenset(map(before.name, named)), told=False),))
    else:
        gone = set[str]().union(*before.select(parts))
        new = set(named) - gone
        if not new:
            return before
        drawn = draw_further(new, {item: part for item, part in parts.items() if item not in gone}, patients, k, before)
        one = Withdrawal(frozenset(map(before.name, new)), frozenset(map(before.name, drawn)))
        after = LeftOut(before.seed, (*before.withdrawals, one))
    if after != before:
        private_folder(path.parent)
        write_secret(path, _encode(after))
    return after


def draw_further(
    new: Set[str], parts: Mapping[str, str], patients: Mapping[str, str], k: int, order: LeftOut
) -> set[str]:
    """Return images of further patients, such that every part loses nobody, at least k patients, or all that it has.

    A part that would be left with fewer than k patients loses all.

    Parameters
    ----------
    new : set of str
        Images of those who withdraw.
    parts, patients : mapping of str to str
        Of all images that were used so far.
    k : int
        Threshold; 1 draws nobody.
    order : LeftOut
        Gives the secret order.

    Notes
    -----
    A patient is left out of all parts. Those who are in the same parts as one who withdraws come first: else the one
    that two parts have lost in common would be the one.
    """
    of_patient: dict[str, set[str]] = defaultdict(set)
    for item in parts:
        of_patient[patients.get(item, item)].add(item)
    places = {patient: frozenset(parts[item] for item in items) for patient, items in of_patient.items()}
    leaving = {part: {patients.get(item, item) for item in new if parts[item] == part} for part in set(parts.values())}
    withdrawing = set[str]().union(*leaving.values())
    alike = {places[patient] for patient in withdrawing}
    open_patients = sorted(set(of_patient) - withdrawing, key=lambda one: (places[one] not in alike, order.name(one)))
    drawn: set[str] = set()

    def draw(part: str) -> bool:
        """Leave more patients of a part out, if that is needed; return whether it was."""
        further = {patient for patient in drawn if part in places[patient]}
        left = [patient for patient in open_patients if part in places[patient] and patient not in drawn]
        if k <= 1 or not left or not (leaving[part] or further):
            return False
        lacking = max(0, k - min(1, len(leaving[part])) - len(further))
        if not lacking and len(left) >= k:
            return False
        drawn.update(left[: lacking if len(left) - lacking >= k else None])
        return True

    while any(draw(part) for part in sorted(leaving)):
        pass
    return {item for patient in drawn for item in of_patient[patient]}


def pad_groups(
    groups: Mapping[str, str],
    patients: Mapping[str, str],
    occasions: Iterable[Set[str]],
    k: int,
    order: LeftOut,
) -> set[str]:
    """Return images that are left out where a part is told by group, such that no group ever loses fewer than k.

    Parameters
    ----------
    groups : mapping of str to str
        Every image of the part, those that are left out included, to its group.
    patients : mapping of str to str
        Image to the id of its patient.
    occasions : iterable of set of str
        Images that were left out, one occasion after the other.
    k : int
        Fewest patients that a group may lose at a time.
    order : LeftOut
        Gives the secret order.
    """
    gone: set[str] = set()
    padding: set[str] = set()
    for occasion in occasions:
        lost = {item for item in occasion if item in groups} - gone - padding
        gone |= lost
        for group in sorted({groups[item] for item in lost}):
            members = [item for item, name in groups.items() if name == group]
            leaving = {patients.get(item, item) for item in lost if groups[item] == group}
            still = {patients.get(item, item) for item in members if item not in gone | padding} - leaving
            chosen = sorted(still, key=order.name)[: max(0, k - len(leaving))]
            padding |= {item for item in members if patients.get(item, item) in chosen} - gone
    return padding - gone


def _read(path: Path) -> LeftOut | None:
    if not path.exists():
        return None
    try:
        values = json.loads(read_secret(path))
        LEFT_OUT.check(values.get("format"), path)
        withdrawals = [
            Withdrawal(frozenset(map(str, one["withdrawn"])), frozenset(map(str, one["further"])), bool(one["told"]))
            for one in values["withdrawals"]
        ]
        return LeftOut(bytes.fromhex(values["seed"]), tuple(withdrawals))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{path}, in which this site keeps who is left out because patients withdrew, cannot be read "
            f"({type(error).__name__}). Nothing is computed without it, because answers could give single patients "
            "away together with earlier ones. Put it back from a backup."
        ) from error


def _encode(left_out: LeftOut) -> bytes:
    withdrawals = [
        {"withdrawn": sorted(one.withdrawn), "further": sorted(one.further), "told": one.told}
        for one in left_out.withdrawals
    ]
    values = {"format": LEFT_OUT.number, "seed": left_out.seed.hex(), "withdrawals": withdrawals}
    return json.dumps(values, separators=(",", ":")).encode()
