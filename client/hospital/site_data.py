"""What a site's process holds: its images, its rules and its state between rounds.

A node config tells where: ``run-dir`` and ``site`` in a simulation, ``client-config`` at a hospital.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from client.hospital.held_rows import hold_part
from client.hospital.hospital_images import HospitalData, load_hospital_data
from client.hospital.told_rows import CountedPart, count_part, list_patients
from fedmed.config import FairnessConfig, Plan
from fedmed.config.client import ClientConfig, PolicyConfig, load_client_config
from fedmed.data import ImagePart, SiteData, load_site
from fedmed.distillation import set_teacher_file, use_teacher_file
from fedmed.errors import FedmedError, WireError
from fedmed.fairness.disclosure.row_span import Mask
from fedmed.fairness.disclosure.tables import Disclosure, find_breach
from fedmed.fairness.figures.groups import check_attribute
from fedmed.metrics.packing import pack_site_tables
from fedmed.metrics.rounding import round_down
from fedmed.metrics.site_tables import SiteTables
from fedmed.processes import private_folder, write_secret
from fedmed.protocol.messages import unpack_tables
from fedmed.storage.atomic_files import write_atomically
from fedmed.storage.run_folder import RunFolder
from fedmed.storage.site_state import SiteState
from fedmed.training.devices import select_device

NodeConfig = Mapping[str, str | int | float | bool | bytes]
CLIENT_CONFIG = "client-config"
_DIGEST_LETTERS = 16

_logger = logging.getLogger("fedmed.client")


@dataclass(frozen=True)
class RunFiles:
    """What a site keeps of one run.

    ========================  ====================================================================
    ``state/``                momentum, local BatchNorm and the like, round by round
    ``test_tables/``          tables of test images as they were sent, by hash of the model and of
                              which images these are
    ``own_tables/``           the same without anything held back, and what each image was taken
                              for; they never leave the site
    ========================  ====================================================================
    """

    folder: Path

    @property
    def state(self) -> SiteState:
        """What is kept between rounds."""
        return SiteState(self.folder / "state")

    def read_test_tables(self, model_sha256: str, data: str, disclosure: Disclosure, site: str) -> SiteTables | None:
        """Return the stored answer to a test of this model, so that test images are scored once only.

        None if there is none, if it is of other images than those of now (``data``, see :meth:`Site.digest_part`), as
        after a withdrawal, or if the site has raised its thresholds since.
        """
        path = self._name_test_tables(model_sha256, data)
        if not path.is_file():
            return None
        try:
            tables = unpack_tables(path.read_bytes())
        except WireError:
            _logger.warning("The stored test tables of a model are damaged; its test images are scored again.")
            return None
        return None if find_breach(tables, disclosure, site) else tables

    def _name_test_tables(self, model_sha256: str, data: str) -> Path:
        return self.folder / "test_tables" / f"{model_sha256}.{data[:_DIGEST_LETTERS]}.safetensors"

    def store_test_tables(
        self,
        model_sha256: str,
        data: str,
        tables: SiteTables,
        own: SiteTables | None = None,
        rows: bytes | None = None,
    ) -> None:
        """Store the answer to a test of this model, in place of one of other images.

        Parameters
        ----------
        model_sha256 : str
            Hash of the model.
        data : str
            State of the test images, see :meth:`Site.digest_part`.
        tables : SiteTables
            The answer.
        own : SiteTables, optional
            The complete tables, for the site's own report.
        rows : bytes, optional
            Labels, predictions and groups of the images, to check that report with.
        """
        own_folder = self.folder / "own_tables"
        if rows is not None:
            write_secret(private_folder(own_folder) / f"{model_sha256}.rows.json", rows)
        path = self._name_test_tables(model_sha256, data)
        for file, content in ((own_folder / f"{model_sha256}.safetensors", own), (path, tables)):
            if content is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, pack_site_tables(content))
        for old in path.parent.glob(f"{model_sha256}.*"):  # of patients who have withdrawn since
            if old != path:
                old.unlink(missing_ok=True)


@dataclass(frozen=True)
class Site:
    """One site as its own process sees it."""

    name: str
    data: SiteData
    folder: Path
    """Everything that the site keeps of its runs."""
    device: torch.device
    share_class_counts: bool
    synthetic: bool
    """Whether the images are the phantom's."""
    policy: PolicyConfig
    is_hospital: bool = False
    hospital: HospitalData | None = None
    """Of a hospital: its images with those who withdrew, and whose they are."""

    @property
    def patients(self) -> Mapping[str, str]:
        """Image to the id of its patient or lesion; an image that is not in it is one by itself."""
        return {} if self.hospital is None else self.hospital.patients

    def patient_of(self, item: str) -> str:
        """Return the id of an image's patient or lesion, as far as the data has one; else the image stands alone."""
        return self.patients.get(item, item)

    def count_patients(self, part: str) -> int:
        """Return how many patients ``train``, ``validation`` or ``test`` has now."""
        images: ImagePart = getattr(self.data, part)
        return len(set(map(self.patient_of, images.items)))

    def round_down(self, number: int) -> int:
        """Return a number of images as it may be told: a multiple of this site's threshold k."""
        return round_down(number, self.policy.suppression.k)

    def count_told(self, part: str) -> int:
        """Return a part's number of images as it may be told: 0 of fewer than k patients."""
        is_told = self.count_patients(part) >= self.policy.suppression.k
        return self.round_down(len(getattr(self.data, part))) if is_told else 0

    def digest_part(self, part: str) -> str:
        """Return a hash of which images ``train``, ``validation`` or ``test`` has now; it never leaves."""
        images: ImagePart = getattr(self.data, part)
        return hashlib.sha256(json.dumps(sorted(images.items)).encode()).hexdigest()

    def files_of(self, plan: Plan) -> RunFiles:
        """Return what the site keeps of a plan's run.

        Raises
        ------
        WireError
            If a hospital is not told which run it is.
        """
        if not self.is_hospital:
            return RunFiles(self.folder)
        if not plan.run_id:
            raise WireError("The server's plan has no run_id, without which a site cannot tell its runs apart.")
        return RunFiles(self.folder / plan.run_id)

    def disclosure_of(self, part: str) -> Disclosure:
        """Return what of an evaluation of ``validation`` or ``test`` may leave."""
        return choose_disclosure(self.policy, part)

    def count_part(self, part: str, fairness: FairnessConfig) -> CountedPart:
        """Return which images of ``train``, ``validation`` or ``test`` are counted in what leaves this site.

        Raises
        ------
        FedmedError
            See :func:`client.hospital.told_rows.count_part`.
        """
        images: ImagePart = getattr(self.data, part)
        for name in images.attributes:
            if fairness.attributes is None or name in fairness.attributes:  # an id may look like groups in a small part
                parts = (self.data.train, self.data.validation, self.data.test)
                check_attribute(name, [value for one in parts for value in one.attributes[name]])
        record = (self.folder.parent if self.is_hospital else self.folder) / "told_rows" / f"{part}.json"
        patients = self.patients if self.is_hospital else list_patients(self.data)
        return count_part(images, self.name, fairness, self.disclosure_of(part), record, patients)

    def hold_rows(
        self, part: str, counted: CountedPart, logits: Mapping[str, torch.Tensor], alerts: Mask | None = None
    ) -> CountedPart:
        """Return what is counted without the rows that would give hidden ones away, see :mod:`.held_rows`."""
        record = (self.folder.parent if self.is_hospital else self.folder) / "told_rows" / f"{part}.told.json"
        return hold_part(counted, getattr(self.data, part), logits, self.disclosure_of(part), record, alerts)


class Hospital:
    """A hospital's settings and, once they are asked for, its images.

    Parameters
    ----------
    config : ClientConfig
        With absolute paths, as :func:`fedmed.config.client.load_client_config` gives it.
    """

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.state_dir = private_folder(Path(config.state_dir))
        set_teacher_file(config.teacher_file)
        self.data: HospitalData | None = None
        self._device: torch.device | None = None

    def open_site(self) -> Site:
        """Return the site as it is now: without the images of patients who have withdrawn.

        Raises
        ------
        FedmedError
            If its files or its device cannot be used.
        """
        config = self.config
        if self._device is None:
            self._device = _claim_device(config)
        if self.data is None:
            self.data = load_hospital_data(config)
        return Site(
            name=config.name,
            data=self.data.current(),
            folder=self.state_dir / "runs",
            device=self._device,
            share_class_counts=config.share_class_counts,
            synthetic=config.data.source == "phantom",
            policy=config.policy,
            is_hospital=True,
            hospital=self.data,
        )


_sites: dict[tuple[str, str], Site] = {}
_hospitals: dict[str, Hospital] = {}


def find_hospital(node_config: NodeConfig) -> Hospital | None:
    """Return the hospital that this process answers for, or None in a simulation.

    Raises
    ------
    FedmedError
        If its ``client.yaml`` cannot be used.
    """
    if CLIENT_CONFIG not in node_config:
        return None
    path = str(node_config[CLIENT_CONFIG])
    if path not in _hospitals:
        _hospitals[path] = Hospital(load_client_config(Path(path)))
    return _hospitals[path]


def open_site(node_config: NodeConfig) -> Site:
    """Return the site that this process answers for, loading its images at the first call.

    Parameters
    ----------
    node_config : mapping
        ``client-config``, the path of a hospital's ``client.yaml``. Or ``run-dir`` and ``site`` of a simulation, with
        ``cache-mib`` for its decoded images.

    Raises
    ------
    FedmedError
        If the site's files cannot be used.
    """
    hospital = find_hospital(node_config)
    if hospital is not None:
        return hospital.open_site()
    try:
        key = (str(node_config["run-dir"]), str(node_config["site"]))
    except KeyError as error:
        raise FedmedError(f"This process was started without the setting {error}; start it with its command.") from None
    if key not in _sites:
        _sites[key] = _load_simulated_site(Path(key[0]), key[1], float(node_config["cache-mib"]))
    return _sites[key]


def _load_simulated_site(run_dir: Path, name: str, cache_mib: float) -> Site:
    run = RunFolder.open(run_dir)
    config = run.read_config()
    use_teacher_file(config)
    data = load_site(config.data, config.sites, config.seed, run.splits, name, cache_mib)
    folder = run.sites / name
    folder.mkdir(exist_ok=True)
    return Site(
        name=name,
        data=data,
        folder=folder,
        device=select_device(config.device),
        share_class_counts=True,  # in a simulation one person holds all images
        synthetic=config.data.source == "phantom",
        policy=PolicyConfig(
            suppression=config.suppression, validation_tables=True, validation_scores=True, show_alone=True
        ),
    )


def _claim_device(config: ClientConfig) -> torch.device:
    device = select_device(config.device)
    if device.type == "cuda" and config.policy.gpu_share < 1:
        torch.cuda.set_per_process_memory_fraction(config.policy.gpu_share)
    return device


def choose_disclosure(policy: PolicyConfig, part: str | None) -> Disclosure:
    """Return what of an evaluation of ``validation`` or ``test`` may leave."""
    limits = policy.suppression
    return Disclosure(
        limits.k,
        limits.k_row,
        scores=part == "test" or policy.validation_scores,
        k_bin=limits.k_bin,
        group_histograms=policy.group_histograms,
    )
