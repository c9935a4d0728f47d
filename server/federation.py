"""The ServerApp: from a run folder with settings to a chosen, tested model with a report.

The same object runs in a simulation and behind a SuperLink. It resumes by itself: a run folder with checkpoints goes on
after the newest one.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedmed.aggregation import GlobalModel, make_rule
from fedmed.config import SCORE_FIGURES
from fedmed.config.server import ServerConfig
from fedmed.distillation import describe_teacher, name_distillation, use_teacher_file
from fedmed.distillation.network import build_network
from fedmed.errors import CheckpointError, FederationError
from fedmed.extensions import find_extension
from fedmed.metrics.site_tables import SiteTables
from fedmed.protocol.quantisation import estimate_bytes
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.audit import AuditLog
from fedmed.storage.checkpoints import Checkpoint, RunCheckpoints
from fedmed.storage.history import append_record, read_history, truncate_history, write_metrics_csv
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.tensor_files import TensorFile
from fedmed.training.batch_norm_policy import find_norm_buffers
from server.finish.artefact import make_candidate
from server.finish.calibrate import fit_temperature
from server.finish.chosen import ChosenModel
from server.finish.doubts import note_doubts
from server.finish.operating_point import choose_operating_point
from server.finish.own_models import compared_models, train_local, write_initial
from server.finish.recalibrate import take_chosen
from server.finish.report import write_final_report
from server.finish.small_network import Product, check_compression, choose_product, compress_between
from server.provisioning.countersigning import open_countersigner
from server.rounds.attendance import Attendance, read_declared, save_sites
from server.rounds.courier import Courier
from server.rounds.exchange import Exchange
from server.rounds.loop import RoundLoop
from server.rounds.loop_state import LoopState, save_checkpoint
from server.rounds.progress import EventListener, Listener, LogListener
from server.rounds.scoring import save_tables
from server.rounds.session import Session
from server.rounds.validation import choice_value, is_better

_TEST_CALLS = 2

OnTested = Callable[[Session, ChosenModel], None]
"""What a simulation does with the tested model before the report is written; a real federation does nothing."""


def create_server_app(listener: Listener | None = None, on_tested: OnTested | None = None) -> ServerApp:
    """Return a ServerApp that tells ``listener`` what happens.

    Parameters
    ----------
    listener : Listener, optional
        Default: Python's logging.
    on_tested : callable, optional
        Called with the tested model before the report is written; for a simulation, whose process has all images.

    Returns
    -------
    ServerApp
        Its run config needs ``run-dir``, a run folder with ``config.yaml`` and, as sites come, ``roster.json``.
    """
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run = RunFolder.open(Path(str(context.run_config["run-dir"])))
        run_federation(grid, run, listener or LogListener(), on_tested)

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


def run_federation(grid: Grid, run: RunFolder, listener: Listener, on_tested: OnTested | None = None) -> None:
    """Run, or resume, the federation of a run folder to its end.

    Raises
    ------
    FedmedError
        With what to do; everything up to the last closed round is saved.
    """
    session = _open_session(grid, run, listener)
    teacher = session.attendance.teacher
    run.record_distillation(name_distillation(session.plan.fopro), None if teacher is None else dict(teacher))
    start, state = _find_start(session)
    session.exchange.bound_replies(start.model_path.stat().st_size)
    listener.on_info(describe_messages(session, start.model_path))
    if session.config.server_step.kind != "average":
        listener.on_info(f"After each round the server takes a step: {session.config.server_step.describe()}.")
    loop = RoundLoop(session, start, state, on_closed=partial(compress_between, session))
    if not _is_tested(run):
        check_compression(session)
        session.gather_sites(start.round)
        compress_between(session, start.round, start.model_path, start.model_sha256)
    if session.config.aggregation.needs_local_models and not _is_tested(run):
        train_local(session)  # the rounds need to know how good the sites are alone
    state = loop.run()
    chosen = state.best_round or session.config.rounds
    model = take_chosen(session, chosen, state.best_round)
    product = choose_product(session, model, state.best_round)
    if not _is_tested(run):
        train_local(session)
        temperature = fit_temperature(product.session, product.model, state.best_round)
        divisor = None if temperature is None else float(temperature["temperature"])
        threshold = choose_operating_point(product.session, product.model, state.best_round, divisor)
        _test_once(product, state, divisor, threshold)
    note_doubts(product.session, product.model)
    if on_tested is not None:
        on_tested(product.session, product.model)
    write_final_report(run, chosen, listener.on_note)
    make_candidate(product.session, product.model, state.best_round)
    session.audit.append("end", chosen_round=chosen)
    write_atomically(run.finished_file, json.dumps({"chosen_round": chosen}).encode())


def _open_session(grid: Grid, run: RunFolder, listener: Listener) -> Session:
    config = run.read_settings()
    deployed = isinstance(config, ServerConfig)
    use_teacher_file(config)
    plan = config.make_plan()
    if deployed:
        plan = plan.model_copy(update={"run_id": run.read_run_id()})
    network = build_network(plan)  # for its names only: the server holds no model between rounds
    parameters, norms = network.parameter_names, find_norm_buffers(network.whole, network.shared)
    digest = network.digest()
    audit = AuditLog(run.audit_file)
    code = [*plan.extensions, *map(find_extension, config.code_at_server)]
    run.record_extensions(code)
    make_rule(config.aggregation.fair)  # here, and not after the first round of training
    audit.append("start", model_digest=digest, **({"extensions": [one.model_dump() for one in code]} if code else {}))
    if isinstance(listener, EventListener):
        listener.tell_model(digest)
    exchange = Exchange(grid, run, open_countersigner(config, run, audit, listener.on_note))
    return Session(
        config=config,
        plan=plan,
        run=run,
        exchange=exchange,
        courier=Courier(exchange, remember=deployed),
        checkpoints=RunCheckpoints(run.checkpoints),
        audit=audit,
        attendance=Attendance(
            plan,
            digest,
            teacher=describe_teacher(plan.fopro),
            declared=read_declared(run),
            needs_scores=config.choose_by in SCORE_FIGURES,
            needs_tables=config.choice == "tables",
        ),
        listener=listener,
        parameters=parameters,
        norms=norms,
        patient=deployed,
    )


def _find_start(session: Session) -> tuple[Checkpoint, LoopState]:
    """Return the newest checkpoint, or round 0 with the initial model, and set the history to it."""
    found = session.checkpoints.load_latest()
    if found is None:
        save_checkpoint(session.checkpoints, 0, GlobalModel(write_initial(session)), LoopState())
        found = session.checkpoints.load(0)
    for problem in found.problems:
        session.listener.on_note(f"{problem} Going on from round {found.round}.")
    truncate_history(session.run.history_file, found.round)
    history = read_history(session.run.history_file)
    state = LoopState.model_validate(found.state)
    if state.record is not None and (not history or history[-1].round < found.round):
        append_record(session.run.history_file, state.record)
        write_metrics_csv(read_history(session.run.history_file), session.run.metrics_file)
    _replace_lost_best(session, found, state)
    return found, state


def _replace_lost_best(session: Session, found: Checkpoint, state: LoopState) -> None:
    """Choose the best of the rounds that are left, if the checkpoint of the best one is damaged or gone."""
    best = state.best_round
    if best is None or best == found.round:
        return
    try:
        session.checkpoints.load(best)
        return
    except CheckpointError as error:
        problem = str(error)
    values = {
        record.round: choice_value(session.config, record.validation)
        for record in read_history(session.run.history_file)
    }
    kept = [number for number in session.checkpoints.rounds if values.get(number) is not None]
    sound = [number for number in kept if number == found.round or _is_sound(session, number)]
    state.best_round = state.best_value = None
    for number in sorted(sound):
        if is_better(session.config, values[number], state.best_value):
            state.best_round, state.best_value = number, values[number]
    session.listener.on_note(f"{problem} The best round that is left is {state.best_round}.")


def _is_sound(session: Session, round_number: int) -> bool:
    try:
        session.checkpoints.load(round_number)
    except CheckpointError:
        return False
    return True


def _is_tested(run: RunFolder) -> bool:
    return (run.tables / "test").exists()


def _test_once(product: Product, state: LoopState, temperature: float | None, alert_threshold: float | None) -> None:
    """Have every site score the released model on its test images, and all that it is compared with in the same step.

    A site does so only once for a model.

    Who is away gets one more chance, because there is no later round.

    Raises
    ------
    FederationError
        If no site has answered.
    """
    session, model = product.session, product.model
    tables: dict[str, SiteTables] = {}
    refused: dict[str, str] = {}
    for _ in range(_TEST_CALLS if session.patient else 1):
        session.gather_everybody(session.config.rounds)
        sites = sorted(set(session.attendance.descriptions) - set(tables) - set(refused))
        if not sites:
            break
        scores = session.score(
            model.round,
            model.model_path,
            model.model_sha256,
            sites,
            part="test",
            best_round=state.best_round,
            temperature=temperature,
            alert_threshold=alert_threshold,
            compare=compared_models(session),
            other=product.teacher,
        )
        tables |= scores.tables
        refused |= scores.refused
    if not tables and not (session.patient and refused):
        raise FederationError("No site has answered the test of the chosen model. Start again to ask again.")
    save_sites(session.run, session.attendance.describe_sites())
    save_tables(session.run.tables / "test", dict(sorted(tables.items())))
    for site in sorted(tables):
        session.audit.append("test", round=model.round, site=site)


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
