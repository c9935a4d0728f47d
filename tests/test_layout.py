"""The house rules that a machine can check: who imports whom, how full a room is, and what lies at the top."""

import ast
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from fedmed.versions import DISTRIBUTION

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedmed", "server", "client", "simulations")
TIERS = [
    ["fedmed.errors", "fedmed.versions", "fedmed.formats", "fedmed.own_packages", "fedmed.seeding", "fedmed.registry"],
    ["fedmed.installed_code", "fedmed.extensions"],
    ["fedmed.predict_tables", "fedmed.predict_watch", "fedmed.predict", "fedmed.native"],
    ["fedmed.config"],
    ["fedmed.storage", "fedmed.processes", "fedmed.keys"],
    ["fedmed.metrics", "fedmed.losses", "fedmed.reparameterization"],
    ["fedmed.clinical"],
    ["fedmed.models.blocks", "fedmed.models.bags", "fedmed.models"],
    ["fedmed.protocol"],
    ["fedmed.data.phantom", "fedmed.data.sources", "fedmed.data"],
    ["fedmed.fairness.figures", "fedmed.fairness.disclosure", "fedmed.fairness.reconstruction"],
    ["fedmed.fairness.chance", "fedmed.fairness"],
    ["fedmed.training"],
    ["fedmed.aggregation"],
    ["fedmed.distillation.pixels", "fedmed.distillation.resize", "fedmed.distillation.teachers"],
    ["fedmed.distillation.prompt", "fedmed.distillation.at_sites", "fedmed.distillation.small_network"],
    ["fedmed.distillation"],
    ["fedmed.report.schema", "fedmed.report.drawing"],
    ["fedmed.report.content", "fedmed.report.figures", "fedmed.report.sections", "fedmed.report.guidelines"],
    ["fedmed.report", "fedmed.export", "fedmed.health", "fedmed.disclosure"],
    ["server.provisioning", "server.rounds", "server.finish", "server.release", "server.federation"],
    ["server.superlink", "server.supervision", "server.app"],
    ["client.hospital", "client.guard", "client.answers", "client.site", "client.supernode", "client.release"],
    ["client.check", "client.app"],
    ["simulations.backend", "simulations.pooled_scores"],
    ["simulations.simulation", "simulations.studies", "simulations.benchmarks"],
    ["simulations.run", "simulations.results"],
]
"""Rooms, and files that are one by themselves; each imports only from those before it."""
PLACE = {room: place for place, room in enumerate(room for tier in TIERS for room in tier)}
MOST_MODULES = 16
"""In one folder, benchmarks apart."""
FLOWER_ROOMS = {"server.superlink", "client.supernode", "simulations.backend"}
"""Rooms that may touch Flower's internals."""
PUBLIC_FLOWER = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
RECORD_TYPES = "fedmed/protocol/messages.py"
"""The one file of the library that knows Flower's record types."""
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_module(path) for path in SOURCES}


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports; of a package's own names, the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names & MODULES
            if names - MODULES:
                found.add(module)
    return found


def find_room(module: str) -> str | None:
    parts = module.split(".")
    rooms = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((room for room in rooms if room in PLACE), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    module, modules = name_module(path), imported_modules(path)
    package, own = module.split(".")[0], find_room(module)
    tops = {name.split(".")[0] for name in modules}
    if package != "simulations":
        assert not tops & {"simulations", "ray"}
    if package in ("fedmed", "server"):
        assert "client" not in tops
    if package in ("fedmed", "client"):
        assert "server" not in tops
    if package == "fedmed" and path.relative_to(ROOT).as_posix() != RECORD_TYPES:
        assert "flwr" not in tops
    if own is not None:
        for room in filter(None, map(find_room, modules)):
            assert PLACE[room] <= PLACE[own], f"{module} imports from {room}, which stands behind {own}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_internals_of_flower_stay_in_three_rooms(path: Path) -> None:
    inside = {
        name for name in imported_modules(path) if name.split(".")[0] == "flwr" and not name.startswith(PUBLIC_FLOWER)
    }
    relative = path.relative_to(ROOT).as_posix()
    if relative != RECORD_TYPES and not relative.startswith("simulations/benchmarks/"):
        assert not inside or find_room(name_module(path)) in FLOWER_ROOMS, inside


def test_every_module_has_a_place() -> None:
    """Only packages that hold rooms, and nothing else, have none of their own."""
    assert {module for module in MODULES if find_room(module) is None} == {"fedmed", "server", "client", "simulations"}


def test_rooms_are_not_full_and_none_is_empty() -> None:
    modules = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    full = {folder: number for folder, number in modules.items() if number > MOST_MODULES}
    assert {folder.relative_to(ROOT).as_posix() for folder in full} <= {"simulations/benchmarks"}
    folders = {path.parent for path in SOURCES}
    held = {parent for folder in modules for parent in (folder, *folder.parents)}
    assert folders <= held


def test_rooms_say_what_belongs_there() -> None:
    packages = [path for path in SOURCES if path.name == "__init__.py"]
    assert [path for path in packages if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_top_level_is_what_was_agreed() -> None:
    agreed = {"fedmed", "server", "client", "configs", "simulations", "tests", "pyproject.toml", "README.md", "LICENSE"}
    agreed |= {"CHANGELOG.md", "CITATION.cff"}
    made = {"requirements.lock", "runs", "build", "dist", "fedmed.egg-info", "__pycache__"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert agreed <= found
    assert found <= agreed | made


def test_matplotlib_only_in_figures() -> None:
    users = [path for path in SOURCES if any(m.split(".")[0] == "matplotlib" for m in imported_modules(path))]
    drawing = {f"fedmed/report/drawing/{name}.py" for name in ("plots", "fairness_plots", "decision_plot")}
    assert {path.relative_to(ROOT).as_posix() for path in users} <= drawing


def test_modules_come_from_our_own_distribution() -> None:
    owners = metadata.packages_distributions()
    for package in ("fedmed", "server", "client", "simulations", "configs"):
        others = set(owners[package]) - {DISTRIBUTION}
        advice = f"pip uninstall {' '.join(sorted(others))}"
        assert set(owners[package]) == {DISTRIBUTION}, f"'{package}' is also installed by {others}: {advice}"


def test_files_stay_small() -> None:
    long = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in long.items() if lines > 330} == {}
