"""Does the installed flwr still have the internals that our files touch?"""

import ast
import importlib
import inspect
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "server").glob("*.py"), *(ROOT / "client").glob("*.py")])
ADVICE = "The file was written for flwr 1.41.0; see what replaced it before another version is pinned."

# What is used by name only: private members, overridden methods, parameters.
MEMBERS = {
    "flwr.supercore.object_store.sql_object_store.SqlObjectStore": [
        "preregister", "put", "get", "delete", "delete_objects_in_run", "clear", "session", "_mutation_session",
        "initialize",
    ],
    "flwr.server.superlink.linkstate.sql_linkstate.SqlLinkState": [
        "store_object", "store_traffic", "get_message_res", "activate_node", "delete_messages", "get_run_status",
        "get_task_by_token", "get_node_id_by_public_key", "get_node_info", "_store_generated_message",
        "_cleanup_push_session",
    ],
    "flwr.superlink.grid.HttpGrid": ["_connect", "_runtime_client", "set_run", "get_node_ids", "close"],
    "flwr.superlink.main": ["create_app", "get_objectstore_linkstate_factories"],
    "flwr.superlink.cli.flower_superlink": ["SuperLinkLifespan"],
    "uvicorn.Server": ["capture_signals", "serve"],
    "flwr.app.message.arraychunk.ArrayChunk": ["deflate"],
}  # fmt: skip
TABLES = {
    "MessageIns": ["message_id", "dst_node_id", "run_id", "delivered_at", "created_at", "ttl"],
    "MessageRes": ["message_id", "reply_to_message_id", "run_id", "delivered_at"],
    "Node": ["node_id", "status", "online_until"],
}


def flower_imports(path: Path) -> list[tuple[str, str]]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [
        (node.module or "", alias.name)
        for node in nodes
        for alias in node.names
        if (node.module or "").startswith("flwr")
    ]


def resolve(name: str) -> object:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flwr_has_what_is_imported(path: Path) -> None:
    for module, name in flower_imports(path):
        try:
            found = hasattr(importlib.import_module(module), name)
        except ImportError:
            found = False
        assert found, f"flwr {metadata.version('flwr')} has no {module}.{name}, which {path.name} needs. {ADVICE}"


@pytest.mark.parametrize("owner", MEMBERS)
def test_flwr_has_the_members_that_are_touched(owner: str) -> None:
    # flower_superlink is a module and a function of the same name in its package.
    found = importlib.import_module(owner) if owner.endswith("flower_superlink") else resolve(owner)
    missing = [name for name in MEMBERS[owner] if not hasattr(found, name)]
    assert not missing, f"flwr {metadata.version('flwr')}: {owner} has no {missing}. {ADVICE}"


def test_the_tables_have_the_columns_that_are_read() -> None:
    models = importlib.import_module("flwr.supercore.state.schema.linkstate_models")
    for table, columns in TABLES.items():
        missing = set(columns) - set(getattr(models, table).__table__.columns.keys())
        assert not missing, f"flwr {metadata.version('flwr')}: the table {table} has no {missing}. {ADVICE}"
    stored = importlib.import_module("flwr.supercore.state.schema.objectstore_models").StoredObject
    assert {"object_id", "content", "is_available", "ref_count"} <= set(stored.__table__.columns.keys()), ADVICE


def test_the_settings_of_the_superlink_are_those_that_are_given() -> None:
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    given = {
        "control_address", "health_server_address", "host", "port", "insecure", "certificates", "superexec_auth_secret",
        "authn_plugin", "event_log_plugin", "fleet_event_log_plugin", "enable_event_log", "artifact_provider",
        "enable_supernode_auth", "fleet_api_type", "fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile",
        "ssl_keyfile", "database", "isolation", "runtime_dependency_install",
    }  # fmt: skip
    assert set(inspect.signature(SuperLinkLifespanConfig).parameters) == given, ADVICE
