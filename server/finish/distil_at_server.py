"""The compact student at the server: the proxy images, and its distillation from the aggregated network.

::

    compression/distilled/model.safetensors    the student, with BatchNorm statistics of proxy images
    compression/distilled/record.json          how it came about
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from fedmed.config import FoproConfig, Plan, RunConfig, StudentConfig, make_student_plan
from fedmed.distillation import (
    CompactResult,
    CompactSettings,
    Ensemble,
    ExploreResult,
    PromptSettings,
    ProxyImages,
    StatisticsMatch,
    copy_matching,
    distil_compact,
    measure_mismatch,
)
from fedmed.distillation.network import build_network
from fedmed.distillation.pixels import PixelModel, held_still
from fedmed.distillation.teachers.teacher import read_mobilenet_features
from fedmed.errors import FedmedError
from fedmed.reparameterization import reparameterize
from fedmed.reparameterization.statistics import tracked_norms
from fedmed.storage.atomic_files import find_rounds, hash_file, write_atomically
from fedmed.storage.checkpoints import MODEL_FILE
from fedmed.storage.phase_records import RECORD_FILE, read_record
from fedmed.storage.records import DistilledRecord, EarlierDistillation, ExploredRecord, NetworkSize
from fedmed.training.devices import select_device
from fedmed.training.network import Network
from server.finish.chosen import ChosenModel
from server.finish.proxy_images import open_proxy
from server.rounds.session import Session
from server.rounds.site_models import open_ensemble

_MISMATCH_BATCH = 64


def build_student(session: Session, settings: StudentConfig) -> tuple[Network, list[str] | None]:
    """Return the student with its initial values, and which of its tensors are not pre-trained.

    Returns
    -------
    network : Network
    not_copied : list of str or None
        None where nothing pre-trained is wanted.

    Raises
    ------
    TeacherUnavailableError
        If the pre-trained file is wanted and not here.
    """
    network = Network(make_student_plan(session.plan))
    if not settings.pretrained:
        return network, None
    return network, copy_matching(network.model, read_mobilenet_features())


def distil_at_server(
    session: Session, model: ChosenModel, settings: StudentConfig, folder: Path, earlier: Path | None = None
) -> DistilledRecord:
    """Distil the aggregated network into the student on proxy images; what is done already is not done again.

    Parameters
    ----------
    session : Session
        The federation.
    model : ChosenModel
        The large network, in train form.
    settings : StudentConfig
        How.
    folder : Path
        Gets ``model.safetensors`` and ``record.json``.
    earlier : Path, optional
        The student of an earlier distillation, from which this one starts.

    Returns
    -------
    DistilledRecord
        Content of the record.
    """
    done = read_record(folder, model.model_sha256, DistilledRecord)
    if done is not None and done.get("target", "global") == settings.target:
        return done
    assert session.config.fopro is not None, "there is a compression"
    session.listener.on_phase("distil", model.round, 0)
    large = build_network(session.plan)
    large.fill(model.model_path.read_bytes(), {})
    student, not_copied = build_student(session, settings)
    if earlier is not None:
        student.fill(earlier.read_bytes(), {})
    proxy = open_proxy(session)
    teacher, members = _choose_teacher(session, model, settings, large)

    def tell(step: int, figures: Mapping[str, float]) -> None:
        session.listener.on_info(
            f"Distillation, step {step} of {settings.steps}: loss {figures['train_loss']:.3f}, on held-out proxy "
            f"images {figures['held_out_loss']:.3f}; the small network decides like its target on "
            f"{figures['agreement']:.0%} of them."
        )

    with _compute_like_sites(session) as device:
        result = distil_compact(
            teacher,
            student.model,
            proxy,
            _make_settings(settings, session.config.fopro),
            seed=session.plan.seed,
            device=device,
            progress=tell,
        )
        started = time.perf_counter()
        mismatch = _measure_proxy(large.model, result, proxy, device)
        seconds = {**result.seconds, "distance": time.perf_counter() - started}
    student.model.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODEL_FILE, student.pack())
    record: DistilledRecord = {
        "round": model.round,
        "target": settings.target,
        "members": members,
        "num_proxy_images": len(proxy),
        "not_copied": not_copied,
        "phases": seconds,
        "history": result.history,
        "best_step": result.best_step,
        "explored": _describe_prompt(result.explored),
        "mismatch": mismatch,
        "notes": list(result.notes),
        "from_sha256": model.model_sha256,
        "model_sha256": hash_file(folder / MODEL_FILE),
    }
    write_atomically(folder / RECORD_FILE, json.dumps(record).encode())
    return record


def _describe_prompt(explored: ExploreResult) -> ExploredRecord:
    return {
        "losses": list(explored.losses),
        "mismatches": list(explored.mismatches),
        "outside": explored.outside,
        "bands": explored.bands,
    }


def _choose_teacher(
    session: Session, model: ChosenModel, settings: StudentConfig, large: Network
) -> tuple[nn.Module | Ensemble, list[str] | None]:
    """Return whose answers the student learns, and the sites whose single models these are."""
    if settings.target == "global":
        return large.model, None
    ensemble, sites = open_ensemble(session, model.round)
    session.listener.on_info(
        f"The target is the mean answer of the single models of {len(sites)} sites after round {model.round}, "
        f"{model.model_path.stat().st_size / 2**20:.1f} MiB each on the disk, one of them in memory at a time."
    )
    session.audit.append("ensemble", round=model.round, sites=sites)
    return ensemble, sites


def round_name(round_number: int) -> str:
    """Return the name of the folder of a distillation between the rounds."""
    return f"round_{round_number:05d}"


def find_earlier(root: Path, round_number: int) -> Path | None:
    """Return the student of the newest distillation before a round, None if there is none."""
    found = find_rounds(root)
    for number in sorted((number for number in found if number < round_number), reverse=True):
        if (found[number] / RECORD_FILE).is_file():
            return found[number] / MODEL_FILE
    return None


def list_earlier(root: Path) -> list[EarlierDistillation]:
    """Return ``round``, ``seconds`` and ``agreement`` of every distillation between the rounds."""
    found = find_rounds(root)
    records = [json.loads((found[number] / RECORD_FILE).read_bytes()) for number in sorted(found)]
    return [
        {
            "round": record["round"],
            "seconds": sum(record["phases"].values()),
            "agreement": record["history"][-1]["agreement"] if record["history"] else None,
        }
        for record in records
    ]


def describe_size(plan: Plan, path: Path) -> NetworkSize:
    """Return how large a network is in train form, and merged as it is deployed.

    Returns
    -------
    NetworkSize
        ``name``, ``parameters``, ``bytes`` and, where it can be merged, ``deployed_parameters`` and
        ``deployed_mib`` (float32).
    """
    network = build_network(plan)
    network.fill(path.read_bytes(), {})
    size: NetworkSize = {
        "name": plan.model.name,
        "parameters": _count(network.model),
        "bytes": path.stat().st_size,
        "deployed_parameters": None,
        "deployed_mib": None,
    }
    try:
        number = _count(reparameterize(network.model))
    except FedmedError:
        return size
    return {**size, "deployed_parameters": number, "deployed_mib": number * 4 / 2**20}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _compute_like_sites(session: Session) -> Iterator[torch.device]:
    """Compute with as many threads as a simulation's workers, on which the last bits depend; give the device."""
    before, config = torch.get_num_threads(), session.config
    if isinstance(config, RunConfig):
        torch.set_num_threads(config.threads)
    try:
        yield select_device(config.device if isinstance(config, RunConfig) else "auto")
    finally:
        torch.set_num_threads(before)


def _make_settings(settings: StudentConfig, fopro: FoproConfig) -> CompactSettings:
    prompt = fopro.prompt
    return CompactSettings(
        prompt=PromptSettings(
            options=prompt.options,
            bn=prompt.bn,
            beta=prompt.beta,
            rho=prompt.rho,
            lr=prompt.lr,
            first_steps=settings.explore_steps,
        ),
        prompt_batch=settings.batch_size,
        batch_size=settings.batch_size,
        steps=settings.steps,
        evaluate_every=settings.evaluate_every,
        lr=settings.lr,
        temperature=settings.temperature,
        feature_weight=settings.feature_weight,
    )


@torch.no_grad()
def _measure_proxy(large: nn.Module, result: CompactResult, proxy: ProxyImages, device: torch.device) -> float | None:
    """Return how far the prompted proxy images are from the large network's statistics, None if it has none."""
    if not tracked_norms(large):
        return None
    model = PixelModel(large, proxy.statistics)
    with held_still(model):
        batches = (result.prompt(pixels.to(device)) for pixels in proxy.batches(_MISMATCH_BATCH))
        return measure_mismatch(StatisticsMatch(model), batches)
