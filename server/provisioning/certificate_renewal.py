"""The server's certificate, renewed before it expires."""

from datetime import datetime
from pathlib import Path

from fedmed.config.addresses import split_address
from fedmed.config.server import ServerConfig
from fedmed.errors import KeyFileError
from fedmed.keys import Authority, certificate_expiry, days_left, find_lacking_names, is_issued_by, is_pair
from server.provisioning.site_list import keys_folder

WARN_DAYS = 30


def renew_certificate(config: ServerConfig, now: datetime | None = None) -> str | None:
    """Renew the server's certificate when it is about to expire or lacks a name; no site needs a new kit for it.

    Parameters
    ----------
    config : ServerConfig
        Settings of the federation.
    now : datetime, optional
        Aware.

    Returns
    -------
    str or None
        What was done or has to be done, for a person; None if all is well.

    Raises
    ------
    KeyFileError
        If the certificate has expired, is missing, or does not fit its key, and cannot be renewed here.
    """
    if config.insecure:
        return None
    folder, names = keys_folder(config), _wanted_names(config)
    certificate, key, can_issue = folder / "server.pem", folder / "server.key", (folder / "ca.key").exists()
    if not (certificate.exists() and key.exists()):
        if not can_issue:
            raise KeyFileError(
                f"The server has no certificate: {certificate} and {key.name} are needed. Put them back; or put ca.key "
                "back there and start again: a new one is then issued."
            )
        return f"A certificate was issued {_issue(folder, names, now)}."
    if not is_pair(certificate, key):
        raise KeyFileError(f"{key} is not the key of {certificate}. Put back the two that belong together.")
    is_ours = is_issued_by(certificate, folder / "ca.pem")
    left = days_left(certificate, now)
    missing = find_lacking_names(certificate, names) if is_ours else []  # another issuer's may hold wildcards
    if left >= WARN_DAYS and not missing:
        return None
    if is_ours and can_issue:
        why = f"it lacked {', '.join(missing)}" if left >= WARN_DAYS else f"it had {left:.0f} days left"
        return f"The server's certificate was renewed {_issue(folder, names, now)} ({why}). The sites need no new kit."
    return _explain(certificate, left, missing, is_ours)


def _issue(folder: Path, names: list[str], now: datetime | None) -> str:
    """Issue a certificate and say what it is good for."""
    certificate = Authority.load(folder).issue_server_certificate(folder, names, now=now)
    return f"for {', '.join(names)} until {certificate_expiry(certificate):%Y-%m-%d}"


def _explain(certificate: Path, left: float, missing: list[str], is_ours: bool) -> str:
    """Say what a person has to do, or raise if no site can connect any more."""
    remedy = (
        f"Put ca.key back into {certificate.parent}: it is then renewed, and the sites need no new kit."
        if is_ours
        else "It was not issued by --provision: have its issuer renew it."
    )
    if left <= 0:
        raise KeyFileError(
            f"The server's certificate {certificate} expired on {certificate_expiry(certificate):%Y-%m-%d}; every site "
            f"refuses it. {remedy}"
        )
    if left < WARN_DAYS:
        return f"The server's certificate expires in {left:.0f} days. {remedy}"
    return f"The server's certificate lacks {', '.join(missing)}: sites that use such a name refuse it. {remedy}"


def _wanted_names(config: ServerConfig) -> list[str]:
    return list(dict.fromkeys([split_address(config.address, "address")[0], *config.alternative_names]))
