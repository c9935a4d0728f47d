"""Settings of a federation: typed, closed, and explained field by field.

``RunConfig`` is what ``server.yaml`` and ``simulation.yaml`` hold. ``Plan`` is the part of it that the server sends
to the sites. Reading files, ``--set`` and friendly errors are in :mod:`fedmed.config_files`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Compression = Literal["none", "fp16", "int8"]
"""How a site's update is shortened on its way to the server."""

LOCAL_MODEL_OPTIONS = ("pretrained_backbone",)
"""Options that name files of the coordinating site; they shape the initial model and never travel."""


class Section(BaseModel):
    """A closed part of the settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class ModelConfig(BaseModel):
    """The network. Further keys are options of that network, checked by its builder."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str = "adsr_resnet18"
    """A name of ``fedmed.models.list_models()``."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the network's builder."""
        return dict(self.__pydantic_extra__ or {})

    def without(self, names: tuple[str, ...]) -> "ModelConfig":
        """Return a copy that lacks some options."""
        return ModelConfig(name=self.name, **{key: value for key, value in self.options.items() if key not in names})


class PartitionConfig(Section):
    """How one collection of images becomes sites."""

    kind: Literal["column", "dirichlet", "pooled"] = "column"
    """``column``: a column of the table names the site. ``dirichlet``: label skew drawn at random. ``pooled``: all
    images at one site (centralised training, the upper reference)."""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Concentration of ``dirichlet``: small is skewed, large is even."""
    min_images: Annotated[int, Field(ge=1)] = 10
    """Fewest images of a site under ``dirichlet``; the draw is repeated until every site has them."""


class SplitConfig(Section):
    """Shares of the three parts at every site."""

    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of images that choose the best round."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of images that are scored once, at the end."""

    @model_validator(mode="after")
    def _leave_room(self) -> "SplitConfig":
        if self.validation + self.test > 0.9:
            raise ValueError("validation + test must leave at least 0.1 of the images for training")
        return self


class DataSection(Section):
    """What all sources of images share."""

    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Side in pixels of the square images that the network sees."""
    augmentation: Literal["adsr", "aptos", "hifuse", "flips", "none"] = "flips"
    """Training recipe; ``fedmed/data/transforms.py`` describes each."""
    split: SplitConfig = SplitConfig()
    """Shares of train, validation and test."""
    partition: PartitionConfig = PartitionConfig()
    """How images become sites."""
    cache_mib: Annotated[int, Field(ge=0)] = 2048
    """Decoded images kept in memory, in MiB for all sites together; what does not fit is decoded anew in every
    epoch."""
    max_bad_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of unreadable or mislabelled rows above which the run is refused."""


class PhantomData(DataSection):
    """Synthetic lesion-like images, generated on the fly. Not medical data."""

    source: Literal["phantom"] = "phantom"
    num_classes: Annotated[int, Field(ge=2, le=8)] = 5
    """Number of classes K."""
    images_per_site: Annotated[int, Field(ge=20)] = 400
    """Images of one site, all three parts together."""
    imbalance: Annotated[float, Field(ge=1)] = 6.0
    """Expected count of the most frequent class over that of the rarest."""
    scanner_strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    """How much colour, blur, noise and contrast differ between sites; 0 is one scanner for all."""
    attribute_strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    """How much sex and age band influence appearance and prevalence; 0 is not at all."""


class ImageTableData(DataSection):
    """A folder with images and a CSV that names them."""

    source: Literal["image_table"]
    root: str
    """Folder of the images; may hold ``${VARIABLE}`` or ``${VARIABLE:-default}``."""
    table: str = "labels.csv"
    """The CSV, relative to ``root``."""
    file_column: str = "file"
    """Column with the image's path relative to ``root``."""
    label_column: str = "label"
    """Column with the class name."""
    site_column: str | None = None
    """Column with the site's name, for ``partition.kind: column``."""
    group_column: str | None = None
    """Column with the patient or lesion id; images of one id stay in one part of a split."""
    attribute_columns: list[str] = []
    """Columns with patient attributes, for example ``[sex, age_group]``."""
    classes: list[str] | None = None
    """Class names in order; default: the sorted values of ``label_column``. A label that is not listed is an error."""


class ClassFolderData(DataSection):
    """One folder per class, images inside."""

    source: Literal["class_folders"]
    root: str
    """Folder that holds the class folders."""
    classes: list[str] | None = None
    """Class names in order; default: the sorted folder names."""


class NpzData(DataSection):
    """Images in one ``.npz`` file."""

    source: Literal["npz"]
    file: str
    """The file; may hold ``${VARIABLE}``."""
    images_key: str = "images"
    """uint8, N x H x W, N x H x W x 1 or N x H x W x 3."""
    labels_key: str = "labels"
    """Integers, N."""
    class_names_key: str | None = "class_names"
    """Class names, K; null where the file has none."""


DataConfig = Annotated[PhantomData | ImageTableData | ClassFolderData | NpzData, Field(discriminator="source")]


class SitesData(Section):
    """Images that stay at hospitals: the coordinating site has none and only says how the network sees them."""

    source: Literal["sites"] = "sites"
    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Side in pixels of the square images that the network sees."""
    augmentation: Literal["adsr", "aptos", "hifuse", "flips", "none"] = "flips"
    """Training recipe; ``fedmed/data/transforms.py`` describes each."""
    expected_mean: tuple[float, float] | None = None
    """Range in which a site's mean pixel value, 0 to 1, is expected; ``flower-client --check`` compares."""
    expected_std: tuple[float, float] | None = None
    """Range in which the standard deviation of a site's pixel values is expected."""
    synthetic: bool = False
    """Whether the sites use synthetic images; the report then says so on top."""


class OptimizerConfig(Section):
    """The optimiser at the sites."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.02
    """Base learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    nesterov: bool = False
    """Nesterov momentum for SGD."""


class ScheduleConfig(Section):
    """The learning rate over the whole run, counted in local epochs and not in rounds."""

    name: Literal["constant", "cosine", "step", "official"] = "cosine"
    """``official`` is the non-cumulative schedule of the ADSR authors' later configuration, for comparison."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Linear warm-up before the schedule; not for ``official``."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """``cosine``: share of the base rate that is left at the end."""
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.75]
    """``step``: shares of all epochs after which the rate is multiplied by ``gamma``."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class TrainingConfig(Section):
    """One site's local work in a round."""

    epochs_per_round: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=2)] = 32
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of a batch's gradient; null does not clip."""
    proximal_mu: Annotated[float, Field(ge=0)] = 0.0
    """Strength of the FedProx term mu/2 ||w - w_global||^2; 0 is FedAvg."""
    keep_momentum: bool = False
    """Keep the optimiser's state at the site between rounds."""
    amp: Literal["auto", "off"] = "auto"
    """Automatic mixed precision on a GPU; a CPU always computes in float32."""


class AggregationConfig(Section):
    """How updates become the next global model."""

    weighting: Literal["images", "equal"] = "images"
    """Weight of a site: its number of training images, or the same for all."""
    max_norm_ratio: Annotated[float, Field(gt=1)] = 25.0
    """An update is quarantined when its norm is more than this many times the median of the others'."""


class Plan(Section):
    """What the server tells the sites: everything that defines the common model and its training."""

    seed: int
    rounds: int
    classes: list[str]
    image_size: int
    augmentation: str
    model: ModelConfig
    loss: dict[str, Any]
    training: TrainingConfig
    batch_norm: Literal["average", "local", "recalibrate"]
    compression: Compression = "none"
    study: str = "unnamed"
    """What the federation is for; a site can insist on it."""
    approval: str | None = None
    """Number of the ethics approval."""
    run_id: str = ""
    """Names one run for what its sites keep between rounds; the same after a restart."""


class FederationConfig(Section):
    """What a simulation and a real federation have in common."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)] = "run"
    """Name of the run, part of its folder's name."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    rounds: Annotated[int, Field(ge=1)] = 12
    """Rounds of training and averaging."""
    min_sites: Annotated[int, Field(ge=1)] = 1
    """Fewest accepted updates of a round."""
    round_deadline_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds after which a phase of a round ends without those who have not answered."""
    max_missed_rounds: Annotated[int, Field(ge=1)] = 3
    """Rounds missed in a row after which a site is no longer waited for, until it answers again."""
    classes: list[str] | None = None
    """Class names in order; a simulation takes them from its data."""
    model: ModelConfig = ModelConfig()
    data: DataConfig | SitesData
    loss: dict[str, Any] = {"ce": 1.0, "cws": 1.0}
    """Terms of the loss: a weight, or a mapping with ``weight`` and the term's options."""
    training: TrainingConfig = TrainingConfig()
    aggregation: AggregationConfig = AggregationConfig()
    batch_norm: Literal["average", "local", "recalibrate"] = "average"
    """``average``: BatchNorm is averaged like the rest (its counters are not). ``local``: it stays at the site
    (FedBN)."""
    compression: Compression = "none"
    """What a site sends back: ``none`` is float32; ``fp16`` and ``int8`` send the change in 16 or 8 bits and carry
    the rounding error over to the next round."""
    choose_by: Literal["balanced_accuracy", "accuracy", "macro_f1"] = "balanced_accuracy"
    """Pooled validation figure that chooses the best round."""
    share_class_counts: bool = False
    """Whether a site tells its class counts to the server. A simulation always shows them."""
    release: Literal["automatic", "manual"] = "automatic"
    """``automatic``: the finished and proven model is released. ``manual``: it waits until a person has typed
    ``flower-server --config FILE --release --by NAME``. A simulation knows ``automatic`` only."""

    def make_plan(self) -> Plan:
        """Return the part of the settings that the sites need."""
        assert self.classes is not None, "classes are set when the data is prepared"
        return Plan(
            seed=self.seed,
            rounds=self.rounds,
            classes=self.classes,
            image_size=self.data.image_size,
            augmentation=self.data.augmentation,
            model=self.model.without(LOCAL_MODEL_OPTIONS),
            loss=self.loss,
            training=self.training,
            batch_norm=self.batch_norm,
            compression=self.compression,
        )


class RunConfig(FederationConfig):
    """All settings of a simulation."""

    sites: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Number of sites where the partition makes them; null where a column names them."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Processes that serve the sites; ``auto``: cores / threads. Results do not depend on it."""
    threads: Annotated[int, Field(ge=1)] = 1
    """PyTorch threads of one worker. Results may differ in the last bits between values."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where sites train: ``auto`` takes a GPU if there is one."""
    data: DataConfig = PhantomData()

    @model_validator(mode="after")
    def _check_sites(self) -> "RunConfig":
        if self.sites is None and (isinstance(self.data, PhantomData) or self.data.partition.kind == "dirichlet"):
            raise ValueError("'sites' must be a number, because the partition makes the sites")
        if self.release != "automatic":
            raise ValueError("'release' is 'manual', which is for real federations. Allowed in a simulation: automatic")
        return self
