"""Flower's SuperLink as a web application, with our own state behind it."""

import hmac
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported, however this process was started

import flwr.superlink.main as flower_main

# Touched internals: Flower's web application and its settings, made here by hand because its own command opens one
# port only, for everything, and knows no object store but its own.
from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.supercore.auth.typing import AccountInfo
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.federation import FederationManager

from fedmed.processes import read_secret
from server.superlink.connections import ConnectionLimits
from server.superlink.object_store import FileObjectStoreFactory
from server.superlink.object_transfer import MAX_REPLY_BYTES
from server.superlink.state import DeploymentLinkStateFactory


@dataclass(frozen=True)
class LinkLaunch:
    """Settings of this process; the file that holds them names files with secrets, but no secrets."""

    public_host: str
    public_port: int
    private_port: int
    database: str
    objects_dir: str
    superexec_secret_file: str
    control_token_file: str
    hello_file: str
    release_dir: str
    collected_dir: str
    parent_pid: int
    log_file: str
    certificate: str | None = None
    key: str | None = None
    insecure: bool = False
    mutual_tls: bool = False
    """Whether the sites need certificates, too, of the authority in ``authority``."""
    authority: str | None = None
    refused_file: str | None = None
    max_reply_bytes: int = MAX_REPLY_BYTES
    max_connections_per_source: int = ConnectionLimits.per_source
    start_open: bool = True
    """Whether sites are let in at once, and not only when the supervisor says so."""


class TokenAuthentication(NoOpControlAuthnPlugin):
    """Lets into the Control API only who knows the token.

    Parameters
    ----------
    token : str
        Made anew by the supervisor at every start.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def validate_tokens_in_metadata(
        self, metadata: Sequence[tuple[str, str | bytes]]
    ) -> tuple[bool, AccountInfo | None]:
        """Check the token that Flower found in the request."""
        given = next((value for name, value in metadata if name == "flwr-oidc-access-token"), "")
        if not isinstance(given, str) or not hmac.compare_digest(given, self._token):
            return False, None
        return super().validate_tokens_in_metadata(metadata)


def make_app(launch: LinkLaunch) -> tuple[Any, DeploymentLinkStateFactory]:
    """Return Flower's SuperLink as a web application, and the state behind it.

    Parameters
    ----------
    launch : LinkLaunch
        Settings.
    """
    made: list[DeploymentLinkStateFactory] = []

    def make_factories(database: str, federations: FederationManager) -> tuple[Any, DeploymentLinkStateFactory]:
        stores = FileObjectStoreFactory(database, Path(launch.objects_dir))
        made.append(DeploymentLinkStateFactory(database, federations, stores))
        return stores, made[0]

    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=launch.private_port,
        insecure=True,
        certificates=None,
        superexec_auth_secret=read_secret(Path(launch.superexec_secret_file)),
        authn_plugin=TokenAuthentication(read_secret(Path(launch.control_token_file)).decode().strip()),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=launch.database,
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    # The package has a function of the same name as the module.
    command = importlib.import_module("flwr.superlink.cli.flower_superlink")
    # create_app takes no factories: it makes them with this function of its module.
    with mock.patch.object(flower_main, "get_objectstore_linkstate_factories", make_factories):
        app = flower_main.create_app(config, command.SuperLinkLifespan)
    return app, made[0]
