import socket
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedmed.errors import ConfigError, ProcessError
from fedmed.health import HealthService, is_serving, main
from fedmed.processes import find_free_port


@pytest.fixture
def address():
    return f"127.0.0.1:{find_free_port()}"


def test_serving_only_while_every_component_is_well(address):
    with HealthService(address) as service:
        assert is_serving(address) is False  # nothing is known yet
        service.set("superlink", ok=True)
        assert is_serving(address) is True
        service.set("disk", ok=False, reason="1.2 GiB free, 3 needed")
        assert is_serving(address) is False
        assert is_serving(address, "superlink") is True
        assert is_serving(address, "disk") is False
        assert service.problems() == {"disk": "1.2 GiB free, 3 needed"}
        service.set("superlink", ok=False, reason="ended with code 1")
        service.set("disk", ok=True)
        assert is_serving(address) is False
        service.set("superlink", ok=True)
        assert is_serving(address) is True
        assert service.problems() == {}


def test_an_unknown_component_and_a_dead_service_give_no_answer(address):
    with HealthService(address) as service:
        service.set("disk", ok=True)
        assert is_serving(address, "nothing") is None
    assert is_serving(address, timeout_s=0.5) is None


def test_the_standard_protocol_is_spoken(address):
    """A watcher of grpc.health.v1 sees every change, and NOT_SERVING when the service closes."""
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    with grpc.insecure_channel(address) as channel:
        with HealthService(address) as service:
            changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
            assert next(changes).status == not_serving
            service.set("connection", ok=True)
            assert next(changes).status == serving
        assert next(changes).status == not_serving


def test_a_proxy_in_the_environment_is_not_asked(address, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with HealthService(address) as service:
        service.set("disk", ok=True)
        assert is_serving(address) is True


def test_port_taken_names_the_key_and_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ProcessError, match=rf"Port taken.*127.0.0.1:{port}.*change 'health'"),
            HealthService(f"127.0.0.1:{port}"),
        ):
            pass


def test_a_second_service_cannot_share_the_port(address):
    with HealthService(address), pytest.raises(ProcessError, match="Port taken"), HealthService(address):
        pass


@pytest.mark.parametrize("bad", ["0.0.0.0:8441", "192.0.2.1:8441", "example.org:8441"])
def test_only_the_loopback_interface(bad):
    with pytest.raises(ConfigError, match="this machine only"):
        HealthService(bad)


def test_what_is_no_address_is_refused():
    with pytest.raises(ConfigError, match=r"health is '8441' and must be host:port"):
        HealthService("8441")


def test_without_an_address_nothing_listens():
    with HealthService(None) as service:
        service.set("disk", ok=False)
        assert service.problems() == {"disk": "no reason given"}


def test_a_component_needs_a_name():
    with HealthService(None) as service, pytest.raises(ValueError, match="must have a name"):
        service.set("", ok=True)


def test_the_port_is_free_again_after_it_was_closed(address):
    for _ in range(2):
        with HealthService(address) as service:
            service.set("disk", ok=True)
            assert is_serving(address) is True


def test_the_command(address, capsys):
    with HealthService(address) as service:
        assert (main([address]), capsys.readouterr().out) == (1, "NOT_SERVING\n")
        service.set("disk", ok=True)
        service.set("superlink", ok=False)
        assert (main([address, "disk"]), capsys.readouterr().out) == (0, "SERVING\n")
        assert (main([address, "nothing"]), capsys.readouterr().out) == (1, "no answer\n")


def test_the_command_as_a_process_is_quick_and_needs_no_torch(address):
    """A container asks every few seconds."""
    code = (
        "import sys; from fedmed.health import main; code = main(sys.argv[1:]);"
        "assert not {'torch', 'flwr', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    with HealthService(address) as service:
        service.set("disk", ok=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, address], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        assert time.monotonic() - began < 10
        module = subprocess.run(
            [sys.executable, "-m", "fedmed.health", address], check=False, capture_output=True, text=True
        )
        assert (module.returncode, module.stdout, module.stderr) == (0, "SERVING\n", "")
