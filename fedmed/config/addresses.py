"""Addresses in settings: ``host:port``, and whether they stay on this machine."""

import ipaddress
import re

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s/]+):(?P<port>\d{1,5})")


def split_address(text: str, key: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; an IPv6 address stands in brackets.

    Raises
    ------
    ValueError
        If it is none.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{key} is {text!r} and must be host:port, for example fedmed.example.org:8443")
    return match["host"].strip("[]"), int(match["port"])


def is_loopback(host: str) -> bool:
    """Return whether a host is this very machine's loopback interface."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_loopback(address: str | None, key: str) -> None:
    """Refuse an address that other machines could reach."""
    if address is not None and not is_loopback(split_address(address, key)[0]):
        raise ValueError(f"{key} on the loopback interface, for example 127.0.0.1:8443; found {address!r}")
