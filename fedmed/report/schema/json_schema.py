"""``report.schema.json``: the form of ``report.json`` for those who read it with other programs.

``python -m fedmed.report.schema.json_schema`` writes the file again after the types have changed.
"""

import json
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from fedmed.formats import REPORT
from fedmed.report.schema.document import Document

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def make_schema() -> dict[str, JsonValue]:
    """Return the JSON schema of a report of this version, made from :class:`Document`; its number is the format's."""
    schema: dict[str, JsonValue] = TypeAdapter(Document).json_schema()
    schema |= {"title": "report.json of a federated training run", "description": REPORT.what + " of fedmed."}
    _sort_enums(schema)
    return {"$schema": DIALECT, "$id": f"urn:fedmed:report:{REPORT.number}", **schema}


def _sort_enums(node: JsonValue) -> None:
    """Sort lists of allowed values.

    Python keeps one object for ``Literal["a", "b"] | None`` and ``Literal["b", "a"] | None``, so that their order is
    that of whichever module was imported first.
    """
    values = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    if isinstance(node, dict) and isinstance(node.get("enum"), list):
        node["enum"] = sorted(node["enum"], key=json.dumps)  # type: ignore[arg-type]
    for value in values:
        _sort_enums(value)


def format_schema() -> str:
    """Return the text of ``report.schema.json``."""
    return json.dumps(make_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(format_schema(), encoding="utf-8")
