"""Building and loading the native kernels: nothing that goes wrong there may stop an installation or a run."""

import ctypes
import logging
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fedmed.native
from fedmed.native import ABI_VERSION, FORMS, VARIABLE, Problem, build, load_kernels, native_form
from fedmed.native.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(not build.LIBRARY.exists(), reason="the native kernels are not built here")
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C++ compiler here")


@pytest.fixture(autouse=True)
def load_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    fedmed.native._load.cache_clear()


def make_compiler(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a script the only compiler that is found."""
    script = folder / "compiler"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))


def compile_stub(folder: Path, body: str) -> Path:
    """Compile a library with functions of its own."""
    source, library = folder / "stub.cpp", folder / build.LIBRARY.name
    source.write_text('extern "C" {' + body + "}")
    subprocess.run([build.find_compiler(), "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library


@needs_library
def test_environment_chooses_the_form(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="fedmed.native")
    best = native_form()
    assert best in FORMS
    assert native_form() == best
    assert caplog.messages == [f"Depthwise layers train with native kernels ({best})."]
    monkeypatch.setenv(VARIABLE, "portable")
    assert native_form() == "portable"
    monkeypatch.setenv(VARIABLE, "avx512")
    assert native_form() == best  # never wider than the processor
    monkeypatch.setenv(VARIABLE, "0")
    assert load_kernels() is None


@needs_library
def test_structure_is_the_librarys() -> None:
    # nine 64-bit words, one double, seventeen addresses; the library reads the sizes back through them
    assert ctypes.sizeof(Problem) == 8 * (9 + 1 + 17)
    sides = (ctypes.c_int32 * 4)(7, 1, 3, 3)
    problem = Problem(height=9, width=9, channels=5, reach=3, branches=2, sides=ctypes.addressof(sides))
    kernels = load_kernels()
    assert kernels is not None
    assert kernels.window_reach(problem) == 3
    products, firsts = kernels.bag_sizes(problem)
    lanes = products // (7 + 9)
    assert lanes in (8, 16)  # 5 channels fill two slabs of 4, one of 8 or one of 16
    assert firsts == 49 * lanes


def test_missing_library_is_said_once(monkeypatch, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, logger="fedmed.native")
    monkeypatch.setattr(fedmed.native, "LIBRARY", tmp_path / "none.so")
    assert load_kernels() is None
    assert load_kernels() is None
    assert len(caplog.messages) == 1
    assert "python -m fedmed.native" in caplog.messages[0]


def test_damaged_library_is_left_out(monkeypatch, tmp_path, caplog) -> None:
    library = tmp_path / "damaged.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(fedmed.native, "LIBRARY", library)
    assert native_form() is None
    assert "cannot be loaded" in caplog.text


@needs_compiler
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            f"int fedmed_abi_version() {{ return {ABI_VERSION + 1}; }} int fedmed_best_form() {{ return 2; }}",
            "interface",
        ),
        ("int other() { return 0; }", "cannot be loaded"),
    ],
)
def test_library_of_another_version_is_refused(monkeypatch, tmp_path, caplog, body, reason) -> None:
    monkeypatch.setattr(fedmed.native, "LIBRARY", compile_stub(tmp_path, body))
    assert native_form() is None
    assert reason in caplog.text


def test_versions_agree() -> None:
    assert f"ABI_VERSION = {ABI_VERSION};" in build.SOURCE.read_text()


def test_missing_compiler_is_a_reason_not_an_error(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.build_library(tmp_path / "x.so") == "no C++ compiler (g++ or clang++) was found"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["echo out of order >&2; exit 1", "exit 0"])
def test_failing_compiler_keeps_what_was_there(monkeypatch, tmp_path, text) -> None:
    make_compiler(tmp_path, text, monkeypatch)
    target = tmp_path / "kernels.so"
    target.write_bytes(b"before")
    problem = build.build_library(target)
    assert problem is not None
    assert "failed: " + ("out of order" if "echo" in text else "no message") in problem
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"compiler", "kernels.so"}


def test_compiler_without_openmp_is_asked_for_plain_threads(monkeypatch, tmp_path) -> None:
    text = 'case "$*" in *-fopenmp*) exit 1;; esac; for last; do :; done; echo built > "$last"'
    make_compiler(tmp_path, text, monkeypatch)
    assert build.build_library(tmp_path / "kernels.so") is None
    assert (tmp_path / "kernels.so").read_text() == "built\n"


def test_folder_that_cannot_be_written_is_a_reason(monkeypatch, tmp_path) -> None:
    make_compiler(tmp_path, "exit 0", monkeypatch)
    assert "No such file" in str(build.build_library(tmp_path / "missing" / "kernels.so"))


def test_command_says_what_it_did(monkeypatch, capsys) -> None:
    monkeypatch.setattr("fedmed.native.__main__.build_library", lambda: None)
    assert main([]) == 0
    assert "Built" in capsys.readouterr().out
    monkeypatch.setattr("fedmed.native.__main__.build_library", lambda: "no C++ compiler")
    assert main([]) == 1
    assert "were not built: no C++ compiler" in capsys.readouterr().err


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the project's sources, as small as the build needs it."""
    folder = tmp_path / "checkout"
    for package in ("fedmed/native", "server", "client", "simulations", "configs"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
    (folder / "fedmed" / "__init__.py").touch()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder)
    for file in ("__init__.py", "__main__.py", "build.py", "kernels.cpp", "setuptools_hook.py"):
        shutil.copy(ROOT / "fedmed" / "native" / file, folder / "fedmed" / "native")
    return folder


def build_wheel(checkout: Path, **environment: str) -> tuple[str, set[str]]:
    """Return name and files of the wheel, made by the build backend itself, which needs no network."""
    command = "from setuptools import build_meta; print('WHEEL', build_meta.build_wheel('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=checkout, env=os.environ | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    name = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("WHEEL"))
    with zipfile.ZipFile(checkout / "dist" / name) as wheel:
        return name, {file.rpartition("/")[2] for file in wheel.namelist()}


def test_wheel_holds_the_library_and_fits_any_python_3(checkout, tmp_path, monkeypatch) -> None:
    make_compiler(tmp_path, 'for last; do :; done; echo built > "$last"', monkeypatch)
    name, files = build_wheel(checkout)
    assert {build.LIBRARY.name, "kernels.cpp", "build.py"} <= files
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")


@pytest.mark.parametrize("text", ["exit 1", None])
def test_wheel_is_made_without_a_library(checkout, tmp_path, monkeypatch, text) -> None:
    (checkout / "fedmed" / "native" / build.LIBRARY.name).write_bytes(b"left in the checkout")
    environment = {}
    if text is None:
        environment = {VARIABLE: "0"}
    else:
        make_compiler(tmp_path, text, monkeypatch)
    name, files = build_wheel(checkout, **environment)
    assert build.LIBRARY.name not in files
    assert name.endswith("-py3-none-any.whl") == (text is None)


def test_editable_installation_builds_in_place(checkout, tmp_path, monkeypatch) -> None:
    make_compiler(tmp_path, 'for last; do :; done; echo built > "$last"', monkeypatch)
    command = "from setuptools import build_meta; build_meta.build_editable('dist')"
    subprocess.run([sys.executable, "-c", command], cwd=checkout, check=True, capture_output=True)
    assert (checkout / "fedmed" / "native" / build.LIBRARY.name).read_text() == "built\n"


def test_source_distribution_holds_what_a_build_needs(checkout) -> None:
    command = "from setuptools import build_meta; print('SDIST', build_meta.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", command], cwd=checkout, check=True, capture_output=True)
    with tarfile.open(next((checkout / "dist").glob("*.tar.gz"))) as archive:
        files = {file.rpartition("/")[2] for file in archive.getnames()}
    assert {"kernels.cpp", "build.py", "setuptools_hook.py"} <= files
    assert build.LIBRARY.name not in files


@pytest.mark.slow
@needs_compiler
def test_kernels_compile_without_a_warning_in_either_way_of_threading(tmp_path) -> None:
    warnings = [
        "-std=c++17",
        "-O0",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-Wno-ignored-attributes",
    ]
    for threads in build.THREADS:
        command = [build.find_compiler(), *warnings, *threads, "-Wno-unknown-pragmas", str(build.SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
