"""The form of ``report.json`` says the truth: nothing is missing in it, and nothing in it is missing in a report."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import TypeAdapter, ValidationError

from fedmed.formats import REPORT
from fedmed.report import ReportContent
from fedmed.report.document import build_document
from fedmed.report.schema.document import Document
from fedmed.report.schema.json_schema import SCHEMA_FILE, format_schema
from fedmed.storage.history import RoundRecord
from tests.report.figures.test_compression import make_report
from tests.report.support.example import make_content, make_record
from tests.report.support.fairness_example import make_fair_content

ADAPTER = TypeAdapter(Document)
FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1" / "finished_run" / "report" / "report.json"


def check(text: str | bytes) -> Document:
    """Return a report as the form reads it: nothing is converted, and no key is there that the form does not know."""
    return ADAPTER.validate_json(text, strict=True, extra="forbid")


def make_distilled_content() -> ReportContent:
    """Return two rounds with a teacher and a static prompt, of which one site tells nothing."""
    bands = [{"low": 0.0, "high": 0.5, "gain": 1.5}, {"low": 0.5, "high": 1.0, "gain": None}]
    sites = {"north": {"ekd": 1.0, "bands": [1.4, None]}, "south": {}}
    history = [
        RoundRecord.model_validate(
            make_record(number, dict.fromkeys(sites, "accepted"))
            | {"fopro": {"teacher": "example", "ekd": 1.0, "bands": bands, "sites": sites}}
        ).to_json()
        for number in (1, 2)
    ]
    teacher = {"name": "example", "source": "file", "path": "weights.safetensors", "image_size": 224}
    settings = {"teacher": teacher, "weight": 0.5, "prompt": {"mode": "static"}}
    return make_content(history=history, config={"name": "example", "fopro": settings})


@pytest.mark.parametrize(
    "make",
    [
        make_content,
        make_fair_content,
        lambda: make_fair_content(test={}, history=[]),
        lambda: make_content(test={}, validation={}, composition=None),
        make_distilled_content,
    ],
    ids=["plain", "fair", "going on", "without tables", "distilled"],
)
def test_form_holds_for_a_report(make: Any) -> None:
    text = json.dumps(build_document(make()))
    assert json.loads(ADAPTER.dump_json(check(text))) == json.loads(text)


@pytest.mark.parametrize("status", ["accepted", "rejected"])
@pytest.mark.parametrize("single_sites", [True, False], ids=["all shown", "some hidden"])
def test_form_holds_for_a_report_with_a_small_network(status: str, single_sites: bool) -> None:
    found = check(json.dumps(make_report(status, single_sites=single_sites)))["compression"]
    assert found is not None
    assert found["checks"]


def test_form_holds_for_a_report_that_compressed_nothing() -> None:
    skipped = {"status": "skipped", "kind": "skip", "reason": "It was not asked for.", "phases": {}}
    found = check(json.dumps(build_document(make_content(compression=skipped))))["compression"]
    assert found == {key: skipped[key] for key in ("status", "kind", "reason")} | {"checks": [], "comparison": {}}


def test_form_holds_for_a_report_of_version_1() -> None:
    assert check(FIXTURE.read_bytes())["title"] == "Federated run 'fixture'"


def test_form_refuses_what_is_missing_and_what_is_not_known() -> None:
    document = json.loads(json.dumps(build_document(make_content())))
    del document["figures"]["accuracy"]["n"]
    document["history"][0]["more"] = 1
    with pytest.raises(ValidationError) as caught:
        check(json.dumps(document))
    assert {(error["type"], error["loc"]) for error in caught.value.errors()} == {
        ("missing", ("figures", "accuracy", "n")),
        ("extra_forbidden", ("history", 0, "more")),
    }


def test_form_can_be_written_as_a_json_schema() -> None:
    schema = ADAPTER.json_schema()
    assert set(schema["properties"]) == {*build_document(make_content()), "clinical"}
    later = {"format", "flow", "benefit_pooled", "clinical", "shift", "pooled_auc"}
    assert set(schema["properties"]) - set(schema["required"]) == later, "earlier versions did not write them"
    assert schema["$defs"]["FigureEntry"]["required"] == ["value", "interval", "n", "n_withheld", "better"]


def test_the_schema_that_is_shipped_is_the_one_of_the_types() -> None:
    text = SCHEMA_FILE.read_text(encoding="utf-8")
    assert text == format_schema(), "write it again: python -m fedmed.report.schema.json_schema"
    assert json.loads(text)["$id"] == f"urn:fedmed:report:{REPORT.number}"


def test_allowed_values_are_sorted() -> None:
    """Of two unions of the same values in another order, Python may give out the one that another module has made."""

    def find_enums(node: Any) -> list[list[Any]]:
        values = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        own = [node["enum"]] if isinstance(node, dict) and isinstance(node.get("enum"), list) else []
        return own + [found for value in values for found in find_enums(value)]

    enums = find_enums(json.loads(format_schema()))
    assert ["test", "validation"] in enums
    assert [values for values in enums if values != sorted(values)] == []


def test_reports_fit_the_schema_that_is_shipped() -> None:
    """By another program than the one that made it; ray brings jsonschema with it."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_bytes()))
    validator.check_schema(validator.schema)
    documents = [json.loads(json.dumps(build_document(make()))) for make in (make_content, make_fair_content)]
    for document in (*documents, json.loads(FIXTURE.read_bytes()), make_report("accepted")):
        assert list(validator.iter_errors(json.loads(json.dumps(document)))) == []
    documents[0]["figures"]["accuracy"]["value"] = "high"
    assert [list(error.absolute_path) for error in validator.iter_errors(documents[0])] == [
        ["figures", "accuracy", "value"]
    ]
