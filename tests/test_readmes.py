"""The pages say what is true: links, files, options, settings and names exist, and the commands can be typed."""

import argparse
import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import client.app
import server.app
import simulations.run
from fedmed.config import RunConfig
from fedmed.keys.passphrases import PASSPHRASE_VARIABLE
from fedmed.losses import list_losses
from fedmed.models import list_models
from fedmed.protocol.kinds import list_flower_types
from simulations.studies import readme_tables
from tests.markdown import PACKAGES, ROOT, SCRIPTS, Command, Page, list_files, list_pages, read_command

PAGES = list_pages()
FIRST = Page(ROOT / "README.md")
MODELS = (RunConfig, server.app.ServerConfig, client.app.ClientConfig)
SUFFIXES = {".py", ".md", ".yaml", ".json", ".jsonl", ".csv", ".svg", ".html", ".onnx", ".safetensors", ".pem", ".key",
            ".toml", ".txt", ".lock", ".cff", ".service", ".pub", ".crt", ".sig"}  # fmt: skip

# What the pages name and the repository does not hold: places and files of a run, a kit, a site's state, a user's own.
PLACES = {"report", "splits", "model", "checkpoints", "tables", "sites", "updates", "state", "federation", "runs",
          ".venv", "countersigned", "ham10000", "covid_ct", "brain_tumour_mri", "pneumonia_mnist", "..",
          ".venv-next"}  # fmt: skip
FILES = {"history.jsonl", "metrics.csv", "config.yaml", "environment.json", "audit.jsonl", "model.onnx",
         "model.safetensors", "load_model.py", "manifest.json", "proof.json", "model_card.md", "requirements.txt",
         "manifest.sig", "history.json", "ARM-SEED.json", "tripod_ai.md",
         "ca.key", "ca.pem", "release.key", "release.pub", "server.key", "site.key", "site.pub",
         "site.crt"}  # fmt: skip
WORDS = {"hospital_b", "vidir_molemax", "vienna_dias", "class_names", "efficientnet_lite0", "efficientnet_lite2"}
"""Names of sites, of an array and of packaged teachers, which no setting knows."""

TYPED = {  # what ends within seconds: exit code, and what is then read
    ".venv/bin/python simulations/run.py --help": (0, "--study"),
    "flower-client --check": (1, "There is no 'client.yaml'. Change to the folder of the kit"),
    "flower-client --approve": (1, "There is no 'client.yaml'. Change to the folder of the kit"),
    "flower-client": (1, "There is no 'client.yaml'. Change to the folder of the kit"),
    "flower-client --make-key": (1, "There is no 'client.yaml'"),
    "flower-client --audit": (1, "There is no 'client.yaml'. Change to the folder of the kit"),
    "flower-client --audit --since 2026-11-30 --last 50": (1, "There is no 'client.yaml'."),
    "flower-client --verify-audit": (1, "There is no 'client.yaml'."),
    "flower-client --make-key NAME": (0, "--add-site NAME --public-key site.pub"),
    "python -m fedmed.predict --model state/model IMAGE...": (1, "state/model"),
    "python -m fedmed.disclosure federation/run": (1, "Give the folder printed at the start of the run"),
}
FEDERATION = {  # one after another in one folder that holds server.yaml
    "flower-server --provision federation --keys-at-sites --config server.yaml": (0, "it holds no secret"),
    "flower-server --config federation/server.yaml --status": (1, "no flower-server has been started"),
    "flower-server --config federation/server.yaml --add-site NAME": (0, "accepts the site within a few seconds"),
    "flower-server --config federation/server.yaml --revoke-site NAME": (0, "NAME is revoked"),
    "flower-server --config federation/server.yaml --verify-audit": (1, "There is no audit log"),
    "flower-server --config federation/server.yaml --delete-kit-keys": (0, "removed: the private key of NAME"),
    "flower-server --make-operator-key NAME": (0, "Give the public key to whoever writes server.yaml"),
    "flower-server --config federation/server.yaml --record-of-processing": (0, "# Record of processing"),
}
SLOW = {
    ".venv/bin/python -m fedmed.native": (0, "its form"),
    ".venv/bin/python -m simulations.studies.readme_tables": (0, "nothing has changed"),
    ".venv/bin/python simulations/run.py --study configs/studies/fairness.yaml --table": (0, "21 of 21 cells done"),
}
NOT_TYPED = {  # the beginning of a line -> why
    "python3 -m venv": "sets a machine up; .ci/run types it",
    ".venv/bin/python simulations/run.py --set": "trains; tests/integration types such lines",
    ".venv/bin/python simulations/run.py --config": "trains",
    ".venv/bin/python simulations/run.py --resume": "trains",
    ".venv/bin/python simulations/run.py --study configs/studies/fairness.yaml": "trains",
    ".venv/bin/python -m fedmed.predict --model runs/DATE-NAME/model": "needs a model of a run",
    "python predict.py image.png": "stands in the folder of a model; tests/export/test_environment.py types it",
    "uv pip compile": "asks the package index",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class ParserFoundError(Exception):
    """Carries the parser of a command out of its main."""


@pytest.fixture(scope="module")
def find_parser():
    """Return a function from a module's name to the parser that its main makes."""
    known = {}

    def stop(parser, *_):
        raise ParserFoundError(parser)

    def find(module):
        if module not in known:
            spec = importlib.util.find_spec(module)
            assert spec is not None, f"there is no {module}"
            real = f"{module}.__main__" if spec.submodule_search_locations else module
            main = importlib.import_module(real).main
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", stop)
                with pytest.raises(ParserFoundError) as found:
                    main([])
            known[module] = found.value.args[0]
            known[module].allow_abbrev = False  # a page has the whole name
        return known[module]

    return find


@pages
def test_links_lead_somewhere(page):
    for link in page.links:
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:")):
            continue
        file = (page.path.parent / target).resolve() if target else page.path
        assert file.exists(), f"{page.name}: {link}"
        assert file.is_relative_to(ROOT), f"{page.name}: {link} leaves the project"
        if anchor:
            assert anchor in Page(file).anchors, f"{page.name}: {link}; there are {sorted(Page(file).anchors)}"


def test_every_page_can_be_reached_from_the_first():
    found, new = {FIRST.path}, [FIRST]
    while new:
        page = new.pop()
        for link in page.links:
            file = (page.path.parent / link.partition("#")[0]).resolve()
            if file.suffix == ".md" and file not in found:
                found.add(file)
                new.append(Page(file))
    assert found == {page.path for page in PAGES}


@pages
def test_files_exist(page):
    names = {path.name for path in list_files()}
    for span in page.spans:
        if not re.fullmatch(r"[\w.+/-]+", span):
            continue
        if "/" in span and span.strip("/"):
            is_ours = (ROOT / span).exists() or (page.path.parent / span).exists()
            assert is_ours or span.split("/")[0] in PLACES, f"{page.name}: {span} does not exist"
        elif Path(span).suffix in SUFFIXES:
            assert span in names | FILES, f"{page.name}: there is no file {span}"


@pages
def test_names_of_modules_exist(page):
    for span in page.spans:
        if re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", span) and Path(span).suffix not in SUFFIXES:
            module, _, name = span.rpartition(".")
            found = importlib.import_module(module) if importlib.util.find_spec(module) else None
            assert hasattr(found, name) or importlib.util.find_spec(span), f"{page.name}: {span}"


def test_folders_of_the_tree_exist():
    (tree,) = [body for kind, body in FIRST.blocks if kind == "indented" and "flower-server:" in body]
    folders = {path.parent.name for path in list_files()} | {path.parent.parent.name for path in list_files()}
    named = set(re.findall(r"([\w]+)/", tree))
    assert len(named) > 30
    assert named <= folders, named - folders


@pages
def test_options_exist(page, find_parser):
    """What a page's commands are given is taken by their own parsers, to the last value."""
    for command in page.commands():
        options = parse(find_parser(command.module), command, page)
        check_overrides(options, command, page)


def parse(parser, command: Command, page: Page):
    try:
        return parser.parse_args([word.replace("...", "") for word in command.arguments])
    except SystemExit as end:
        if end.code:  # 0: --help
            pytest.fail(f"{page.name}: '{command.text}' is not taken")
        return argparse.Namespace()


def check_overrides(options, command: Command, page: Page) -> None:
    """Check that the settings after ``--set`` can be set in the config that the command names."""
    overrides = getattr(options, "overrides", None) or getattr(options, "set", None)
    if overrides:
        file = options.config or ROOT / "configs" / "simulation.yaml"
        config = simulations.run.load_run_config(ROOT / file, overrides)
        assert config.model.name in list_models(), f"{page.name}: '{command.text}'"


@pages
def test_options_without_a_command_are_somebodys(page, find_parser):
    modules = {command.module for page in PAGES for command in page.commands()}
    known = {option for module in modules for option in find_parser(module)._option_string_actions}
    for span in page.spans:
        if span.startswith("--"):
            assert set(re.findall(r"--[\w-]+", span)) <= known, f"{page.name}: {span}"


def sections(model=None, seen=None):
    """Yield all parts of the settings."""
    seen = set() if seen is None else seen
    for one in MODELS if model is None else [model]:
        if one not in seen:
            seen.add(one)
            yield one
            for field in one.model_fields.values():
                for inner in inner_models(field.annotation):
                    yield from sections(inner, seen)


def inner_models(annotation):
    """Return the sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in inner_models(part)]


def find_owners(key: str) -> list[tuple[type[BaseModel], str]]:
    """Return what a dotted key can mean, section and name: from the top, or, of a single word, in any section."""
    first, *rest = key.split(".")
    found = [(model, first) for model in (sections() if not rest else MODELS) if first in model.model_fields]
    for name in rest:
        inner = [one for model, last in found for one in inner_models(model.model_fields[last].annotation)]
        found = [(model, name) for model in inner if name in model.model_fields]
    return found


def accepts(model: type[BaseModel], name: str, value: object) -> bool:
    """Return whether a section takes a value; that it lacks others does not count."""
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        # The first part of a place can be the tag of a union.
        return not any(name in found["loc"] or not found["loc"] for found in error.errors())
    return True


def model_options() -> set[str]:
    """Return the parameters of everything in fedmed/models: a network's options are among them."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "fedmed" / "models").rglob("*.py")]
    return {node.arg for tree in trees for node in ast.walk(tree) if isinstance(node, ast.arg)}


def kinds_of_messages() -> set[str]:
    return set(list_flower_types())


@pages
def test_settings_exist_and_take_their_values(page):
    options = model_options()
    for span in page.spans:
        found = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)*)(:(?: (.*))?)?", span)
        if not found or not ("." in found[1] or found[2]):
            continue
        key, _, value = found.groups()
        if Path(key).suffix in SUFFIXES or key.split(".")[0] in PACKAGES or key in kinds_of_messages():
            continue
        owners = find_owners(key)
        assert owners or key in options, f"{page.name}: '{span}' is no setting"
        if owners and value and not re.search(r"[A-Z]{3}", value):
            assert any(accepts(*owner, yaml.safe_load(value)) for owner in owners), f"{page.name}: '{span}' is refused"


@pages
def test_names_are_known(page):
    """Words with an underscore are settings, their values, networks, losses or options of a network."""
    fields = [field for model in sections() for field in model.model_fields.items()]
    known = {name for name, _ in fields} | {text for _, field in fields for text in literals(field.annotation)}
    arms = {path.stem.rpartition("-")[0] for path in (ROOT / "simulations" / "results").rglob("*-*.json")}
    known |= {*list_models(), *list_losses(), *model_options(), *arms, *WORDS}
    for span in page.spans:
        if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", span):
            assert span in known, f"{page.name}: nothing is called {span}"


def literals(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        return set(map(str, typing.get_args(annotation)))
    return {text for part in typing.get_args(annotation) for text in literals(part)}


def test_lines_to_type_are_typed_or_have_a_reason():
    for page in PAGES:
        for line in page.lines_to_type():
            is_typed = line in TYPED | FEDERATION | SLOW
            assert is_typed or any(line.startswith(begin) for begin in NOT_TYPED), f"{page.name}: {line}"


def test_what_is_typed_stands_on_a_page():
    shown = {line for page in PAGES for line in [*page.lines_to_type(), *page.spans]}
    assert set(TYPED | FEDERATION | SLOW) <= shown


def type_line(line: str, folder: Path) -> tuple[int, str]:
    command = read_command(line)
    start = f"import sys; from {command.module} import main; sys.exit(main())"
    program = ["-c", start] if line.split(maxsplit=1)[0] in SCRIPTS else ["-m", command.module]
    found = subprocess.run(
        [sys.executable, *program, *command.arguments],
        check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), PASSPHRASE_VARIABLE: "words of a test"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return found.returncode, found.stdout + found.stderr


def check_line(line: str, folder: Path, expected: tuple[int, str]) -> None:
    code, said = type_line(line, folder)
    assert code == expected[0], said
    assert expected[1] in said


@pytest.mark.parametrize("line", TYPED)
def test_typed(line, tmp_path):
    check_line(line, tmp_path, TYPED[line])


def test_typed_at_the_coordinating_site(tmp_path):
    (tmp_path / "server.yaml").write_text((ROOT / "configs" / "server.yaml").read_text())
    for line, expected in FEDERATION.items():
        check_line(line, tmp_path, expected)


@pytest.mark.slow
@pytest.mark.parametrize("line", SLOW)
def test_typed_slowly(line):
    check_line(line, ROOT, SLOW[line])


def test_tables_of_studies_are_those_of_their_files(capsys):
    assert readme_tables.draw_tables(readme_tables.README.read_text()) == readme_tables.README.read_text()


def test_picture_is_the_one_that_is_drawn():
    script = ROOT / ".github" / "pictures" / "who_dials_whom.py"
    assert runpy.run_path(str(script))["draw"]() == script.with_suffix(".svg").read_text()


def test_first_page_is_short_and_begins_with_the_two_commands():
    lines = FIRST.text.splitlines()
    commands = [number for number, line in enumerate(lines) if line.startswith("    python3 -m venv .venv && ")]
    assert len(lines) <= 150
    assert len(commands) == 2
    assert max(commands) < 20
    # .ci/run types the first line with these words
    assert next(line for line in lines if "python -m pytest -n 2" in line) == lines[commands[1]]


def test_results_of_the_first_page_are_those_of_the_pages_behind_it():
    part = FIRST.text.split("## Four results\n")[1].split("\n## ")[0]
    items = part.strip().split("\n- ")
    assert len(items) == 4
    for item in items:
        targets = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", item)]
        behind = "".join((ROOT / target).read_text() for target in targets)
        numbers = re.findall(r"\d+[.,]\d+", item)
        assert targets
        assert [number for number in numbers if number not in behind] == []


def test_nobody_is_told_to_install_what_is_not_ours():
    """The name fedmed on the public index belongs to somebody else."""
    for page in PAGES:
        assert not re.search(r"pip3? install[^\n]*\bfedmed\b(?!-hospitals)", page.text), page.name
