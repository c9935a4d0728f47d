"""Whatever one site sends, in a mutated or made-up form: no traceback, no model beyond the bounds, the round closes."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmed.errors import FedmedError, WireError
from fedmed.metrics.site_tables import SiteTables
from fedmed.metrics.tables import EvaluationTables
from fedmed.metrics.temperature import temperature_sums
from fedmed.protocol.faulty_sites import has_finite_numbers
from fedmed.protocol.kinds import KINDS
from fedmed.protocol.messages import REPORT, TABLES, make_content, unpack_files
from fedmed.protocol.tensors import pack_tensors
from fedmed.reparameterization import collect_sums
from fedmed.reparameterization.statistics import tracked_norms
from fedmed.storage.history import to_plain_json
from server.finish.calibrate import _read as read_temperature
from server.finish.recalibrate import _read as read_norm_sums
from server.rounds.exchange import open_answer
from server.rounds.validation import summarise
from tests.attacks.support.bad_site import (
    BAD,
    MODEL_SHA256,
    NUM_CLASSES,
    Round,
    collect,
    draw_answers,
    make_answer,
    make_model,
)

T = TypeVar("T")
EXAMPLES = pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
MOST_IMAGES = 500
NASTY_FLOATS = st.sampled_from(
    [0.0, -0.0, 0.5, -1.0, 1e-45, 5e-324, 1e30, -1e30, 3.4e38, 1.7e308, math.inf, -math.inf, math.nan, 1e9, 200.0]
)
NASTY_WHOLE = st.sampled_from([0, 1, -1, 2, 200, 10**6, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
NAMES = st.text(max_size=12) | st.sampled_from(["site", "sex", "sex x age", " x ", "a x a", "\x1b[2J", "..", "unknown"])


def explore(examples: int, check: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> None:
    """Call a check with many drawn arguments, the same ones every time."""
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    options(given(**strategies)(check))()


def read_or_refuse(read: Callable[[], T], refusal: type[Exception]) -> tuple[T | None, str]:
    """Return what was read, or why not; any other error is a traceback."""
    try:
        return read(), ""
    except refusal as error:
        return None, str(error)


HONEST = {
    site: make_content(REPORT, {"model_sha256": MODEL_SHA256}, tables=draw_answers(site, seed, attributes=2))
    for seed, site in enumerate(("h0", "h1"))
}
OWN = draw_answers(BAD, 9, attributes=2)


def close(content: Any) -> bool:
    """Close an evaluation with this answer; return whether it counts."""
    scores = collect({**HONEST, BAD: content}, MOST_IMAGES)
    assert {"h0", "h1"} <= set(scores.tables)
    if BAD not in scores.tables:
        assert BAD in scores.refused
        return False
    validation = summarise(scores.tables)
    plain = to_plain_json(validation.model_dump())
    json.dumps(plain, allow_nan=False)
    assert has_finite_numbers(validation)
    assert all(abs(value) <= 100 for value in validation.pooled.values() if value is not None)
    return True


@EXAMPLES
def test_mutated_tables(examples: int) -> None:
    arrays_of = {name: own.to_arrays() for name, own in OWN.models["federated"].items()}
    taken = []

    def check(*, attribute: str, table: str, place: int, whole: int, real: float, rename: list[str] | None) -> None:
        own = OWN.models["federated"][attribute]
        arrays = {name: array.copy() for name, array in arrays_of[attribute].items()}
        flat = arrays[table].reshape(-1)
        flat[place % flat.size] = whole if flat.dtype.kind == "i" else real
        groups = own.groups
        if rename is not None and len(set(rename)) == len(groups) == len(rename):
            groups = tuple(rename)
        changed = {**OWN.models["federated"], attribute: EvaluationTables(groups, **arrays)}
        try:
            content = make_content(REPORT, {"model_sha256": MODEL_SHA256}, tables=SiteTables({"federated": changed}))
        except UnicodeError:  # it cannot be packed, so it does not come
            return
        taken.append(close(content))

    explore(
        examples,
        check,
        attribute=st.sampled_from(sorted(arrays_of)),
        table=st.sampled_from(sorted(arrays_of["site"])),
        place=st.integers(0, 10**6),
        whole=NASTY_WHOLE,
        real=NASTY_FLOATS,
        rename=st.none() | st.lists(NAMES, min_size=1, max_size=4),
    )
    assert any(taken)
    assert not all(taken)


def damage(data: bytes, place: int, bits: int, cut: int | None) -> bytes:
    """Return bytes with one of them changed, and cut short."""
    changed = bytearray(data)
    changed[place % len(changed)] ^= bits
    return bytes(changed[: cut % len(changed)] if cut is not None else changed)


DAMAGE: dict[str, st.SearchStrategy[Any]] = {
    "place": st.integers(0, 2000) | st.integers(0, 10**6),
    "bits": st.integers(1, 255),
    "cut": st.none() | st.integers(0, 10**6),
}


@EXAMPLES
def test_damaged_bytes_of_tables(examples: int) -> None:
    packed = bytes(HONEST["h0"][TABLES]["bytes"].data)

    def check(place: int, bits: int, cut: int | None) -> None:
        content = make_content(REPORT, {"model_sha256": MODEL_SHA256}, tables=OWN)
        content[TABLES]["bytes"].data = damage(packed, place, bits, cut)
        close(content)

    explore(examples, check, **DAMAGE)


ODD_TENSORS = st.sampled_from(
    [
        torch.zeros(()),
        torch.zeros(0),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float16),
        torch.zeros(6, dtype=torch.int8),
        torch.zeros(6, dtype=torch.bool),
    ]
)


@EXAMPLES
def test_mutated_updates(examples: int) -> None:
    """Whatever is accepted, the average is finite and within the bounds, and the honest sites are in it."""
    accepted = []
    with tempfile.TemporaryDirectory() as folder:
        one = Round(Path(folder))

        def check(*, name: str, place: int, value: float, how: str, odd: torch.Tensor, fresh: str) -> None:
            update = one.make_honest()
            tensor = update[name]
            if how == "element":
                tensor.reshape(-1)[place % tensor.numel()] = _fit(value, tensor)
            elif how == "tensor":
                tensor.fill_(_fit(value, tensor))
            elif how == "odd":
                update[name] = odd
            elif how == "without":
                del update[name]
            else:
                update[fresh or "_"] = odd
            try:
                packed = pack_tensors(update)
            except (UnicodeError, ValueError):
                return
            _take(one, packed)
            accepted.append(one.collector.updates[BAD].status == "accepted")

        explore(
            examples,
            check,
            name=st.sampled_from(sorted(one.before)),
            place=st.integers(0, 10**4),
            value=NASTY_FLOATS,
            how=st.sampled_from(["element", "element", "tensor", "odd", "without", "more"]),
            odd=ODD_TENSORS,
            fresh=NAMES,
        )
    assert any(accepted)
    assert not all(accepted)


def _fit(value: float, tensor: torch.Tensor) -> float | int:
    if tensor.is_floating_point():
        return value if abs(value) < 3.5e38 else math.copysign(math.inf, value)
    return int(min(max(value, -(2**62)), 2**62)) if math.isfinite(value) else 2**63 - 1


def _take(one: Round, packed: bytes, **values: Any) -> None:
    """Send an update and close the round, which must have the honest sites and a model near theirs."""
    for site in one.honest:
        one.collector.updates[site].status = "accepted"
    one.send(BAD, packed, **values)
    closed = one.close()
    assert [closed.status(site) for site in one.honest] == ["accepted"] * 3
    for name, value in closed.after.items():
        assert bool(torch.isfinite(value).all()), name
    moved = math.sqrt(sum(float((closed.after[n] - one.before[n]).square().sum()) for n in one.parameters))
    assert moved <= 3 * max(one.collector.lengths()[site] for site in one.honest)
    for norm in one.norms:
        assert bool((closed.after[norm.variance] >= 0).all())
        assert bool((closed.after[norm.variance] <= 1e3 * one.before[norm.variance].max()).all())


@EXAMPLES
def test_damaged_bytes_of_updates(examples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = Round(Path(folder))
        packed = pack_tensors(one.make_honest())

        def check(place: int, bits: int, cut: int | None) -> None:
            _take(one, damage(packed, place, bits, cut))

        explore(examples, check, **DAMAGE)


LEAF = st.none() | st.booleans() | NASTY_WHOLE | st.just(10**400) | NASTY_FLOATS | NAMES
NESTED = st.lists(LEAF, max_size=4) | st.dictionaries(NAMES, LEAF, max_size=4)
JSON = LEAF | NESTED | st.lists(NESTED, max_size=3) | st.dictionaries(NAMES, NESTED, max_size=3)
FIELDS = sorted({key for kind in KINDS.values() for key in kind.report})


@EXAMPLES
def test_made_up_reports_of_every_kind(examples: int) -> None:
    """A report is read or refused in words; what is read has no number that is not finite."""

    def check(kind: str, values: dict[str, Any]) -> None:
        report, problem = read_or_refuse(lambda: KINDS[kind].read_report(values), WireError)
        assert report is not None or 0 < len(problem) < 1000
        assert has_finite_numbers(report)

    explore(
        examples,
        check,
        kind=st.sampled_from(sorted(KINDS)),
        values=st.dictionaries(st.sampled_from(FIELDS) | NAMES, JSON, max_size=8),
    )


@EXAMPLES
def test_made_up_reports_beside_updates(examples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = Round(Path(folder))
        packed = pack_tensors(one.make_honest())

        def check(values: dict[str, Any]) -> None:
            try:
                json.dumps(values, allow_nan=False)
            except (ValueError, RecursionError):  # it cannot be packed, so it does not come
                return
            _take(one, packed, **values)

        explore(
            examples, check, values=st.dictionaries(st.sampled_from(sorted(KINDS["train"].report)), JSON, max_size=4)
        )


@EXAMPLES
def test_made_up_sums(examples: int) -> None:
    """Sums for the temperature and of BatchNorm: taken or refused in words."""
    model = make_model()
    shapes = {name: (3, norm.num_features) for name, norm in tracked_norms(model).items()}
    norm_sums = collect_sums(model, [torch.randn(8, 3, 12, 12)])
    logits = torch.randn(40, NUM_CLASSES)
    of_temperature = {"temperature": temperature_sums(logits, torch.zeros(40, dtype=torch.int64))}
    taken = []

    def check(*, which: str, name: int, place: int, value: float, odd: torch.Tensor | None, n: int) -> None:
        sums = {key: tensor.clone() for key, tensor in (of_temperature if which == "n" else norm_sums).items()}
        key = sorted(sums)[name % len(sums)]
        sums[key].reshape(-1)[place % sums[key].numel()] = value
        if odd is not None:
            sums[key] = odd
        told = {"model_sha256": MODEL_SHA256, **({"n": n} if which == "n" else {})}
        answer = make_answer(BAD, make_content(REPORT, told, sums=sums))
        if which == "n":
            found, problem = open_answer(answer, lambda message: read_temperature(message, MODEL_SHA256, 100))
        else:
            found, problem = open_answer(answer, lambda message: read_norm_sums(message, MODEL_SHA256, shapes, 10**6))
        assert (found is None) == (problem is not None)
        assert problem is None or "malformed" not in problem
        taken.append(found is not None)

    explore(
        examples,
        check,
        which=st.sampled_from(["n", "norms"]),
        name=st.integers(0, 10),
        place=st.integers(0, 10**4),
        value=NASTY_FLOATS,
        odd=st.none() | st.none() | ODD_TENSORS,
        n=st.sampled_from([0, 40, 41, 100, 101, 10**9]),
    )
    assert any(taken)
    assert not all(taken)


@EXAMPLES
def test_made_up_files(examples: int) -> None:
    """The files of an artefact come from the server; what is read of them is what was announced."""
    packed, limits = pack_tensors({"a.txt": torch.zeros(4, dtype=torch.uint8)}), {"a.txt": 4}

    def check(place: int, bits: int, cut: int | None) -> None:
        files, problem = read_or_refuse(lambda: unpack_files(damage(packed, place, bits, cut), limits), FedmedError)
        assert problem if files is None else set(files) == set(limits)

    explore(examples, check, **DAMAGE)
