"""The raw connection: every way in which it can fail has words of its own."""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.check.results import CheckFailedError
from client.check.tls import check_tls, find_addresses, open_connection, read_date
from fedmed.errors import KeyFileError
from fedmed.keys import Authority
from tests.client.support.kit import answer_tls, issue, make_head, serve

HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    Authority.create(tmp_path / "authority")
    return tmp_path / "authority"


@pytest.fixture
def ca(authority: Path) -> Path:
    return authority / "ca.pem"


def refusal(port: int, ca: Path, host: str = HOST, timeout_s: float = 5.0) -> CheckFailedError:
    with pytest.raises(CheckFailedError) as caught:
        check_tls(host, port, ca, timeout_s)
    return caught.value


def test_good_server_shows_its_version_and_dates(tmp_path: Path, authority: Path, ca: Path) -> None:
    context = issue(tmp_path / "server", authority, names=(HOST, "fedmed.example.org"), days=90)
    with serve(answer_tls(context)) as port:
        version, certificate = check_tls(HOST, port, ca)
    assert version == "TLSv1.3"
    assert set(certificate.names) == {HOST, "fedmed.example.org"}
    assert abs(certificate.ends - datetime.now(UTC) - timedelta(days=90)) < timedelta(hours=2)


def test_tls_1_2_is_enough(tmp_path: Path, authority: Path, ca: Path) -> None:
    context = issue(tmp_path / "server", authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with serve(answer_tls(context)) as port:
        assert check_tls(HOST, port, ca)[0] == "TLSv1.2"


def test_unknown_name() -> None:
    with pytest.raises(CheckFailedError, match=r"No address is known for the name 'nowhere\.invalid'") as caught:
        find_addresses("nowhere.invalid", 443)
    assert "spelling" in caught.value.advice
    assert find_addresses("127.0.0.1", 443) == ["127.0.0.1"]


def test_refused_connection() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CheckFailedError, match=f"refused the connection to port {port}"), open_connection(HOST, port):
        pass


def test_no_answer_in_time() -> None:
    with socket.socket() as full:  # a listener whose queue is full drops what comes next, as a firewall does
        full.bind((HOST, 0))
        full.listen(0)
        port = full.getsockname()[1]
        with (
            socket.create_connection((HOST, port)),
            pytest.raises(CheckFailedError, match=r"No answer from 127\.0\.0\.1 port \d+ within 0\.3 s") as caught,
            open_connection(HOST, port, timeout_s=0.3),
        ):
            pass
    assert "firewall" in caught.value.advice


def test_other_authority_is_named(tmp_path: Path, ca: Path) -> None:
    Authority.create(tmp_path / "inspector")
    with serve(answer_tls(issue(tmp_path / "server", tmp_path / "inspector"))) as port:
        error = refusal(port, ca)
    assert "not signed by the authority in the file 'ca'" in error.found
    assert "; signed by '" in error.found
    assert "TLS inspection" in error.advice


def test_expired_certificate(tmp_path: Path, authority: Path, ca: Path) -> None:
    with serve(answer_tls(issue(tmp_path / "server", authority, days=10, age=20))) as port:
        error = refusal(port, ca)
    assert "has expired" in error.found
    assert f"to {datetime.now(UTC) - timedelta(days=10):%Y-%m-%d}" in error.found
    assert "coordinating site to renew it" in error.advice


def test_certificate_of_the_future(tmp_path: Path, authority: Path, ca: Path) -> None:
    with serve(answer_tls(issue(tmp_path / "server", authority, age=-5))) as port:
        error = refusal(port, ca)
    assert "is not valid yet" in error.found
    assert f"from {datetime.now(UTC) + timedelta(days=5, hours=-1):%Y-%m-%d}" in error.found
    assert "date and time" in error.advice


def test_certificate_for_another_name(tmp_path: Path, authority: Path, ca: Path) -> None:
    with serve(answer_tls(issue(tmp_path / "server", authority, names=("fedmed.example.org",)))) as port:
        for host in (HOST, "localhost"):
            error = refusal(port, ca, host)
            assert error.found.startswith(
                f"The certificate of {host}:{port} is for another name than '{host}'. It is for: fedmed.example.org;"
            )


def test_server_without_tls(ca: Path) -> None:
    with serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        assert "does not speak TLS as expected" in refusal(port, ca).found


def test_connection_cut_in_the_handshake(ca: Path) -> None:
    with serve(lambda connection: connection.recv(10) and None) as port:
        error = refusal(port, ca)
    assert "was cut during the TLS handshake" in error.found
    assert "inspects TLS" in error.advice


def test_silent_server(ca: Path) -> None:
    with socket.create_server((HOST, 0)) as listener:
        error = refusal(listener.getsockname()[1], ca, timeout_s=0.3)
    assert "says nothing within 0.3 s" in error.found


def test_file_that_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(KeyFileError, match="holds no certificate"):
        check_tls(HOST, 1, tmp_path / "ca.pem")


def test_date_of_an_unsigned_answer(tmp_path: Path, authority: Path, ca: Path) -> None:
    then = datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)
    with serve(answer_tls(issue(tmp_path / "server", authority), then)) as port:
        assert read_date(HOST, port, ca) == then
    with serve(lambda connection: connection.recv(4096) and connection.sendall(make_head(then))) as port:
        assert read_date(HOST, port, None) == then
    with serve(lambda connection: connection.recv(4096) and connection.sendall(b"hello\r\n\r\n")) as port:
        assert read_date(HOST, port, None) is None
