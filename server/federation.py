"""The ServerApp: from a run folder with settings to a chosen, tested model with a report.

The same object runs in a simulation and behind a SuperLink. It resumes by itself: a run folder with checkpoints goes on
after the newest one.
"""

import json
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmed.aggregation import TensorFile
from fedmed.audit import AuditLog
from fedmed.checkpoint import Checkpoint, RunCheckpoints, write_atomically
from fedmed.compression import estimate_bytes
from fedmed.config import LOCAL_MODEL_OPTIONS, FederationConfig, SitesData
from fedmed.deployment import LOCAL_SETTINGS, ServerConfig
from fedmed.errors import FederationError
from fedmed.export import write_model
from fedmed.metrics.history import append_record, read_history, truncate_history
from fedmed.network import Network
from fedmed.report import ReportContent, write_report
from fedmed.run_folder import RunFolder
from server.attendance import Attendance
from server.courier import Courier
from server.exchange import Exchange
from server.progress import EventListener, Listener, LogListener
from server.rounds import LoopState, RoundLoop, Session, save_checkpoint
from server.scoring import load_tables, round_folder, save_tables

_DEPLOYMENT_COMMAND = "flower-server --config server.yaml"


def create_server_app(listener: Listener | None = None) -> ServerApp:
    """Return a ServerApp that tells ``listener`` what happens.

    Parameters
    ----------
    listener : Listener, optional
        Default: Python's logging.

    Returns
    -------
    ServerApp
        Its run config needs ``run-dir``, a run folder with ``config.yaml`` and, as sites come, ``roster.json``.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run_federation(grid, RunFolder.open(Path(str(context.run_config["run-dir"]))), listener or LogListener())

    return server_app


def create_deployed_app() -> ServerApp:
    """Return the ServerApp of a real federation, which tells the command ``flower-server`` what happens."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run = RunFolder.open(Path(str(context.run_config["run-dir"])))
        run.record_start()
        run_federation(grid, run, EventListener())

    return server_app


app = create_deployed_app()


def run_federation(grid: Grid, run: RunFolder, listener: Listener) -> None:
    """Run, or resume, the federation of a run folder to its end.

    Raises
    ------
    FedmedError
        With what to do; everything up to the last closed round is saved.
    """
    session = _open_session(grid, run, listener)
    start = _find_start(session)
    listener.on_info(describe_messages(session, start.model_path))
    session.gather_sites(start.round)
    loop = RoundLoop(session, start)
    state = loop.run()
    chosen = state.best_round or session.config.rounds
    _test_once(session, chosen, state)
    _write_products(session, chosen)
    session.audit.append("end", chosen_round=chosen)
    write_atomically(run.finished_file, json.dumps({"chosen_round": chosen}).encode())


def _open_session(grid: Grid, run: RunFolder, listener: Listener) -> Session:
    config = run.read_settings()
    deployed = isinstance(config, ServerConfig)
    plan = config.make_plan()
    if deployed:
        plan = plan.model_copy(update={"run_id": run.read_run_id()})
    network = Network(plan)  # for its names only: the server holds no model between rounds
    parameters = frozenset(name for name, _ in network.model.named_parameters())
    digest = network.digest()
    audit = AuditLog(run.audit_file)
    audit.append("start", model_digest=digest)
    exchange = Exchange(grid, run)
    return Session(
        config=config,
        plan=plan,
        run=run,
        exchange=exchange,
        courier=Courier(exchange, remember=deployed),
        checkpoints=RunCheckpoints(run.checkpoints),
        audit=audit,
        attendance=Attendance(plan, digest),
        listener=listener,
        parameters=parameters,
        patient=deployed,
    )


def _find_start(session: Session) -> Checkpoint:
    """Return the newest checkpoint, or round 0 with the initial model, and set the history to it."""
    found = session.checkpoints.load_latest()
    if found is None:
        initial = session.run.updates / "initial.safetensors"
        options = session.config.model.options
        local = {name: options[name] for name in LOCAL_MODEL_OPTIONS if name in options}
        write_atomically(initial, Network(session.plan, **local).pack())
        save_checkpoint(session.checkpoints, 0, initial, LoopState())
        found = session.checkpoints.load(0)
    for problem in found.problems:
        session.listener.on_note(f"{problem} Going on from round {found.round}.")
    truncate_history(session.run.history_file, found.round)
    history = read_history(session.run.history_file)
    record = found.state["record"]
    if record is not None and (not history or history[-1]["round"] < found.round):
        append_record(session.run.history_file, record)
    return found


def _test_once(session: Session, chosen: int, state: LoopState) -> None:
    """Have every site score the chosen model on its test images; a site does so only once for a model."""
    folder = session.run.tables / "test"
    if folder.exists():  # a run that was stopped after its test
        return
    model = session.checkpoints.load(chosen)
    sites, _ = session.attendance.split(session.config.max_missed_rounds)
    tables = session.score(
        chosen, model.model_path, model.model_sha256, sites, part="test", best_round=state.best_round
    )
    if not tables:
        raise FederationError("No site has answered the test of the chosen model. Start again to ask again.")
    save_tables(folder, tables)
    for site in tables:
        session.audit.append("test", round=chosen, site=site)


def describe_messages(session: Session, model_file: Path) -> str:
    """Return what a round sends to and from each site, and how long that takes at the expected speed of a link."""
    down = model_file.stat().st_size
    compression = session.plan.compression
    up = down if compression == "none" else estimate_bytes(TensorFile(model_file).layout, compression)
    speed = session.config.link_mbit_s if isinstance(session.config, ServerConfig) else 100.0
    seconds = (down + up) * 8 / (speed * 1e6)
    kind = "" if compression == "none" else f" ({compression})"
    return (
        f"Each round sends {down / 2**20:.1f} MiB to a site and {up / 2**20:.1f} MiB{kind} back, and some KiB of "
        f"tables; at {speed:g} Mbit/s that takes {seconds:.1f} s beside the training."
    )


def _shown_settings(config: FederationConfig) -> dict[str, Any]:
    """Return the settings as a report shows them: of a deployment without what concerns the server's machine only."""
    return config.model_dump(mode="json", exclude=set(LOCAL_SETTINGS) if isinstance(config, ServerConfig) else None)


def _shown_environment(run: RunFolder, config: FederationConfig) -> dict[str, object]:
    """Return versions and hardware; a command line holds paths, which a shared report does not need."""
    environment = run.read_environment()
    if isinstance(config, ServerConfig):
        environment.pop("command", None)
    return environment


def _write_products(session: Session, chosen: int) -> None:
    run, config = session.run, session.config
    untested = sorted(set(session.attendance.descriptions) - set(load_tables(run.tables / "test")))
    history = read_history(run.history_file)
    content = ReportContent(
        title=f"Federated run '{config.name}'",
        config=_shown_settings(config),
        environment=_shown_environment(run, config),
        classes=tuple(session.plan.classes),
        chosen_round=chosen,
        rounds_done=len(history),
        history=history,
        validation=load_tables(round_folder(run.tables, chosen)),
        test=load_tables(run.tables / "test"),
        composition=session.attendance.composition(),
        synthetic=config.data.source == "phantom"
        or (isinstance(config.data, SitesData) and config.data.synthetic)
        or session.attendance.any_synthetic(),
        notes=[f"No test answer from: {', '.join(untested)}."] if untested else [],
        seed=config.seed,
        thresholds=session.attendance.thresholds(),
        **({"command": _DEPLOYMENT_COMMAND} if isinstance(config, ServerConfig) else {}),
    )
    write_report(run.path, content)
    write_model(run.model, session.checkpoints.load(chosen).model_path, session.plan, chosen_round=chosen)
