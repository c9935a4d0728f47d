"""Which pooled groups may be shown where the images belong to several parties.

A pooled group is shown only where images of at least two sites are in it. A hidden group must not follow from what is
shown, either: an attribute's groups add up to the pooled total, and the groups of a crossing (``sex x age_band``) to
those of its parts. These sums are linear equations between shown and hidden groups; more groups are hidden, the
smallest ones first, until no combination of the equations gives away a sum of hidden groups that rests on one site.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedmed.metrics.site_tables import FEDERATED, SITE_ATTRIBUTE, SiteTables
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.values import Array

CROSSING = " x "
VALUE_SEPARATOR = ", "
ONE_SITE = "rests on one site"
GIVES_AWAY = "would give away a group of one site"
_TOLERANCE = 1e-9

Group = tuple[str, str]
"""An attribute and one of its values."""


@dataclass(frozen=True)
class _Sum:
    """Groups that add up to another group, or to the pooled total of all images (``None``)."""

    whole: Group | None
    parts: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.parts if self.whole is None else (self.whole, *self.parts)


def find_hidden_groups(sites: Mapping[str, SiteTables], agreed: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the pooled groups that must not be shown.

    Parameters
    ----------
    sites : mapping of str to SiteTables
        The answers of the sites to one request, by name.
    agreed : collection of str
        Sites that agree to show groups that rest on them alone.

    Returns
    -------
    dict of str to dict of str to str
        Attribute to hidden group to the reason; every attribute but the site itself, to which a site agrees by
        joining. A group in which no image is counted is not hidden: there is nothing to show.

    Notes
    -----
    With the hidden groups as unknowns, the equations have a matrix M. A combination c of its rows with ``c M = 0``
    outside S, the hidden groups that rest on one and the same site, tells something of that site alone if ``c M`` is
    not 0 in S. It is spoilt by hiding any of the shown groups that it needs. Equations of hidden groups only tell
    nothing. Single equations are looked at first, since they are spoilt with the fewest groups.
    """
    images, holders = _count_groups(sites)
    attributes = sorted({attribute for tables in sites.values() for attribute in tables.attributes} - {SITE_ATTRIBUTE})
    owners = {group: next(iter(names)) for group, names in holders.items() if len(names) == 1 and not names & {*agreed}}
    hidden: dict[str, dict[str, str]] = {attribute: {} for attribute in attributes}
    for attribute, value in sorted(owners):
        hidden[attribute][value] = ONE_SITE
    sums = _list_sums(attributes, images)
    while owners:
        concealed = {(attribute, value) for attribute, values in hidden.items() for value in values}
        told = [entry for entry in sums if entry.whole is None or any(group not in concealed for group in entry.groups)]
        needed = _find_telling_sum(told, concealed, owners) or _find_telling_combination(told, concealed, owners)
        if not needed:
            break
        attribute, value = min(needed, key=lambda group: (images[group], group))
        hidden[attribute][value] = GIVES_AWAY
    return hidden


def leave_out(tables: EvaluationTables, groups: Collection[str]) -> EvaluationTables:
    """Return tables without some of their groups."""
    return tables.take([index for index, group in enumerate(tables.groups) if group not in groups])


def _count_groups(sites: Mapping[str, SiteTables]) -> tuple[dict[Group, int], dict[Group, frozenset[str]]]:
    """Return the images of every group that has any, and the sites they are from."""
    images: dict[Group, int] = {}
    holders: dict[Group, frozenset[str]] = {}
    for name, tables in sites.items():
        for attribute in set(tables.attributes) - {SITE_ATTRIBUTE}:
            of_attribute = tables.models[FEDERATED][attribute]
            for value in of_attribute.groups:
                number = of_attribute.select(value).num_images
                if number:
                    group = (attribute, value)
                    images[group] = images.get(group, 0) + number
                    holders[group] = holders.get(group, frozenset()) | {name}
    return images, holders


def _list_sums(attributes: Iterable[str], images: Mapping[Group, int]) -> list[_Sum]:
    values = {attribute: [value for name, value in images if name == attribute] for attribute in attributes}
    sums = []
    for attribute, own in values.items():
        sums.append(_Sum(None, tuple((attribute, value) for value in own)))
        crossed = attribute.split(CROSSING)
        if len(crossed) > 1 and all(part in values for part in crossed):
            sums += _list_margins(attribute, own, [(part, values[part]) for part in crossed])
    return sums


def _list_margins(attribute: str, own: list[str], crossed: list[tuple[str, list[str]]]) -> list[_Sum]:
    # Looked up rather than split apart, since a value may hold the separator itself.
    known = {
        VALUE_SEPARATOR.join(combination): combination
        for combination in itertools.product(*(values for _, values in crossed))
    }
    sums = []
    for place, (part, values) in enumerate(crossed):
        for value in values:
            cells = tuple((attribute, name) for name in own if name in known and known[name][place] == value)
            sums.append(_Sum((part, value), cells))
    return sums


def _find_telling_sum(told: list[_Sum], hidden: set[Group], owners: Mapping[Group, str]) -> list[Group]:
    """Return the shown groups of a sum whose hidden groups rest on one site; empty if there is no such sum."""
    for entry in sorted(told, key=lambda entry: len(entry.groups)):
        sites = {owners.get(group) for group in entry.groups if group in hidden}
        shown = [group for group in entry.parts if group not in hidden] or (
            [] if entry.whole is None or entry.whole in hidden else [entry.whole]
        )
        if len(sites) == 1 and None not in sites and shown:
            return shown
    return []


def _find_telling_combination(told: list[_Sum], hidden: set[Group], owners: Mapping[Group, str]) -> list[Group]:
    """Return the shown groups that a telling combination of several sums needs; empty if there is none."""
    unknowns = sorted(hidden)
    known = sorted({group for entry in told for group in entry.groups} - hidden)
    matrix, rest = _make_matrix(told, unknowns), _make_matrix(told, known)
    for site in sorted(set(owners.values())):
        of_site = np.array([owners.get(group) == site for group in unknowns])
        combinations = _find_null_space(matrix[:, ~of_site].T)
        tells = np.abs(combinations @ matrix[:, of_site]).max(axis=1, initial=0.0) > _TOLERANCE
        needed = np.abs(combinations[tells] @ rest).max(axis=0, initial=0.0) > _TOLERANCE
        if needed.any():
            return [group for group, is_needed in zip(known, needed, strict=True) if is_needed]
    return []


def _find_null_space(matrix: Array) -> Array:
    """Return an orthonormal basis, in rows, of the vectors v with ``matrix @ v = 0``."""
    _, values, basis = np.linalg.svd(matrix, full_matrices=True)
    return basis[int((values > _TOLERANCE * max(matrix.shape)).sum()) :]


def _make_matrix(sums: list[_Sum], columns: list[Group]) -> Array:
    place = {group: index for index, group in enumerate(columns)}
    matrix = np.zeros((len(sums), len(columns)))
    for row, entry in enumerate(sums):
        for group in entry.parts:
            if group in place:
                matrix[row, place[group]] = 1
        if entry.whole in place:
            matrix[row, place[entry.whole]] = -1
    return matrix
