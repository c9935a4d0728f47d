"""Code from outside fedmed: which one is meant is found without importing it, and what is not allowed never runs."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fedmed.config import Plan
from fedmed.errors import ConfigError, ExtensionError, ExtensionFailedError
from fedmed.extensions import (
    AllowedExtension,
    Extension,
    allow_only,
    build_extension,
    check_installed,
    check_path,
    find_extension,
    load_extension,
)
from fedmed.losses import build_loss
from fedmed.models import create_model
from tests.support.extension_package import DISTRIBUTION, LOSS, MODEL, PACKAGE, SOURCE, importable, install

LOOSE = "loose_networks:build"


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """The example package, as installed."""
    with importable(install(tmp_path / "site-packages")) as folder:
        yield folder


def write_loose(folder: Path, text: str) -> str:
    """Write a module that belongs to no distribution and return its hash."""
    file = folder / "loose_networks.py"
    file.write_text(text)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("resnet:", "is no import path"),
        ("my package:build", "is no import path"),
        ("my_package.:build", "is no import path"),
        ("my_package:a.b", "is no import path"),
        ("../evil:build", "is no import path"),
        ("my_package:build\n", "is no import path"),
        ("a" * 300 + ":b", "is no import path"),
        ("os:system", "points into Python's own library"),
        ("importlib.metadata:version", "points into Python's own library"),
        ("fedmed.models:create_model", "points into fedmed itself"),
        ("client.site:app", "points into fedmed itself"),
        ("my_package:__import__", "names something of Python's own"),
        ("timm:resnet18", "networks of timm cannot be named like this"),
        ("torchvision:resnet18", "networks of torchvision cannot be named like this"),
    ],
)
def test_paths_that_may_not_be_named(path: str, problem: str) -> None:
    for use in (check_path, find_extension, load_extension):
        with pytest.raises(ExtensionError, match=problem) as caught:
            use(path)
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.shareable


def test_installed_code_is_told_with_distribution_version_and_hash(installed: Path) -> None:
    sha256 = hashlib.sha256((installed / PACKAGE / "networks.py").read_bytes()).hexdigest()
    found = find_extension(MODEL)
    assert found == Extension(path=MODEL, distribution=DISTRIBUTION, version="1.0", sha256=sha256)
    assert str(found) == f"'{MODEL}' of example-extension 1.0, SHA-256 {sha256[:12]}"
    assert not [name for name in sys.modules if name.startswith(PACKAGE)]  # not even the package around it
    check_installed([found])


@pytest.mark.slow
def test_pip_leaves_it_as_the_tests_install_it(installed: Path, tmp_path: Path) -> None:
    ours = [find_extension(path) for path in (MODEL, LOSS)]
    source = shutil.copytree(SOURCE, tmp_path / "source")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(tmp_path / "by_pip"), str(source)], check=True)
    with importable(tmp_path / "by_pip"):
        assert [find_extension(path) for path in (MODEL, LOSS)] == ours


def test_file_of_another_origin_does_not_pass_for_the_distribution(installed: Path, tmp_path: Path) -> None:
    """A folder of the same name that stands before the installed package in Python's path is a loose file."""
    (tmp_path / "first" / PACKAGE).mkdir(parents=True)
    for name in ("__init__.py", "networks.py"):
        (tmp_path / "first" / PACKAGE / name).write_text("")
    with importable(tmp_path / "first"):
        found = find_extension(MODEL)
    assert (found.distribution, found.version) == (None, None)


def test_package_that_is_installed_for_development_is_of_its_distribution(tmp_path: Path) -> None:
    folder = install(tmp_path / "checkout")
    told = folder / f"{PACKAGE}-1.0.dist-info"
    (told / "RECORD").write_text("")
    (told / "direct_url.json").write_text(f'{{"url": "{folder.as_uri()}", "dir_info": {{"editable": true}}}}')
    with importable(folder):
        assert find_extension(MODEL).distribution == DISTRIBUTION
        (told / "direct_url.json").write_text(f'{{"url": "{folder.as_uri()}", "dir_info": {{}}}}')
        assert find_extension(MODEL).distribution is None


def test_loose_file_is_told_as_such(tmp_path: Path) -> None:
    sha256 = write_loose(tmp_path, "def build(num_classes): ...")
    with importable(tmp_path):
        found = find_extension(LOOSE)
    assert found == Extension(path=LOOSE, distribution=None, version=None, sha256=sha256)
    assert "a loose file" in str(found)


def test_what_differs_is_said_in_one_line(installed: Path) -> None:
    here = find_extension(MODEL)
    other = here.model_copy(update={"version": "2.0"})
    with pytest.raises(ExtensionError, match=r"Found here: .* 1\.0, .*Wanted: .* 2\.0, .*Install the version"):
        check_installed([here, other])
    with pytest.raises(ExtensionError, match=r"Name and version are the same, the file differs"):
        check_installed([here.model_copy(update={"sha256": "0" * 64})])
    with pytest.raises(
        ExtensionError, match=r"is not installed here: there is no file of a module 'absent\.networks'.*"
    ):
        check_installed([here.model_copy(update={"path": "absent.networks:build"})])
    with pytest.raises(ExtensionError, match="Install the version"):  # a loose file does not pass for a distribution's
        check_installed([here.model_copy(update={"distribution": None, "version": None})])


def test_hospital_allows_paths_versions_and_files() -> None:
    code = Extension(path=MODEL, distribution=DISTRIBUTION, version="1.0", sha256="a" * 64)
    loose = Extension(path=MODEL, distribution=None, version=None, sha256="a" * 64)
    assert AllowedExtension(path=MODEL).covers(code)
    assert AllowedExtension(path=MODEL, version="1.0", sha256="a" * 64).covers(code)
    assert not AllowedExtension(path=MODEL, version="1.1").covers(code)
    assert not AllowedExtension(path=MODEL, sha256="b" * 64).covers(code)
    assert not AllowedExtension(path=LOSS).covers(code)
    assert not AllowedExtension(path=MODEL).covers(loose)
    assert AllowedExtension(path=MODEL, sha256="a" * 64).covers(loose)


def test_what_is_not_allowed_is_not_imported(tmp_path: Path) -> None:
    """The module leaves a file when it is imported."""
    marker = tmp_path / "imported"
    text = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nfrom torch.nn import Linear\n"
    text += "def build(num_classes):\n    return Linear(1, num_classes)\n"
    sha256 = write_loose(tmp_path, text)
    with importable(tmp_path):
        for entries in ([], [AllowedExtension(path=MODEL)], [AllowedExtension(path=LOOSE, sha256="0" * 64)]):
            with allow_only(entries), pytest.raises(ExtensionError, match="is not allowed at this site"):
                create_model(LOOSE, 2)
        assert not marker.exists()
        with allow_only([AllowedExtension(path=LOOSE, sha256=sha256)]):
            assert isinstance(create_model(LOOSE, 2), nn.Linear)
        assert marker.exists()
        with allow_only([]), allow_only([], [LOOSE]):
            assert isinstance(create_model(LOOSE, 2), nn.Linear)


def test_model_and_loss_are_built_with_their_options(installed: Path) -> None:
    """By hand: smoothing 0.2 over two classes gives the other class 0.1, so -0.9 log p_1 - 0.1 log p_2."""
    model = create_model(MODEL, 3, width=5)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3 * 9 * 5 + 10 + 5 * 3 + 3
    loss = build_loss({"ce": 1.0, LOSS: {"weight": 0.5, "smoothing": 0.2}}, [3, 1])
    logits, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    log_p = torch.log_softmax(logits, 1)[0]
    expected = -log_p[0] + 0.5 * (-0.9 * log_p[0] - 0.1 * log_p[1])
    assert torch.allclose(loss(logits, target), expected)
    assert torch.allclose(loss(logits, target, torch.tensor([2.0])), 2 * expected)
    with pytest.raises(ConfigError, match=r"has no option 'widht'\. Did you mean 'width'"):
        create_model(MODEL, 3, widht=5)


@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [
        ("build = 3", ExtensionError, "is a int. Needed: a function or class"),
        ("make = 3", ExtensionError, "has no 'build'"),
        ("def build(n): return 3", ExtensionError, r"has made a int\. Needed: torch\.nn\.modules\.module\.Module"),
        ("def build(n): raise ValueError('no\\nway')", ExtensionFailedError, "cannot be built: ValueError: no$"),
        ("import absent_package", ExtensionFailedError, "cannot be imported here: ModuleNotFoundError"),
        ("raise SystemExit(3)", ExtensionFailedError, "cannot be imported here: SystemExit: 3"),
    ],
)
def test_code_that_is_no_builder_is_explained(
    tmp_path: Path, text: str, error: type[ConfigError], problem: str
) -> None:
    write_loose(tmp_path, text)
    with importable(tmp_path), pytest.raises(error, match=problem) as caught:
        create_model(LOOSE, 2)
    assert len(str(caught.value).splitlines()) == 1
    assert error.shareable is (error is ExtensionError)


def test_file_that_changes_under_a_process_is_noticed(tmp_path: Path) -> None:
    write_loose(tmp_path, "def build(): return 1")
    with importable(tmp_path):
        assert build_extension("number", LOOSE, int) == 1
        write_loose(tmp_path, "def build(): return 22")
        with pytest.raises(ExtensionError, match="has changed since this process has loaded it"):
            build_extension("number", LOOSE, int)


def test_module_of_another_place_does_not_pass(tmp_path: Path) -> None:
    write_loose(tmp_path, "def build(): return 1")
    with importable(tmp_path):
        build_extension("number", LOOSE, int)
        (tmp_path / "first").mkdir()
        write_loose(tmp_path / "first", "def build(): return 1")
        sys.path.insert(0, str(tmp_path / "first"))
        try:
            with pytest.raises(ExtensionError, match="from another place"):
                build_extension("number", LOOSE, int)
        finally:
            sys.path.remove(str(tmp_path / "first"))


def test_plan_without_extensions_is_written_as_before(installed: Path) -> None:
    from tests.client.support.hospital import PLAN

    plain = Plan.model_validate(PLAN)
    assert "extensions" not in plain.model_dump()
    assert "extensions" not in plain.model_dump_json()
    plan = Plan.model_validate(PLAN | {"model": {"name": MODEL}, "loss": {"ce": 1.0, LOSS: 0.0}})
    assert plan.extension_paths == [MODEL, LOSS]
    described = plan.describe_extensions()
    assert described.extensions == [find_extension(MODEL), find_extension(LOSS)]
    assert Plan.model_validate_json(described.model_dump_json()) == described
