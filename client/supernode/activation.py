"""What the SuperNode needs to stay known to the server: its last session on disk, and signs of life."""

import json
import logging
import socket
import threading
import time
from pathlib import Path

from client.supernode.failures import FleetError, Outlook
from client.supernode.fleet import Fleet
from fedmed.processes import write_secret

_HEARTBEAT_S = 20.0  # the server counts a site as gone after 60 s
_RETRY_S = 5.0
_LOOK_AT_RUN_S = 10.0

_logger = logging.getLogger("fedmed.supernode")


class Activation:
    """Remembers the node id of the last activation, for as long as it has not been ended in good order.

    The server calls a process that was killed online for another minute, and refuses the next one. The next one
    therefore ends the session of the one before. It does not if the folder was copied: that session may be alive.

    Parameters
    ----------
    state_dir : Path
        Folder of this site's state.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "session.json"
        self._place = {"host": socket.gethostname(), "folder": str(state_dir)}

    def read(self) -> int | None:
        """Return the node id of a session of this very folder that was not ended, if there is one."""
        try:
            values = json.loads(self._path.read_text())
            if {key: values[key] for key in self._place} == self._place:
                return int(values["node_id"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def write(self, node_id: int) -> None:
        """Note an activation."""
        write_secret(self._path, json.dumps({"node_id": node_id, **self._place}).encode())

    def clear(self) -> None:
        """Note that the session has ended."""
        self._path.unlink(missing_ok=True)


class SignsOfLife:
    """Sends heartbeats from a thread of its own, and looks whether the run that is worked for still goes on.

    Parameters
    ----------
    fleet : Fleet
        Line to the server.
    node_id : int
        This site.
    """

    def __init__(self, fleet: Fleet, node_id: int) -> None:
        self._fleet, self._node_id = fleet, node_id
        self._run_id: int | None = None
        self._is_over = False
        self._stop = threading.Event()
        threading.Thread(target=self._live, name="signs-of-life", daemon=True).start()

    def watch(self, run_id: int | None) -> None:
        """Name the run to look at; None: none."""
        self._run_id, self._is_over = run_id, False

    def check(self) -> None:
        """Raise if the server no longer waits for the watched run.

        Raises
        ------
        FleetError
            With :attr:`Outlook.RUN_OVER`.
        """
        if self._is_over:
            raise FleetError("The server has ended this run.", Outlook.RUN_OVER)

    def stop(self) -> None:
        """End the thread; it is not waited for, as it may hang in the network."""
        self._stop.set()

    def _live(self) -> None:
        next_heartbeat = time.monotonic() + _HEARTBEAT_S
        while not self._stop.wait(min(_LOOK_AT_RUN_S, max(0.0, next_heartbeat - time.monotonic()))):
            if time.monotonic() >= next_heartbeat:
                next_heartbeat = time.monotonic() + (_HEARTBEAT_S if self._send_heartbeat() else _RETRY_S)
            self._look_at_run()

    def _send_heartbeat(self) -> bool:
        try:
            if not self._fleet.send_heartbeat(self._node_id):
                _logger.warning("The server does not know this site any more.")
        except FleetError as failure:
            _logger.warning("No heartbeat: %s", failure)
            return False
        except RuntimeError:  # the line was closed meanwhile
            self._stop.set()
        return True

    def _look_at_run(self) -> None:
        run_id = self._run_id
        if run_id is None:
            return
        try:
            self._fleet.check_run(self._node_id, run_id)
        except FleetError as failure:
            if failure.outlook is Outlook.RUN_OVER and self._run_id == run_id:
                self._is_over = True
        except RuntimeError:
            self._stop.set()
