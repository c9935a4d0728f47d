"""How what was told of a class hangs together: crossings that are told, and attributes that need one table of cells."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedmed.config import SITE_ATTRIBUTE
from fedmed.fairness.figures.groups import CROSS, cross_values
from fedmed.fairness.reconstruction.integers import Cell
from fedmed.fairness.reconstruction.statement import Row, ToldPart
from fedmed.metrics.site_tables import UNKNOWN

OTHERS = "(not told)"
"""All groups of an attribute of which no row is told, together."""
MAYBE = "(not told, if any)"
"""Likewise, where a reader cannot know whether there are any."""


def merge_hidden(told: ToldPart) -> ToldPart:
    """Return what was told with one group in place of all of which no row is told, since tables do not name these.

    A reader may take them for one group. Where that keeps its values, so does each of several: any number of its images
    may be of one.
    """
    groups = dict(told.groups)
    for attribute in _list_singles(told):
        named = list_named(told, attribute)
        if len(named) < len(told.groups[attribute]):
            groups[attribute] = (*named, OTHERS)
    return replace(told, groups=groups)


def add_others(told: ToldPart) -> ToldPart:
    """Return what a reader was told with the group of all others, where rows do not add up or may not.

    Tables name groups of which something is told. That there are others is certain where a class of the site has more
    images than all of its named groups.
    """
    groups = dict(told.groups)
    for attribute in _list_singles(told):
        rest = [
            (told.images[site], [told.images.get(Row(attribute, group, site.label)) for group in groups[attribute]])
            for site in told.images
            if site.attribute == SITE_ATTRIBUTE
        ]
        whole = [
            (number, [n for n in of_groups if n is not None]) for number, of_groups in rest if None not in of_groups
        ]
        if OTHERS in groups[attribute] or not groups[attribute]:
            continue
        if any(sum(of_groups) < number for number, of_groups in whole):
            groups[attribute] = (*groups[attribute], OTHERS)
        elif len(whole) < told.num_classes and set(groups[attribute]) == {*list_named(told, attribute)}:
            groups[attribute] = (*groups[attribute], MAYBE)
    return replace(told, groups=groups)


def _list_singles(told: ToldPart) -> list[str]:
    return [name for name in told.groups if name != SITE_ATTRIBUTE and split_crossing(told, name) is None]


def list_named(told: ToldPart, attribute: str, label: int | None = None) -> tuple[str, ...]:
    """Return the groups of which a row is told, or one of a class."""
    named = {row.group for row in told.images if row.attribute == attribute and label in {None, row.label}}
    named |= {row.group for row in told.rare if row.attribute == attribute and label is None}
    return tuple(group for group in told.groups[attribute] if group in named)


def is_named(told: ToldPart, row: Row) -> bool:
    """Return whether a reader can tell of which groups a row of a crossing is: rows of its class are told of each."""
    parts = split_crossing(told, row.attribute) or ()
    named = itertools.product(*(list_named(told, part, row.label) for part in parts))
    return row.group in {cross_values(groups) for groups in named if UNKNOWN not in groups}


def split_crossing(told: ToldPart, attribute: str) -> tuple[str, ...] | None:
    """Return the attributes that are crossed; None if it is no crossing of attributes that were told."""
    parts = tuple(attribute.split(CROSS))
    return parts if len(parts) > 1 and all(part in told.groups for part in parts) else None


def is_told(told: ToldPart, attributes: Sequence[str], groups: Cell, label: int) -> bool:
    """Return whether a cell of one attribute or several is told; one of unknown values is so only with others."""
    if len(attributes) > 1 and UNKNOWN in groups:
        return False
    for order in itertools.permutations(range(len(attributes))):
        name = CROSS.join(attributes[place] for place in order)
        if (
            Row(name, groups[0] if len(groups) == 1 else cross_values([groups[place] for place in order]), label)
            in told.images
        ):
            return True
    return False


def find_crossings(told: ToldPart, label: int) -> list[tuple[str, ...]]:
    """Return the crossed attributes of which a row of a class was told."""
    found = {row.attribute for row in told.images if row.label == label}
    return [parts for attribute in sorted(found) if (parts := split_crossing(told, attribute)) is not None]


def find_same(told: ToldPart, label: int) -> list[tuple[str, ...]]:
    """Return pairs of attributes that have a row of a class in common."""
    return sorted({(first.attribute, second.attribute) for first, second in told.same if first.label == label})


def split_tables(asked: Sequence[str], links: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return the attributes of each table, so that the tables hang together like a tree.

    Parameters
    ----------
    asked : sequence of str
        What is asked about; only attributes that hang together with it are in a table.
    links : sequence of sequences of str
        Attributes that must be in one table.
    """
    near = set(asked)
    while more := [link for link in links if set(link) & near and not set(link) <= near]:
        near |= {attribute for link in more for attribute in link}
    tables: list[set[str]] = []
    for link in links:
        if set(link) <= near and set(link) not in tables:
            tables.append(set(link))
    while ring := _find_ring(tables):
        tables = [table for table in tables if table not in ring] + [set().union(*ring)]
    tables = [table for table in tables if not any(table < other for other in tables)] or [set(asked)]
    return [tuple(sorted(table)) for table in tables]


def _find_ring(tables: Sequence[set[str]]) -> list[set[str]]:
    """Return tables that hang together in a ring, or share more than one attribute; empty if there are none."""
    for size in range(2, len(tables) + 1):
        for chosen in itertools.combinations(tables, size):
            # A tree of tables has as many attributes as they bring one after the other, with one of them shared.
            if len(set().union(*chosen)) < sum(len(table) - 1 for table in chosen) + 1 and _is_connected(chosen):
                return list(chosen)
    return []


def _is_connected(tables: Sequence[set[str]]) -> bool:
    reached, waiting = set(tables[0]), list(tables[1:])
    while waiting:
        touching = [table for table in waiting if table & reached]
        if not touching:
            return False
        for table in touching:
            reached |= table
            waiting.remove(table)
    return True


def find_alike(told: ToldPart, label: int) -> dict[str, str]:
    """Return for each model one with the same numbers, which it often is itself; with a temperature it is the same.

    A model of which only the site's own row is told is left out: so many right answers in all fit any groups.
    """
    found: dict[frozenset[tuple[Row, tuple[int, ...]]], str] = {}
    alike = {}
    for name, answers in told.models.items():
        numbers = frozenset((row, values) for row, values in answers.rows.items() if row.label == label)
        if answers.rare or any(row.attribute != SITE_ATTRIBUTE for row, _ in numbers):
            alike[name] = found.setdefault(numbers, name)
    return alike


def find_categories(rows: Mapping[Row, tuple[int, ...]], label: int) -> list[int]:
    """Return the true class, those that wrong answers are told for, and -1 for all others."""
    found = {c for row, values in rows.items() if row.label == label for c, n in enumerate(values[:-1]) if n}
    return [label, *sorted(found - {label}), -1]
