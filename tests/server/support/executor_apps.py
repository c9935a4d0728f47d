"""ServerApps that end in different ways."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmed.errors import FederationError

finishes, explains, fails = ServerApp(), ServerApp(), ServerApp()
no_app = "not a ServerApp"


@finishes.main()
def _finish(grid: Grid, context: Context) -> None:
    nodes = sorted(grid.get_node_ids())
    Path(str(context.run_config["run-dir"]), "seen.txt").write_text(f"{len(nodes)} nodes")


@explains.main()
def _explain(grid: Grid, context: Context) -> None:
    raise FederationError("Too few sites. Wait.")


@fails.main()
def _fail(grid: Grid, context: Context) -> None:
    raise ZeroDivisionError("a secret detail")
