"""The HTTP connection beneath :mod:`client.supernode.fleet`: whom it trusts, how it gets out, and who it says it is.

flwr's own follows redirects, trusts whatever the environment names, and knows no limit for an answer.
"""

import os
import re
import secrets
import socket
import ssl
import tempfile
import urllib.request
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from client.supernode.failures import FleetError, Outlook
from client.supernode.signature import RequestSignature
from fedmed.config.addresses import is_loopback, split_address
from fedmed.config.client import ClientConfig
from fedmed.errors import ConfigError, KeyFileError
from fedmed.keys.certificates import read_certificates
from fedmed.processes import write_secret
from fedmed.protocol.http import RELEASE_PATH
from fedmed.protocol.signing import PROBLEM_HEADER

MAX_ANSWER_BYTES = 64 * 2**20
_LENGTH = re.compile(r"[0-9]{1,18}")
_TIMEOUT = httpx.Timeout(connect=10.0, read=60.0, write=60.0, pool=None)
# The server keeps a silent connection for two minutes.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=60.0)


def make_http_client(config: ClientConfig, key: ec.EllipticCurvePrivateKey) -> tuple[httpx.Client, str | None]:
    """Return a client that signs every request, and ``host:port`` of the proxy on its way, if any.

    Raises
    ------
    KeyFileError
        If the certificate of the authority cannot be read.
    ConfigError
        If the proxy is none.
    """
    proxy = find_proxy(config)
    transport = _Transport(
        # Without TLS there is nothing to verify; an empty context saves loading the system's authorities.
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if config.insecure else make_site_context(config, key),
        proxy=proxy,
        limits=_LIMITS,
        trust_env=False,
        socket_options=_notice_dead_peers(),
    )
    versions = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())
    client = httpx.Client(
        transport=transport,
        auth=RequestSignature(key),
        headers={**versions, "accept-encoding": "identity"},
        timeout=_TIMEOUT,
        follow_redirects=False,
        trust_env=False,
    )
    return client, proxy.url.netloc.decode() if proxy else None


def make_tls_context(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts the authorities in one file and nobody else.

    Raises
    ------
    KeyFileError
        If the file cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the certificate and the host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as error:
        reason = "holds no certificate" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        raise KeyFileError(
            f"{ca_file}, the file 'ca' of client.yaml, {reason}. It is the ca.pem of the kit that the coordinating "
            "site made."
        ) from None
    return context


def make_site_context(config: ClientConfig, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    """Return a context for this site: its trust, and its own certificate if it has one.

    Raises
    ------
    KeyFileError
        If a certificate cannot be read, or is not for the site's key.
    """
    context = make_tls_context(Path(config.ca))
    if config.certificate is not None:
        _add_certificate(context, Path(config.certificate), key)
    return context


def _add_certificate(context: ssl.SSLContext, certificate: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Let a context show a certificate; OpenSSL wants the key as a file, which is locked by a word that nobody has."""
    shown = read_certificates(certificate)[0]
    if shown.public_key() != key.public_key():
        raise KeyFileError(
            f"{certificate}, the file 'certificate' of client.yaml, is for another key than that of this site. Put "
            "back site.crt as the coordinating site has made it for this key."
        )
    word = secrets.token_bytes(32).hex().encode()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(word))
    with tempfile.TemporaryDirectory(prefix="fedmed-") as folder:
        file = Path(folder) / "locked.key"
        write_secret(file, data)
        context.load_cert_chain(certificate, file, word)


def store_answer(response: httpx.Response, target: Path, max_bytes: int | None) -> None:
    """Write an answer to a file while it arrives; nothing is left of one with more than ``max_bytes``.

    Raises
    ------
    FleetError
        If there are more.
    """
    num_bytes = 0
    with target.open("wb") as output:
        for block in response.iter_raw():
            num_bytes += len(block)
            if max_bytes is not None and num_bytes > max_bytes:
                target.unlink()
                raise FleetError(
                    f"The file {target.name} of the release is larger than {max_bytes} bytes, which is all that was "
                    "announced or allowed; nothing of it is kept. Tell the coordinating site.",
                    Outlook.FATAL,
                )
            output.write(block)


def find_proxy(config: ClientConfig) -> httpx.Proxy | None:
    """Return the proxy of the settings, else of the environment, where its password may be.

    Raises
    ------
    ConfigError
        If what they name is none.
    """
    host = split_address(config.server, "server")[0]
    url = config.proxy
    if url is None and not config.insecure and not is_loopback(host) and not urllib.request.proxy_bypass(host):
        url = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    if not url:
        return None
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
    except (ValueError, httpx.InvalidURL):
        proxy = None
    if proxy is None or proxy.url.scheme not in {"http", "https"} or not proxy.url.host:
        # Without its text: it may hold a password.
        where = "'proxy' in client.yaml" if config.proxy else "The environment variable HTTPS_PROXY"
        raise ConfigError(f"{where} names no HTTP proxy; write it as http://host:port.")
    return proxy


def _notice_dead_peers() -> list[tuple[int, int, int]]:
    """Return socket options with which a peer that has vanished is noticed within half a minute."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
    names = [name for name in wanted if hasattr(socket, name)]
    return options + [(socket.IPPROTO_TCP, getattr(socket, name), wanted[name]) for name in names]


class _Transport(httpx.HTTPTransport):
    """Refuses an answer that could fill the memory: packed, of unknown length or too long.

    Files are not read into memory, and of an error it is enough to know the status.
    """

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        problem = _find_problem(request, response)
        if problem is None:
            return response
        response.close()
        if response.is_error:  # perhaps of a firewall on the way, whose status says more than this refusal
            kept = [(name, value) for name, value in response.headers.items() if name in {"date", PROBLEM_HEADER}]
            return httpx.Response(response.status_code, headers=kept, content=b"")
        raise httpx.RemoteProtocolError(problem, request=request)


def _find_problem(request: httpx.Request, response: httpx.Response) -> str | None:
    """Return why an answer is not read, None if it may be."""
    headers = response.headers
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return "the answer is packed"
    is_file = response.status_code == httpx.codes.OK and request.url.path.startswith(RELEASE_PATH)
    if is_file or response.status_code == httpx.codes.NO_CONTENT:
        return None
    length = headers.get("content-length", "")
    # With both headers the length would not count (RFC 9112).
    if "transfer-encoding" in headers or not _LENGTH.fullmatch(length):
        return "the answer does not tell its length"
    return "the answer is too large" if int(length) > MAX_ANSWER_BYTES else None
