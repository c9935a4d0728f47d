"""The candidate of a real federation: the deployable artefact, proven here and at the sites before it is released.

::

    model/                the artefact, see fedmed.export.artefact
    tables/release.json   what each site has found, for the coordinating site

The server has no images, so it proves block by block on seeded inputs in float64. Then every site compares train form,
deploy form and ONNX file on its own test images. Whoever answers must be within tolerance.

With ``batch_norm: local`` there is no common deploy form: what is released is the train form, and each site makes and
proves its own artefact with its own BatchNorm when it collects it.
"""

import json
from pathlib import Path

from fedmed.config.server import ServerConfig
from fedmed.distillation.network import strip_packed
from fedmed.errors import FederationError
from fedmed.export import release_form, write_model
from fedmed.export.manifest import ManifestChanges, ReleaseOrigin
from fedmed.export.model_card import ReportData, read_report
from fedmed.protocol.messages import pack_files
from fedmed.protocol.release import COMPARED_FILES, MODEL_FILE, ONNX_FILE
from fedmed.storage.atomic_files import hash_file, write_atomically
from fedmed.storage.operating_records import read_operating_point
from fedmed.storage.phase_records import COMPARISON_FILE
from fedmed.storage.run_folder import RunFolder
from fedmed.training.network import Network
from server.finish.chance import read_doubts, write_doubts
from server.finish.chosen import ChosenModel
from server.finish.compare_forms import Findings, KeptFindings, compare_at_sites
from server.finish.differences import describe_accepted, keep_differences, pass_over_accepted
from server.rounds.session import Session


def make_candidate(session: Session, model: ChosenModel, best_round: int | None) -> None:
    """Fill ``model/`` of a run whose chosen model was tested; what is done already is not done again.

    Parameters
    ----------
    session : Session
        The federation.
    model : ChosenModel
        Train form of the chosen model.
    best_round : int, optional
        As the sites are told.

    Raises
    ------
    FederationError
        If the forms differ at a site; nothing is released then, and the next start asks the sites again.
    FedmedError
        If the model cannot be exported or proven.
    """
    run, config = session.run, session.config
    if not isinstance(config, ServerConfig) or config.batch_norm == "local":
        write_model(
            run.model,
            model.model_path,
            session.plan,
            chosen_round=model.round,
            temperature=run.read_temperature(),
            operating=read_operating_point(run),
            distillation=run.read_distillation(),
        )
        if isinstance(config, ServerConfig) and read_doubts(run):
            release_form.change_manifest(run.model, None, {"release": _describe_release(run, config)})
        return
    from fedmed.export.check import is_artefact_of  # noqa: PLC0415  (imports the ONNX runtime)

    if not is_artefact_of(run.model, model.model_sha256):
        _build(session, config, model)
    files = _hash_candidate(run.model)
    findings = _read_findings(run, files, len(session.plan.classes))
    if findings is None:
        findings = _ask_sites(session, model, best_round, files)
        kept = findings.keep(files).to_values()
        write_atomically(run.tables / COMPARISON_FILE, json.dumps(kept, indent=1).encode())
    pooled = release_form.pool(findings.comparisons)
    pooled["num_silent"] = len(findings.silent)
    changes: ManifestChanges = {"proof": {"sites": pooled}}
    accepted = describe_accepted(run, files)
    if accepted:  # a person has to release it, and the card says so
        write_doubts(run, list(dict.fromkeys([*read_doubts(run), *accepted])))
        changes["release"] = _describe_release(run, config)
    release_form.change_manifest(run.model, read_shared_report(run), changes)


def read_shared_report(run: RunFolder) -> ReportData | None:
    """Return ``report.json`` as all sites get it."""
    return read_report(run.path / "shared" / "report")


def _build(session: Session, config: ServerConfig, model: ChosenModel) -> None:
    # Imported late: the exporter takes seconds and memory, which the rounds should not pay.
    from fedmed.export.artefact import ArtefactSettings, build_artefact  # noqa: PLC0415
    from fedmed.export.plain_onnx import check_plain_onnx  # noqa: PLC0415
    from fedmed.export.run import sample_images  # noqa: PLC0415

    session.listener.on_info("The chosen model is brought into its deployable form.")
    plan = session.plan.plain()
    network = Network(plan)
    network.fill(strip_packed(model.model_path.read_bytes(), session.plan), {})
    settings = ArtefactSettings(
        plan=plan,
        chosen_round=model.round,
        title=f"Federated model '{config.name}'",
        report=read_shared_report(session.run),
        expected=sample_images(session.run, config).expected,
        release=_describe_release(session.run, config),
        temperature=session.run.read_temperature(),
        operating=read_operating_point(session.run),
        distillation=session.run.read_distillation(),
    )
    folder = session.run.model
    build_artefact(network.model, settings, folder)
    check_plain_onnx((folder / ONNX_FILE).read_bytes(), weight_bytes=(folder / MODEL_FILE).stat().st_size)
    release_form.change_manifest(folder, settings.report, {"trained_sha256": model.model_sha256})


def _describe_release(run: RunFolder, config: ServerConfig) -> ReleaseOrigin:
    """Return how the model is released; with doubts about it, a person has to decide at least."""
    doubts = read_doubts(run)
    if not doubts:
        return {"kind": config.release}
    return {"kind": "manual" if config.release == "automatic" else config.release, "doubts": doubts}


def _hash_candidate(folder: Path) -> dict[str, str]:
    return {name: hash_file(folder / name) for name in (MODEL_FILE, ONNX_FILE)}


def _read_findings(run: RunFolder, files: dict[str, str], num_classes: int) -> Findings | None:
    """Return what the sites found about this very candidate at an earlier start; None if they were not asked yet."""
    try:
        kept = KeptFindings.model_validate_json((run.tables / COMPARISON_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return kept.restore(num_classes) if kept.files == files else None


def _ask_sites(session: Session, model: ChosenModel, best_round: int | None, files: dict[str, str]) -> Findings:
    """Ask the sites, write down who said what, and insist that nobody has found a difference, or it was accepted."""
    folder = session.run.model
    packed = pack_files({name: (folder / name).read_bytes() for name in COMPARED_FILES})
    findings = compare_at_sites(session, model, best_round, packed)
    for site, comparison in findings.comparisons.items():
        session.audit.append("compared", site=site, **release_form.describe_comparison(comparison).to_values())
    for site, problem in findings.problems.items():
        session.audit.append("comparison_failed", site=site, problem=problem)
    if findings.problems:
        keep_differences(session.run, files, findings)
        pass_over_accepted(session.run, files, findings)
    if findings.problems:
        told = " ".join(f"{site}: {problem}" for site, problem in findings.problems.items())
        sites, others = sorted(findings.problems), sorted(set(findings.comparisons) - set(findings.problems))
        on = "if it stays, the model cannot be deployed as it is."
        if others:
            on = (
                f"if it stays, look into it with {', '.join(sites)}. {', '.join(others)} found no difference: to "
                "release the model nevertheless, a person accepts that of each by name, which is recorded, and starts "
                f'again: flower-server --config FILE --accept-difference {sites[0]} --by "NAME OF A PERSON"'
            )
        raise FederationError(
            f"The model is not released, because {', '.join(sites)} found that its deployable form is not what was "
            f"trained. {told} Start again to repeat the comparison; {on}"
        )
    if not any(comparison.onnx.num_images for comparison in findings.comparisons.values()):
        session.listener.on_note(
            "No site has compared the deployable form on images; the model rests on the proof without images alone, "
            "and its model card says so."
        )
    return findings
