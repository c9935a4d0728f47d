"""What long-running processes need: children, signals, logs, locks, ports, secrets.

A supervisor starts its helpers as :class:`Child`. Each runs in a session of its own, so that Ctrl-C reaches the
supervisor only, and calls :func:`watch_parent`, so that none of them outlives it, however it ended.
"""

from fedmed.processes.backoff import Backoff
from fedmed.processes.children import Child, child_environment, watch_parent
from fedmed.processes.events import Event, EventQueue, EventReader
from fedmed.processes.locks import single_instance
from fedmed.processes.logs import set_up_logging
from fedmed.processes.ports import check_port_free, find_free_port
from fedmed.processes.private_files import private_folder, read_secret, write_secret
from fedmed.processes.repeated import RepeatedLines
from fedmed.processes.signals import Stopped, raise_on_signals

__all__ = [
    "Backoff",
    "Child",
    "Event",
    "EventQueue",
    "EventReader",
    "RepeatedLines",
    "Stopped",
    "check_port_free",
    "child_environment",
    "find_free_port",
    "private_folder",
    "raise_on_signals",
    "read_secret",
    "set_up_logging",
    "single_instance",
    "watch_parent",
    "write_secret",
]
