"""Passphrases: where they come from, and what they keep closed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedmed.keys.passphrases
from fedmed.errors import ConfigError, FedmedError, KeyFileError
from fedmed.keys import is_locked, make_operator_key, make_site_key, read_private_key, read_public_key, sign
from fedmed.keys.passphrases import (
    ask_new_passphrase,
    check_passphrase,
    hold_passphrase,
    read_held_passphrase,
    read_passphrase_file,
    read_passphrases,
    take_passphrase,
)
from fedmed.processes import child_environment, write_secret

WORDS = b"four words of mine"


class Terminal:
    """A person who types these words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
        self.words, self.asked = list(words), list[str]()
        monkeypatch.setattr(fedmed.keys.passphrases.sys, "stdin", self)
        monkeypatch.setattr(fedmed.keys.passphrases.getpass, "getpass", self.ask)

    def isatty(self) -> bool:
        return True

    def ask(self, prompt: str) -> str:
        self.asked.append(prompt)
        return self.words.pop(0)


def test_a_locked_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    make_site_key(tmp_path, "a", WORDS)
    key = tmp_path / "site.key"
    assert is_locked(key)
    assert key.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    opened = read_private_key(key, WORDS)
    make_site_key(tmp_path / "other", "a")
    assert not is_locked(tmp_path / "other/site.key")
    assert opened.public_key() != read_private_key(tmp_path / "other/site.key", WORDS).public_key()
    for wrong in (b"four words of mine ", b"another", b""):
        with pytest.raises(KeyFileError, match=r"was not opened by this passphrase\. Type the right one") as caught:
            read_private_key(key, wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(KeyFileError, match="locked by a passphrase, and none was given"):
        read_private_key(key)
    read_public_key(tmp_path / "site.pub")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_needs_the_passphrase_as_well(tmp_path: Path) -> None:
    make_site_key(tmp_path, "a", WORDS)
    for words, code in ((WORDS.decode(), 0), ("another one", 1)):
        command = ["openssl", "pkey", "-in", tmp_path / "site.key", "-passin", f"pass:{words}", "-noout"]
        assert (subprocess.run(command, capture_output=True, check=False).returncode != 0) == code


def test_an_operators_key_signs_with_its_passphrase(tmp_path: Path) -> None:
    make_operator_key(tmp_path, "ada", WORDS)
    assert sign(tmp_path / "ada.key", b"x", WORDS)
    with pytest.raises(KeyFileError, match="was not opened by this passphrase"):
        sign(tmp_path / "ada.key", b"x", b"another one")


@pytest.mark.parametrize("text", ["", "elevenchars", "x" * 1001, "twelve\nletters", "twelve\x00letters"])
def test_short_and_strange_ones_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a passphrase has 12 letters or more, all in one line"):
        check_passphrase(text, "it")
    assert check_passphrase("twelve länge", "it") == "twelve länge".encode()


def test_a_new_one_is_typed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch, WORDS.decode(), WORDS.decode())
    assert ask_new_passphrase("the key of a") == WORDS
    assert len(terminal.asked) == 2
    Terminal(monkeypatch, WORDS.decode(), "four words of mina")
    with pytest.raises(ConfigError, match=r"the two passphrases differ\. Nothing was made"):
        ask_new_passphrase("the key of a")


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert ask_new_passphrase("it") is None


def test_the_environment_has_it_once_and_children_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDMED_KEY_PASSPHRASE", "from the environment")
    assert "FEDMED_KEY_PASSPHRASE" not in child_environment(tmp_path)
    assert "FEDMED_KEY_PASSPHRASE" not in child_environment(tmp_path, network=True)
    assert take_passphrase() == "from the environment"
    assert take_passphrase() is None
    assert "FEDMED_KEY_PASSPHRASE" not in os.environ


def test_files_with_passphrases(tmp_path: Path) -> None:
    def write(text: str) -> Path:
        write_secret(tmp_path / "words", text.encode())
        return tmp_path / "words"

    assert read_passphrase_file(write("four words: of mine \n")) == "four words: of mine "
    assert read_passphrases(write("one for all sites\n")) == {None: "one for all sites"}
    assert read_passphrases(write("a: of site a: x\nb: of site b\n")) == {"a": "of site a: x", "b": "of site b"}
    for text in ("", "\n\n", "a\nb\n"):
        with pytest.raises(KeyFileError, match="allowed is one"):
            read_passphrase_file(write(text))
    for text in ("a: x\nb\n", "a: x\na: y\n"):
        with pytest.raises(KeyFileError, match="a line 'NAME: PASSPHRASE' for each site"):
            read_passphrases(write(text))
    write("right words here").chmod(0o644)
    with pytest.raises(KeyFileError, match=r"others on this machine can use it \(mode 0644"):
        read_passphrase_file(tmp_path / "words")


def test_errors_never_repeat_a_passphrase(tmp_path: Path) -> None:
    write_secret(tmp_path / "words", b"secretword one\nsecretword two\n")
    make_site_key(tmp_path, "a", WORDS)
    for act in (
        lambda: read_passphrase_file(tmp_path / "words"),
        lambda: read_passphrases(tmp_path / "words"),
        lambda: check_passphrase("secretword", "it"),
        lambda: read_private_key(tmp_path / "site.key", b"secretword"),
    ):
        with pytest.raises(FedmedError) as caught:
            act()
        assert "secretword" not in str(caught.value)


def test_a_child_reads_what_its_parent_holds_again_and_again() -> None:
    number = hold_passphrase("ein geheimes Wört".encode())
    program = "import os, sys; print(os.pread(int(sys.argv[1]), 4000, 0).decode())"
    for _ in range(2):
        said = subprocess.run(
            [sys.executable, "-c", program, str(number)], pass_fds=[number], capture_output=True, text=True, check=True
        ).stdout
        assert said == "ein geheimes Wört\n"
    assert read_held_passphrase(number) == "ein geheimes Wört".encode()
    # Others do not get it.
    assert subprocess.run([sys.executable, "-c", program, str(number)], capture_output=True, check=False).returncode
    os.close(number)
    with pytest.raises(KeyFileError, match="was not given the passphrase"):
        read_held_passphrase(number)
