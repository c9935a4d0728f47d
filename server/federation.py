"""The ServerApp: from a run folder with settings to a chosen, tested model with a report.

The same object runs in a simulation and behind a SuperLink. It resumes by itself: a run folder with checkpoints goes on
after the newest one.
"""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmed.audit import AuditLog
from fedmed.checkpoint import Checkpoint, RunCheckpoints, write_atomically
from fedmed.config import LOCAL_MODEL_OPTIONS
from fedmed.errors import FederationError
from fedmed.export import write_model
from fedmed.metrics.history import append_record, read_history, truncate_history
from fedmed.network import Network
from fedmed.report import ReportContent, write_report
from fedmed.run_folder import RunFolder
from server.attendance import Attendance
from server.exchange import Exchange
from server.progress import Listener, LogListener
from server.rounds import LoopState, RoundLoop, Session, save_checkpoint
from server.scoring import load_tables, round_folder, save_tables


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


app = create_server_app()


def run_federation(grid: Grid, run: RunFolder, listener: Listener) -> None:
    """Run, or resume, the federation of a run folder to its end.

    Raises
    ------
    FedmedError
        With what to do; everything up to the last closed round is saved.
    """
    session = _open_session(grid, run, listener)
    start = _find_start(session)
    _gather_sites(session, start.round)
    loop = RoundLoop(session, start)
    state = loop.run()
    chosen = state.best_round or session.config.rounds
    _test_once(session, chosen, state)
    _write_products(session, chosen)
    session.audit.append("end", chosen_round=chosen)


def _open_session(grid: Grid, run: RunFolder, listener: Listener) -> Session:
    config = run.read_config()
    plan = config.make_plan()
    network = Network(plan)  # for its names only: the server holds no model between rounds
    parameters = frozenset(name for name, _ in network.model.named_parameters())
    digest = network.digest()
    audit = AuditLog(run.audit_file)
    audit.append("start", model_digest=digest)
    return Session(
        config=config,
        plan=plan,
        run=run,
        exchange=Exchange(grid, run),
        checkpoints=RunCheckpoints(run.checkpoints),
        audit=audit,
        attendance=Attendance(plan, digest),
        listener=listener,
        parameters=parameters,
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


def _gather_sites(session: Session, round_number: int) -> None:
    """Wait until enough sites have joined."""
    config, attendance = session.config, session.attendance
    attendance.join(session.exchange, session.listener, deadline_s=config.round_deadline_s, round_number=round_number)
    if len(attendance.descriptions) < config.min_sites:
        raise FederationError(
            f"{len(attendance.descriptions)} sites could join, min_sites = {config.min_sites} are needed. "
            "The lines above say what is wrong at the others. Mend it, or lower min_sites, and start again."
        )


def _test_once(session: Session, chosen: int, state: LoopState) -> None:
    """Have every site score the chosen model on its test images; a site does so only once for a model."""
    folder = session.run.tables / "test"
    model = session.checkpoints.load(chosen).model_path.read_bytes()
    sites = sorted(session.attendance.descriptions)
    tables = session.score(chosen, model, sites, part="test", best_round=state.best_round)
    if not tables:
        raise FederationError("No site has answered the test of the chosen model. Resume the run to ask again.")
    save_tables(folder, tables)
    for site in tables:
        session.audit.append("test", round=chosen, site=site)


def _write_products(session: Session, chosen: int) -> None:
    run, config = session.run, session.config
    untested = sorted(set(session.attendance.descriptions) - set(load_tables(run.tables / "test")))
    history = read_history(run.history_file)
    content = ReportContent(
        title=f"Federated run '{config.name}'",
        config=config.model_dump(mode="json"),
        environment=run.read_environment(),
        classes=tuple(session.plan.classes),
        chosen_round=chosen,
        rounds_done=len(history),
        history=history,
        validation=load_tables(round_folder(run.tables, chosen)),
        test=load_tables(run.tables / "test"),
        composition=session.attendance.composition(),
        synthetic=config.data.source == "phantom",
        notes=[f"No test answer from: {', '.join(untested)}."] if untested else [],
        seed=config.seed,
    )
    write_report(run.path, content)
    write_model(run.model, session.checkpoints.load(chosen).model_path, session.plan, chosen_round=chosen)
