"""From settings to a finished simulation: prepare the data, start the workers, run the ServerApp."""

import math
import os

import torch
from flwr.app import Context, RecordDict

from fedmed.aggregation import make_rule, make_step
from fedmed.config import RunConfig
from fedmed.data import Prepared, describe_left_out, prepare_data
from fedmed.distillation import find_classifier, take_teacher, use_teacher_file
from fedmed.errors import ConfigError, ReparameterizationError
from fedmed.export.onnx_file import ExportError
from fedmed.losses import build_loss
from fedmed.models import create_model
from fedmed.storage.run_folder import RunFolder
from fedmed.training.outside_code import try_loss, try_network
from server.federation import create_server_app
from server.rounds.progress import Listener
from simulations.backend.grid import RayGrid, SimulatedNode
from simulations.pooled_scores import measure_pooled_auc


def run_simulation(
    run: RunFolder, config: RunConfig, listener: Listener, *, client_app: str = "client.site:app", export: bool = True
) -> None:
    """Run, or resume, a simulation to its end.

    Parameters
    ----------
    run : RunFolder
        Holds the settings; everything is written there.
    config : RunConfig
        The same settings.
    listener : Listener
        Is told what happens.
    client_app : str
        ``module:attribute`` of the ClientApp that answers for the sites.
    export : bool
        Whether to make the deployable artefact; a study has no use for those of its cells.

    Raises
    ------
    FedmedError
        With what to do; the run can be resumed.
    """
    prepared = prepare_data(config.data, config.sites, config.seed, run.splits)
    if prepared.num_bad_rows:
        listener.on_note(f"{prepared.num_bad_rows} rows were skipped; {run.splits / 'skipped_rows.csv'} names them.")
    if any(prepared.left_out):
        listener.on_note(describe_left_out(prepared, config.data))
    num_sites = len(prepared.sites)
    if config.min_sites > num_sites:
        listener.on_note(f"The partition makes {num_sites} site(s): min_sites = {config.min_sites} is lowered to it.")
    config = config.model_copy(
        update={"classes": list(prepared.classes), "min_sites": min(config.min_sites, num_sites)}
    )
    _check_alert_classes(config)
    run.write_config(config)
    nodes = make_nodes(run, config, prepared)
    run.write_roster({node.node_id: str(node.config["site"]) for node in nodes})
    with RayGrid(
        client_app,
        nodes,
        num_workers=count_workers(config, len(nodes)),
        threads=config.threads,
        num_gpus_per_worker=_gpu_share(config, len(nodes)),
        log_dir=run.logs,
    ) as grid:
        context = Context(
            run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run-dir": str(run.path)}
        )
        create_server_app(listener, measure_pooled_auc)(grid, context)
    if export:
        export_model(run, config, listener)


def export_model(run: RunFolder, config: RunConfig, listener: Listener) -> None:
    """Put the deployable artefact in the place of the model as it was trained.

    A model that cannot be exported, or is not equal to what was trained, stays as it was trained: the run itself has
    done its work.
    """
    from fedmed.export.run import export_run  # noqa: PLC0415  (the ONNX runtime, which only the end of a run needs)

    if run.read_config().make_plan().is_personal:
        kept = "BatchNorm stays" if config.batch_norm == "local" else "The network's last layer stays"
        listener.on_note(
            f"{kept} at the sites, so each has a model of its own. To export one, type: "
            f"python -m fedmed.export {run.path} --out DIR --site NAME"
        )
        return
    listener.on_info("The chosen model is merged, proven equal and exported; this can take a minute.")
    try:
        export_run(run, run.model)
    except (ExportError, ReparameterizationError) as error:
        listener.on_note(f"{error} {run.model} holds the model as it was trained.")


def check_settings(config: RunConfig, source: str) -> None:
    """Build model, loss, rule and server step once, so that a wrong name or option is found before anything starts.

    Raises
    ------
    ConfigError
        With the file, the section, what was found and what is allowed.
    """
    try:
        try_loss(config.loss, build_loss(config.loss, class_counts=[1, 1]), 2)
    except ConfigError as error:
        raise ConfigError(f"{source}: loss: {error}") from None
    try:
        model = create_model(config.model.name, 2, **config.model.options)
        try_network(config.model.name, model, 2, config.data.image_size)
    except ConfigError as error:
        raise ConfigError(f"{source}: model: {error}") from None
    try:
        make_rule(config.aggregation.fair)
        make_step(config.server_step)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    use_teacher_file(config)
    fopro = config.distillation
    if fopro is not None:
        if not fopro.teacher.is_self:
            take_teacher(fopro)
        find_classifier(model)


def make_nodes(run: RunFolder, config: RunConfig, prepared: Prepared) -> list[SimulatedNode]:
    """Return one node per site; its share of the image cache and its weight follow its number of images."""
    images = {site: sum(map(sum, parts.values())) for site, parts in prepared.composition.items()}
    total = sum(images.values())
    return [
        SimulatedNode(
            node_id=index + 1,
            config={
                "run-dir": str(run.path),
                "site": site,
                "cache-mib": config.data.cache_mib * images[site] / total,
            },
            weight=float(sum(prepared.composition[site]["train"])),
        )
        for index, site in enumerate(prepared.sites)
    ]


def count_workers(config: RunConfig, num_sites: int) -> int:
    """Return how many workers to start: what the config says, else as many as the cores allow."""
    if config.workers != "auto":
        return min(config.workers, num_sites)
    return max(1, min(num_sites, len(os.sched_getaffinity(0)) // config.threads))


def _check_alert_classes(config: RunConfig) -> None:
    """Raise a ConfigError if classes that need a person are none of the data."""
    try:
        config.make_operating_plan(config.classes or [])
    except ValueError as error:
        raise ConfigError(f"{error}.") from None


def _gpu_share(config: RunConfig, num_sites: int) -> float:
    """Return each worker's share of the GPUs, 0 where none is used."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    return share_gpus(torch.cuda.device_count(), count_workers(config, num_sites))


def share_gpus(num_gpus: int, num_workers: int) -> float:
    """Return how much of a GPU each worker takes, so that all workers find a place.

    Ray places a worker on whole GPUs or on a part of one, never on parts of two.
    """
    if num_workers >= num_gpus:
        return 1 / math.ceil(num_workers / num_gpus)
    return float(num_gpus // num_workers)
