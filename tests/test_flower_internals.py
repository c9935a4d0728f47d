"""Does the installed flwr still have the internals that our files touch, and are ours still shaped like theirs?"""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("server/superlink", "client/supernode", "simulations/backend")
FILES = sorted(
    path for package in ("fedmed", "server", "client", "simulations") for path in (ROOT / package).rglob("*.py")
)
ADVICE = "The file was written for flwr 1.42.0; see what replaced it before another version is pinned."
PUBLIC = ("flwr.app", "flwr.serverapp", "flwr.clientapp")

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
    """Return (module, name) of every import from flwr, also of those inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
            found += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "__name__") for alias in node.names if alias.name.split(".")[0] == "flwr"]
    return found


USERS = [path for path in FILES if flower_imports(path)]


def modules_of_the_rooms() -> list[ModuleType]:
    inside = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in inside]


def find_overridden() -> dict[str, tuple[object, object]]:
    """Return ``Class.name`` to our member and the one of flwr that it replaces."""
    found = {}
    for module in modules_of_the_rooms():
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            theirs = [base for base in cls.__mro__[1:] if base.__module__.split(".")[0] == "flwr"]
            for name, member in vars(cls).items():
                base = next((base for base in theirs if name in vars(base)), None)
                if base is not None and not (name.startswith("__") and name != "__init__") and name != "_abc_impl":
                    found[f"{cls.__name__}.{name}"] = (member, vars(base)[name])
    return found


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


def test_the_files_that_touch_flower_are_found() -> None:
    """A test that reads no file would pass."""
    internal = {
        path.relative_to(ROOT).parent.as_posix()
        for path in USERS
        if any(not module.startswith(PUBLIC) for module, _ in flower_imports(path))
    }
    assert set(ROOMS) <= internal <= {*ROOMS, "simulations/benchmarks"}


@pytest.mark.parametrize("path", USERS, ids=lambda path: str(path.relative_to(ROOT)))
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


OVERRIDDEN = {
    "TokenAuthentication": ["validate_tokens_in_metadata"],
    "DeploymentGrid": ["close", "push_messages", "pull_messages", "_connect"],
    "FileObjectStore": ["put", "get", "get_object_tree", "delete", "clear"],
    "DeploymentLinkState": [
        "store_object", "_cleanup_push_session", "store_traffic", "get_message_res", "activate_node", "delete_messages",
    ],
    "RayGrid": [
        "set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive",
    ],
}  # fmt: skip
"""Our class -> names of theirs that it replaces, constructors apart."""
CONSTRUCTORS = {
    "TokenAuthentication": [],
    "DeploymentGrid": ["runtime_api_address", "insecure", "root_certificates", "token"],
    "FileObjectStore": ["database_path", "verify"],
    "FileObjectStoreFactory": ["database"],
    "DeploymentLinkState": ["database_path", "federation_manager", "object_store"],
    "DeploymentLinkStateFactory": ["database", "federation_manager", "objectstore_factory"],
}
"""Our class -> the parameters of their constructor, which ours calls."""


def test_what_is_overridden_is_what_is_known() -> None:
    """A name that they have renamed would be overridden no longer, and nothing would say so."""
    found = {name for name in find_overridden() if not name.endswith(".__init__")}
    known = {f"{cls}.{name}" for cls, names in OVERRIDDEN.items() for name in names}
    assert found == known, f"flwr {metadata.version('flwr')}: {sorted(found ^ known)}. {ADVICE}"


@pytest.mark.parametrize("name", [f"{cls}.{name}" for cls, names in OVERRIDDEN.items() for name in names])
def test_what_is_overridden_is_called_alike(name: str) -> None:
    """Ours takes what theirs takes, under the same names; what it takes beside has a default."""
    ours, theirs = find_overridden()[name]
    if isinstance(theirs, property):
        assert isinstance(ours, property), name
        return
    own = list(inspect.signature(ours).parameters.values())  # type: ignore[arg-type]
    base = list(inspect.signature(theirs).parameters.values())  # type: ignore[arg-type]
    assert [(p.name, p.kind) for p in own[: len(base)]] == [(p.name, p.kind) for p in base], f"{name}: {ADVICE}"
    assert all(parameter.default is not parameter.empty for parameter in own[len(base) :]), f"{name}: {ADVICE}"


def test_their_constructors_take_what_ours_give() -> None:
    found = {
        name.removesuffix(".__init__"): list(inspect.signature(theirs).parameters)[1:]  # type: ignore[arg-type]
        for name, (_, theirs) in find_overridden().items()
        if name.endswith(".__init__")
    }
    assert found == CONSTRUCTORS, ADVICE


@pytest.mark.slow
def test_newest_flwr_has_the_same_internals(tmp_path: Path) -> None:
    """Says what an upgrade would break; a failure here is news, and no reason to hold anything else back."""
    got = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), "--upgrade", "flwr"],
        capture_output=True,
        text=True,
        check=False,
    )
    if got.returncode:
        pytest.skip(f"no newer flwr can be had: {got.stderr.strip().splitlines()[-1:]}")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-m", "not slow"]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:]
