import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time

import psutil
import pytest

from fedmed.errors import KeyFileError, ProcessError
from fedmed.processes import (
    Backoff,
    Child,
    Stopped,
    check_port_free,
    child_environment,
    find_free_port,
    private_folder,
    read_secret,
    single_instance,
    write_secret,
)
from fedmed.processes.logs import MAX_LOG_BYTES

PATIENCE_S = 20.0


def wait_until(condition, seconds=PATIENCE_S):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def is_gone(pid):
    """Ended, whether or not its new parent has taken notice."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def make_child(tmp_path):
    children = []

    def make(code, *arguments, **options):
        child = Child(
            "helper",
            [sys.executable, "-c", code, *map(str, arguments)],
            tmp_path / "logs" / "helper.out",
            child_environment(tmp_path / "flower"),
            **options,
        )
        children.append(child)
        return child

    yield make
    for child in children:
        child.stop(grace_s=0.1)


class TestEnvironment:
    def test_flower_is_quiet_and_at_home(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
        monkeypatch.setenv("SOMETHING_ELSE", "kept")
        environment = child_environment(tmp_path, {"EXTRA": "1"})
        assert environment["FLWR_HOME"] == str(tmp_path)
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert environment["PYTHONUNBUFFERED"] == "1"
        assert (environment["EXTRA"], environment["SOMETHING_ELSE"]) == ("1", "kept")
        assert os.environ["FLWR_TELEMETRY_ENABLED"] == "1"

    def test_proxies_are_for_processes_with_a_network_only(self, tmp_path, monkeypatch):
        names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "Https_Proxy"]
        for name in names:
            monkeypatch.setenv(name, "http://user:pass-word@proxy:3128")
        monkeypatch.setenv("NO_PROXY", "localhost")
        without, with_network = child_environment(tmp_path), child_environment(tmp_path, network=True)
        assert not set(names) & set(without)
        assert "pass-word" not in str(without)
        assert {with_network[name] for name in names} == {"http://user:pass-word@proxy:3128"}
        assert without["NO_PROXY"] == with_network["NO_PROXY"] == "localhost"
        assert child_environment(tmp_path, {"HTTPS_PROXY": "http://other"})["HTTPS_PROXY"] == "http://other"

    def test_programs_of_our_environment_come_first_and_once(self, tmp_path, monkeypatch):
        ours = os.path.dirname(sys.executable)
        monkeypatch.setenv("PATH", f"/usr/bin:{ours}:/bin")
        assert child_environment(tmp_path)["PATH"] == f"{ours}:/usr/bin:/bin"
        monkeypatch.delenv("PATH")
        assert child_environment(tmp_path)["PATH"] == ours

    def test_a_module_in_the_working_directory_is_never_run(self, tmp_path):
        """A kit comes from elsewhere: a ``grpc.py`` in it must not take the place of what is installed here."""
        (tmp_path / "grpc.py").write_text("raise SystemExit('hijacked')")
        safe = child_environment(tmp_path)
        ordinary = {name: value for name, value in safe.items() if name != "PYTHONSAFEPATH"}
        command = [sys.executable, "-m", "fedmed.health", "--help"]
        texts = [
            subprocess.run(command, env=env, cwd=tmp_path, check=False, capture_output=True, text=True)
            for env in (ordinary, safe)
        ]
        assert "hijacked" in texts[0].stderr  # what Python does otherwise
        assert (texts[1].returncode, texts[1].stderr) == (0, "")


class TestChild:
    def test_exit_code_and_log(self, make_child):
        child = make_child("import sys; print('one'); print('two', file=sys.stderr); sys.exit(7)")
        assert (child.poll(), child.pid, child.tail(3)) == (None, None, "")
        child.start()
        wait_until(lambda: child.poll() is not None)
        assert child.poll() == 7
        assert child.tail(1) == "two"
        assert child.tail(9).splitlines() == ["one", "two"]
        assert mode_of(child.log_file) == 0o600

    def test_a_second_start_appends(self, make_child):
        child = make_child("print('again')")
        for _ in range(2):
            child.start()
            wait_until(lambda: child.poll() is not None)
        assert child.tail(5) == "again\nagain"

    def test_no_second_start_while_it_runs(self, make_child):
        child = make_child("import time; time.sleep(60)")
        child.start()
        with pytest.raises(ProcessError, match=f"helper is running already .process {child.pid}"):
            child.start()

    def test_a_program_that_does_not_exist(self, tmp_path):
        child = Child("helper", [str(tmp_path / "nothing")], tmp_path / "log", {})
        with pytest.raises(ProcessError, match="helper cannot be started: No such file"):
            child.start()
        assert child.poll() is None

    def test_stop_asks_first(self, make_child):
        code = (
            "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('up')\n"
            "while True: time.sleep(0.02)"
        )
        child = make_child(code)
        child.start()
        wait_until(lambda: child.tail(1) == "up")
        child.stop()
        assert child.poll() == 3
        child.stop()  # nothing more to do

    def test_stop_kills_what_does_not_listen_with_its_own_children(self, make_child):
        """SIGTERM is ignored by both; after 0.3 s SIGKILL reaches the whole session."""
        code = (
            "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
            "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print(c.pid); time.sleep(60)"
        )
        child = make_child(code)
        child.start()
        wait_until(lambda: child.tail(1).isdigit())
        grandchild = int(child.tail(1))
        began = time.monotonic()
        child.stop(grace_s=0.3)
        assert 0.3 <= time.monotonic() - began < 5
        assert child.poll() == -signal.SIGKILL
        wait_until(lambda: is_gone(grandchild))

    def test_it_has_a_session_of_its_own(self, make_child):
        """Ctrl-C on a terminal goes to the foreground process group; the child is in another."""
        child = make_child("import time; time.sleep(60)")
        child.start()
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        assert os.getpgid(child.pid) == child.pid

    def test_file_descriptors_are_handed_over_on_request_only(self, make_child):
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull) as other:
            code = (
                "import os, sys; os.write(int(sys.argv[1]), b'hello')\n"
                "try: os.fstat(int(sys.argv[2]))\nexcept OSError: print('closed')"
            )
            child = make_child(code, theirs.fileno(), other.fileno(), pass_fds=(theirs.fileno(),))
            child.start()
            ours.settimeout(PATIENCE_S)
            assert ours.recv(10) == b"hello"
            wait_until(lambda: child.poll() is not None)
            assert child.tail(1) == "closed"

    def test_lines_are_told_and_all_of_them_before_the_exit_code(self, make_child):
        lines = []
        code = "import sys; print('noise', file=sys.stderr)\nfor i in range(2000): print(i)"
        child = make_child(code, on_line=lines.append)
        child.start()
        wait_until(lambda: child.poll() is not None)
        assert lines == [str(number) for number in range(2000)]
        assert child.tail(5) == "noise"

    def test_a_failing_listener_does_not_stop_the_child(self, make_child, caplog):
        def fail(line):
            raise RuntimeError(line)

        child = make_child("for i in range(2000): print('x' * 50)", on_line=fail)
        child.start()
        wait_until(lambda: child.poll() == 0)
        assert "a line of helper could not be handled" in caplog.text


class TestLogRotation:
    def test_a_large_log_is_set_aside_at_the_start_and_three_are_kept(self, make_child):
        child = make_child("print('new')")
        child.log_file.parent.mkdir()
        for number in range(1, 6):
            child.log_file.write_bytes(b"%d" % number + b"x" * MAX_LOG_BYTES)
            child.start()
            wait_until(lambda: child.poll() is not None)
            assert child.tail(3) == "new"
        folder = child.log_file.parent
        assert sorted(path.name for path in folder.iterdir()) == [
            "helper.out", "helper.out.1", "helper.out.2", "helper.out.3",
        ]  # fmt: skip
        assert [(folder / f"helper.out.{age}").read_bytes()[:1] for age in (1, 2, 3)] == [b"5", b"4", b"3"]

    def test_a_small_log_stays(self, make_child):
        child = make_child("print('new')")
        child.log_file.parent.mkdir()
        child.log_file.write_bytes(b"x" * (MAX_LOG_BYTES - 100))
        child.start()
        wait_until(lambda: child.poll() is not None)
        assert child.log_file.stat().st_size == MAX_LOG_BYTES - 100 + len("new\n")

    def test_a_log_that_grows_while_the_child_runs_is_shortened(self, make_child, tmp_path):
        code = (
            "import sys, time, pathlib; sys.stdout.write('x' * int(sys.argv[1]) + '\\n')\n"
            "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\nprint('later')"
        )
        child = make_child(code, MAX_LOG_BYTES, tmp_path / "go")
        child.start()
        wait_until(lambda: child.log_file.stat().st_size > MAX_LOG_BYTES)
        assert child.poll() is None
        assert child.log_file.stat().st_size == 0
        (tmp_path / "go").touch()
        wait_until(lambda: child.poll() is not None)
        assert child.log_file.read_text() == "later\n"
        assert (tmp_path / "logs" / "helper.out.1").stat().st_size == MAX_LOG_BYTES + 1

    def test_own_log_rotates_takes_flowers_messages_and_is_private(self, tmp_path):
        """300 bytes a line, 100 lines a file: 450 lines leave the newest and three old files."""
        code = """
import logging, sys, warnings
from pathlib import Path
import fedmed.processes.logs as logs
flower = logging.getLogger("flwr")
flower.addHandler(logging.StreamHandler())
flower.setLevel(logging.DEBUG)
logs.MAX_LOG_BYTES = 30_000
logs.set_up_logging(Path(sys.argv[1]))
for number in range(450):
    flower.info("%0*d", 300 - len("2026-01-01 00:00:00,000 INFO flwr ") - 1, number)
flower.debug("too detailed")
logging.getLogger("httpx").info("GET http://secret")
warnings.warn("careful")
logging.getLogger("fedmed.x").warning("last")
"""
        log = tmp_path / "new" / "site.log"
        done = subprocess.run([sys.executable, "-c", code, log], check=True, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("", "")
        assert sorted(path.name for path in log.parent.iterdir()) == [
            "site.log", "site.log.1", "site.log.2", "site.log.3",
        ]  # fmt: skip
        assert {mode_of(path) for path in log.parent.iterdir()} == {0o600}
        text = "".join(path.read_text() for path in log.parent.iterdir())
        assert "too detailed" not in text
        assert "http" not in text
        assert "careful" in text
        last = log.read_text().splitlines()[-1]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING fedmed.x last", last)


PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "up\\n"
print(child.pid, flush=True)
time.sleep(60)
"""
WATCHER = (
    "import sys, time; from fedmed.processes import watch_parent; watch_parent(int(sys.argv[1]));"
    "print('up', flush=True)"
)
WITHOUT_LINUX = "import ctypes, types; ctypes.CDLL = lambda *_: types.SimpleNamespace(prctl=lambda *_: -1);" + WATCHER


class TestWatchParent:
    @pytest.mark.parametrize(
        "code",
        [WATCHER + "; time.sleep(60)", WITHOUT_LINUX + "; time.sleep(60)", WATCHER + "\nwhile True: pass"],
        ids=["asleep", "without prctl", "busy"],
    )
    def test_sigkill_of_the_parent_ends_the_child(self, code):
        with subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True) as parent:
            child = int(parent.stdout.readline())
            try:
                time.sleep(0.7)  # longer than a look at the parent: it lives on while the parent does
                assert not is_gone(child)
                parent.kill()
                wait_until(lambda: is_gone(child), seconds=5)  # one second, and patience with a busy machine
            finally:
                parent.kill()
                if not is_gone(child):
                    os.kill(child, signal.SIGKILL)

    def test_a_parent_that_was_gone_before(self):
        code = "import os; from fedmed.processes import watch_parent; watch_parent(os.getpid()); print('still here')"
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")

    def test_children_of_a_killed_supervisor_end(self, tmp_path):
        """The whole chain: a supervisor starts a Child, which watches it; SIGKILL of the supervisor ends both."""
        code = f"""
import os, sys, time
from pathlib import Path
from fedmed.processes import Child, child_environment
folder = Path(sys.argv[1])
child = Child("c", [sys.executable, "-c", {WATCHER + "; time.sleep(60)"!r}, str(os.getpid())], folder / "c.out",
              child_environment(folder))
child.start()
while child.tail(1) != "up": time.sleep(0.02)
print(child.pid, flush=True)
time.sleep(60)
"""
        with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as supervisor:
            child = int(supervisor.stdout.readline())
            supervisor.kill()
            wait_until(lambda: is_gone(child), seconds=5)

    def test_the_parent_of_this_process_is_watched_without_harm(self):
        code = "import os; from fedmed.processes import watch_parent; watch_parent(os.getppid()); print('fine')"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout == "fine\n"


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_lets_finally_blocks_run(self, number):
        code = (
            "import time\nfrom fedmed.processes import Stopped, raise_on_signals\nraise_on_signals()\n"
            "try:\n    print('up', flush=True)\n    while True: time.sleep(0.02)\n"
            "except Stopped as stop:\n    print(stop)\nfinally:\n    print('clean')"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            assert process.communicate(timeout=PATIENCE_S)[0] == f"{number.name}\nclean\n"
        assert process.returncode == 0

    def test_nohup_still_works(self):
        code = (
            "import os, signal\nfrom fedmed.processes import raise_on_signals\nsignal.signal(1, signal.SIG_IGN)\n"
            "raise_on_signals()\nos.kill(os.getpid(), 1)\nprint('alive')"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout == "alive\n"

    def test_a_handler_for_ctrl_c_catches_it(self):
        assert issubclass(Stopped, KeyboardInterrupt)
        assert not issubclass(Stopped, Exception)


class TestSingleInstance:
    HOLDER = (
        "import sys, time\nfrom pathlib import Path\nfrom fedmed.processes import single_instance\n"
        "with single_instance(Path(sys.argv[1]), 'x'):\n    print('held', flush=True)\n    time.sleep(60)"
    )

    def test_the_holder_is_named_until_it_is_gone(self, tmp_path):
        lock = tmp_path / "state" / "lock"
        with subprocess.Popen([sys.executable, "-c", self.HOLDER, lock], stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "held\n"
            text = rf"^A flower-client for site_01 is running already: process {holder.pid}\..*kill {holder.pid}$"
            with pytest.raises(ProcessError, match=text), single_instance(lock, "a flower-client for site_01"):
                pass
            holder.kill()
        with single_instance(lock, "a flower-client for site_01"):
            assert lock.read_text() == f"{os.getpid()}\n"
        assert mode_of(lock) == 0o600

    def test_it_is_released_at_the_end_and_by_an_error(self, tmp_path):
        lock = tmp_path / "lock"
        with pytest.raises(KeyError), single_instance(lock, "x"):
            raise KeyError
        with single_instance(lock, "x"):
            pass

    def test_a_child_does_not_hold_the_lock_of_its_dead_parent(self, tmp_path, make_child):
        lock = tmp_path / "lock"
        with single_instance(lock, "x"):
            make_child("import time; time.sleep(60)").start()
        with single_instance(lock, "x"):
            pass

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ProcessError, match="cannot be opened"), single_instance(tmp_path / "file" / "lock", "x"):
            pass


class TestPorts:
    def test_a_free_port_is_free(self):
        port = find_free_port()
        assert 1024 <= port < 65536
        check_port_free("127.0.0.1", port, "listen")
        check_port_free("127.0.0.1", port, "listen")  # to check does not take it
        check_port_free("localhost", port, "listen")

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
    def test_port_taken(self, host):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            text = rf"^Port taken: another process listens on {host}:{port}\..*ss -ltnp.*lsof -i :{port}.*'listen'\.$"
            with pytest.raises(ProcessError, match=text):
                check_port_free(host, port, "listen")

    def test_a_port_whose_last_connection_is_closing_is_free(self):
        """The server closed first, so that its side waits in TIME_WAIT; a restart must not fail for that."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            client = socket.create_connection(("127.0.0.1", port))
            connection, _ = server.accept()
            connection.close()
            assert client.recv(1) == b""
            client.close()
        check_port_free("127.0.0.1", port, "listen")

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
    def test_an_address_of_another_machine(self, host):
        with pytest.raises(
            ProcessError, match=rf"cannot listen on {host}:8443: .*'listen' must name an address of this"
        ):
            check_port_free(host, 8443, "listen")

    def test_a_port_of_root(self, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(socket.socket, "bind", refuse)
        with pytest.raises(ProcessError, match=r"Port 443 may not be used by this user.*Change 'listen'"):
            check_port_free("127.0.0.1", 443, "listen")


class TestBackoff:
    def test_doubling_up_to_the_longest(self):
        backoff = Backoff(first_s=1, longest_s=30)
        assert [backoff.next() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]

    def test_only_a_long_success_begins_anew(self):
        now = [0.0]
        backoff = Backoff(first_s=1, longest_s=30, reset_after_s=60, clock=lambda: now[0])
        assert [backoff.next(), backoff.next()] == [1, 2]
        backoff.succeeded()
        now[0] = 59.0
        backoff.succeeded()  # still the same success
        assert backoff.next() == 4
        backoff.succeeded()
        now[0] = 118.9
        assert backoff.next() == 8
        backoff.succeeded()
        now[0] = 178.9
        assert [backoff.next(), backoff.next()] == [1, 2]
        now[0] = 1000.0  # a long time without a success
        assert backoff.next() == 4


class TestPrivateFiles:
    def test_folder(self, tmp_path):
        assert private_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
        assert mode_of(tmp_path / "a" / "b") == 0o700
        (tmp_path / "a" / "b").chmod(0o755)
        private_folder(tmp_path / "a" / "b")
        assert mode_of(tmp_path / "a" / "b") == 0o700

    def test_folder_that_cannot_be(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(KeyFileError, match="cannot be made private"):
            private_folder(tmp_path / "file")

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
    def test_secret_is_0600_whatever_the_mask(self, tmp_path, mask):
        old = os.umask(mask)
        try:
            write_secret(tmp_path / "key", b"\x00secret")
        finally:
            os.umask(old)
        assert mode_of(tmp_path / "key") == 0o600
        assert read_secret(tmp_path / "key") == b"\x00secret"
        assert [path.name for path in tmp_path.iterdir()] == ["key"]

    def test_an_older_secret_is_replaced_with_its_mode(self, tmp_path):
        (tmp_path / "key").write_bytes(b"old")
        (tmp_path / "key").chmod(0o644)
        write_secret(tmp_path / "key", b"new")
        assert (mode_of(tmp_path / "key"), read_secret(tmp_path / "key")) == (0o600, b"new")

    def test_nobody_else_can_read_it_at_any_moment(self, tmp_path, monkeypatch):
        """With the loosest mask, every file that exists when the bytes go to the disk is 0600."""
        seen = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (seen.extend(map(mode_of, tmp_path.iterdir())), real(fd)))
        old = os.umask(0)
        try:
            write_secret(tmp_path / "key", b"x")
        finally:
            os.umask(old)
        assert set(seen) == {0o600}

    def test_a_write_that_fails_leaves_the_old_one(self, tmp_path, monkeypatch):
        write_secret(tmp_path / "key", b"old")

        def fail(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(KeyFileError, match="key cannot be written: No space left"):
            write_secret(tmp_path / "key", b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["key"]
        assert read_secret(tmp_path / "key") == b"old"

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o777])
    def test_a_secret_that_others_can_use_is_refused(self, tmp_path, mode):
        (tmp_path / "site.key").write_bytes(b"x")
        (tmp_path / "site.key").chmod(mode)
        with pytest.raises(KeyFileError, match=rf"mode {mode:04o}; 0600 is allowed.*chmod 600 '.*site\.key'"):
            read_secret(tmp_path / "site.key")

    @pytest.mark.parametrize("mode", [0o400, 0o600])
    def test_a_secret_of_its_owner_is_read(self, tmp_path, mode):
        (tmp_path / "site.key").write_bytes(b"x")
        (tmp_path / "site.key").chmod(mode)
        assert read_secret(tmp_path / "site.key") == b"x"

    def test_a_missing_secret(self, tmp_path):
        with pytest.raises(KeyFileError, match="cannot be read: No such file"):
            read_secret(tmp_path / "site.key")
        with pytest.raises(KeyFileError, match="cannot be read: Is a directory"):
            read_secret(tmp_path)


def test_neither_torch_nor_flower_is_imported():
    code = (
        "import sys, json, fedmed.processes; print(json.dumps(sorted({'torch', 'flwr', 'numpy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
