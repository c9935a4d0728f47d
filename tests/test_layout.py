"""The house rules that a machine can check: who imports whom, and what lies at the top."""

import ast
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TIERS = [
    ["errors", "atomic_files", "seeding", "registry", "config", "config_files", "deployment", "native"],
    ["metrics", "losses", "reparameterization", "models"],
    ["data", "fairness", "aggregation", "distillation"],
    ["audit", "processes", "keys", "health", "compression", "wire", "checkpoint", "run_folder", "schedules",
     "optimizers", "training", "network", "report", "predict", "export"],
]  # fmt: skip
PLACE = {room: (tier, order) for tier, rooms in enumerate(TIERS) for order, room in enumerate(rooms)}
SOURCES = sorted(
    path for package in ("fedmed", "server", "client", "simulations") for path in (ROOT / package).rglob("*.py")
)


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "fedmed" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    modules = imported_modules(path)
    tops = {module.split(".")[0] for module in modules}
    if package == "fedmed":
        assert not tops & {"server", "client", "simulations", "ray"}
        if path.name != "wire.py":
            assert "flwr" not in tops
        own = path.relative_to(ROOT / "fedmed").parts[0].removesuffix(".py")
        if own != "__init__":
            for room in filter(None, map(room_of, modules)):
                if room != own:
                    assert PLACE[room][0] < PLACE[own][0] or PLACE[room] < PLACE[own], f"{own} imports {room}"
    if package == "server":
        assert not tops & {"client", "simulations", "ray"}
    if package == "client":
        assert not tops & {"server", "simulations", "ray"}


def test_every_room_has_a_place() -> None:
    rooms = {
        path.stem for path in (ROOT / "fedmed").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= set(PLACE)


def test_top_level_is_what_was_agreed() -> None:
    agreed = {"fedmed", "server", "client", "configs", "simulations", "tests", "pyproject.toml", "README.md", "LICENSE"}
    made = {"requirements.lock", "runs", "build", "dist", "fedmed.egg-info", "__pycache__"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert agreed <= found
    assert found <= agreed | made


def test_matplotlib_only_in_figures() -> None:
    users = [path for path in SOURCES if any(m.split(".")[0] == "matplotlib" for m in imported_modules(path))]
    drawing = {"fedmed/report/drawing/plots.py", "fedmed/report/drawing/fairness_plots.py"}
    assert {path.relative_to(ROOT).as_posix() for path in users} <= drawing


def test_modules_come_from_our_own_distribution() -> None:
    owners = metadata.packages_distributions()
    for package in ("fedmed", "server", "client", "simulations", "configs"):
        assert set(owners[package]) == {"fedmed"}, f"'{package}' is also installed by {owners[package]}"


def test_files_stay_small() -> None:
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in long.items() if lines > 330} == {}
