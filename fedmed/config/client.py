"""Settings of a hospital: ``client.yaml``."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedmed.config import DataConfig, ExtensionData, Section, SuppressionConfig
from fedmed.config.addresses import check_loopback, split_address
from fedmed.config.files import read_yaml, resolve_path, resolve_paths, validate_settings
from fedmed.config.keep import SiteKeepConfig
from fedmed.config.server import SiteName
from fedmed.errors import ConfigError, FormatError
from fedmed.extensions import AllowedExtension
from fedmed.formats import KIT

_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


class PolicyConfig(Section):
    """What a site allows; a request beyond it is refused, logged and shown to both sides."""

    study: str | None = None
    """Only this study id; null: any."""
    approval: str | None = None
    """Only this approval number; null: any."""
    approved_plan: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of the only plan that is answered, which is thereby approved; null: see ``flower-client --approve``."""
    models: list[str] | None = None
    """Only these models; null: any that is installed here."""
    max_rounds: Annotated[int, Field(ge=1)] = 1000
    """Most rounds of a run."""
    max_epochs_per_round: Annotated[int, Field(ge=1)] = 20
    """Most epochs in one round."""
    max_batch: Annotated[int, Field(ge=2)] = 256
    """Largest batch; it is never more than half of the training images' patients, either. A plan's larger one is made
    smaller."""
    max_learning_rate: Annotated[float, Field(gt=0)] = 10.0
    """Highest learning rate."""
    min_images: Annotated[int, Field(ge=2)] = 50
    """Fewest training images with which this site trains; with fewer, or with images of fewer than ``suppression.k``
    patients, it only scores models and receives the last."""
    attributes: list[str] | None = None
    """Only these patient attributes are told apart; null: all that the data has."""
    crossings: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None
    """Only these pairs of attributes are crossed, for example ``[[sex, age_group]]``; null: any."""
    allow_download: bool = False
    """Whether a plan may make this site download a teacher's weights from the internet
    (``fopro.teacher.source: torchvision``). Packaged teachers and ``teacher_file`` need no download."""
    test_tables: bool = True
    """Whether tables of the test images may leave."""
    validation_tables: bool = False
    """Whether tables of the validation images may leave after every round; without them two figures do
    (``choice: figure`` in ``server.yaml``)."""
    validation_scores: bool = False
    """Whether the AUC may leave for the validation images as well; with thresholds of 1 also histograms of scores."""
    suppression: SuppressionConfig = SuppressionConfig()
    """Thresholds for everything that is counted."""
    group_histograms: bool = False
    """Whether calibration, Brier score and AUC of groups of patients may leave, and not only those of the whole site.
    Where thresholds are 1, as in a simulation, they do in any case."""
    benefit: bool = True
    """Whether this site trains a model on its own images alone, which stays here, and tells how the federation's
    model compares with it."""
    show_alone: bool = False
    """Whether a patient group may be shown to the other sites where only this site has images of it."""
    hours: list[str] | None = None
    """Local times at which the site may train, for example ``["20:00-06:00"]``; null: always."""
    max_disk_gib: Annotated[float, Field(gt=0)] = 20.0
    """Most space that the state folder may take."""
    gpu_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the GPU's memory that may be used."""
    max_message_mib: Annotated[int, Field(ge=1)] = 2048
    """Largest message that is accepted."""
    extensions: list[AllowedExtension] = Field(default=[])
    """Code from outside fedmed that a plan may use: import paths, or mappings of ``path`` with ``version`` or
    ``sha256``. It runs with the rights of this site, images included. Empty: none."""

    @field_validator("extensions", mode="before")
    @classmethod
    def _read_plain_paths(cls, entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]

    @field_validator("hours")
    @classmethod
    def _check_hours(cls, hours: list[str] | None) -> list[str] | None:
        for span in hours or []:
            if not _HOURS.fullmatch(span):
                raise ValueError(f'{span!r} is no span of times; write for example "20:00-06:00"')
        return hours


class ClientConfig(Section):
    """All settings of ``client.yaml``."""

    format: int = KIT.number
    """Number of the file's format, as ``--provision`` has written it."""
    name: SiteName
    """Name of this site, as the server knows it."""
    server: str
    """``host:port`` of the server."""
    state_dir: str = "state"
    """Folder for everything that this site keeps; readable by its owner only."""
    ca: str = "ca.pem"
    """Certificate of the authority that signed the server's, or a bundle of them."""
    key: str = "site.key"
    """This site's private key, mode 0600; it never leaves."""
    key_passphrase_file: str | None = None
    """File with the key's passphrase, mode 0600, for a service that starts without a person; null: asked for at the
    terminal, or taken from the environment variable ``FEDMED_KEY_PASSPHRASE``."""
    certificate: str | None = None
    """This site's certificate, ``site.crt`` of the kit, where the server has ``tls: mutual``; null: none."""
    release_key: str = "release.pub"
    """Public key with which released models are signed."""
    proxy: str | None = None
    """``http://host:port`` of an HTTP proxy; with a password: leave null and set ``HTTPS_PROXY``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU if there is one."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """PyTorch threads; null: one per core. The same number everywhere gives the same bits."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which images are for training, validation and test; keep it for the whole study."""
    health: str | None = None
    """``127.0.0.1:port`` of the gRPC health service; null: none."""
    insecure: bool = False
    """No TLS; with a server on the loopback interface only, for tests."""
    share_class_counts: bool = False
    """Whether the server is told how many images of each class there are."""
    data: DataConfig
    data_sites: Annotated[int, Field(ge=1)] | None = None
    """Number of sites in the data, for the phantom and ``partition.kind: dirichlet``."""
    data_site: str | None = None
    """Which site of the data this is, where the data holds several; null: all of it is this site's."""
    exclude: str | None = None
    """File with one patient or lesion id (or image file name) a line, whose images are left out from the next round."""
    teacher_file: str | None = None
    """This site's copy of a teacher's weights, where the federation distils from a teacher with ``source: file``."""
    policy: PolicyConfig = PolicyConfig()
    keep: SiteKeepConfig = SiteKeepConfig()
    """How long this site keeps what."""

    @property
    def own_code(self) -> list[str]:
        """Import paths that these settings name for this site itself: its source of images, if that is one."""
        return [self.data.source] if isinstance(self.data, ExtensionData) else []

    @field_validator("format")
    @classmethod
    def _check_format(cls, number: int) -> int:
        try:
            return KIT.check(number, "this site")
        except FormatError as error:
            raise ValueError(str(error).removesuffix(".")) from None

    @model_validator(mode="after")
    def _check(self) -> "ClientConfig":
        for key in ("server", "health"):
            value = getattr(self, key)
            if value is not None:
                split_address(value, key)
        check_loopback(self.health, "health")
        if self.insecure:
            check_loopback(self.server, "insecure: true allows only server")
            if self.proxy is not None:
                raise ValueError("insecure: true allows no proxy")
        if self.proxy is not None and "@" in self.proxy:
            raise ValueError("proxy must not hold a password; set the environment variable HTTPS_PROXY instead")
        if self.proxy is not None and not self.proxy.startswith(("http://", "https://")):
            raise ValueError("proxy must begin with http:// or https://, for example http://proxy.example.org:3128")
        return self


def load_client_config(path: Path) -> ClientConfig:
    """Read ``client.yaml``; its paths become absolute.

    Raises
    ------
    ConfigError
        With the file, the key, the value found and what is allowed.
    """
    if not path.exists():
        raise ConfigError(
            f"There is no '{path}'. Change to the folder of the kit that the coordinating site made for this hospital, "
            "or name its client.yaml after --config."
        )
    config = validate_settings(ClientConfig, read_yaml(path), str(path))
    base = path.absolute().parent
    resolve_paths(config, str(path), base)
    for key in (
        "state_dir", "ca", "key", "key_passphrase_file", "certificate", "release_key", "exclude", "teacher_file",
    ):  # fmt: skip
        value = getattr(config, key)
        if value is not None:
            setattr(config, key, resolve_path(value, f"{path}: {key}", base))
    return config
