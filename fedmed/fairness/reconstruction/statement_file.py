"""What has been told of a part, and what was held back, as JSON: for the file that a site keeps, and for an auditor."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import JsonValue

from fedmed.fairness.reconstruction.held import Held
from fedmed.fairness.reconstruction.statement import Answers, Rare, Row, ToldPart


def encode_told(told: ToldPart) -> dict[str, JsonValue]:
    """Return what was told as JSON."""
    return {
        "groups": {name: list(groups) for name, groups in told.groups.items()},
        "num_classes": told.num_classes,
        "images": _encode(told.images),
        "patients": _encode(told.patients),
        "rare": _encode(told.rare),
        "models": {name: [_encode(model.rows), _encode(model.rare)] for name, model in told.models.items()},
        "same": [[list(first), list(second)] for first, second in sorted(told.same)],
        "pairs": [[*names, _encode(both)] for names, both in told.pairs.items()],
    }


def decode_told(values: Mapping[str, Any]) -> ToldPart:
    """Return what :func:`encode_told` was given; KeyError, TypeError or ValueError if it is something else."""
    return ToldPart(
        groups={name: tuple(groups) for name, groups in values["groups"].items()},
        num_classes=int(values["num_classes"]),
        images={Row(*key): int(n) for key, n in values["images"]},
        patients={Row(*key): int(n) for key, n in values["patients"]},
        rare={Rare(*key): int(n) for key, n in values["rare"]},
        models={
            name: Answers({Row(*key): tuple(n) for key, n in rows}, {Rare(*key): int(n) for key, n in rare})
            for name, (rows, rare) in values["models"].items()
        },
        same=frozenset((Row(*first), Row(*second)) for first, second in values["same"]),
        pairs={(first, second): {Row(*key): int(n) for key, n in both} for first, second, both in values["pairs"]},
    )


def encode_held(held: Held) -> dict[str, JsonValue]:
    """Return what was held back as JSON."""
    return {name: _list_rows(getattr(held, name)) for name in ("rows", "folded", "unpaired", "silent")}


def decode_held(values: Mapping[str, Any]) -> Held:
    """Return what :func:`encode_held` was given; KeyError, TypeError or ValueError if it is something else."""
    rows = frozenset(Rare(*row) if len(row) == 2 else Row(*row) for row in values["rows"])
    few = (frozenset(Row(*row) for row in values.get(name, ())) for name in ("folded", "unpaired", "silent"))
    return Held(rows, *few)


def _encode(values: Mapping[Any, int | tuple[int, ...]]) -> list[JsonValue]:
    return [[list(key), list(n) if isinstance(n, tuple) else n] for key, n in sorted(values.items())]


def _list_rows(rows: Iterable[Row | Rare]) -> list[JsonValue]:
    return [list(row) for row in sorted(rows)]
