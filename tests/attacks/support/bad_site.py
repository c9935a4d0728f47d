"""One site among honest ones, which sends whatever it likes: an update, or an answer with tables."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from fedmed.aggregation import average_updates, bound_weights, replace_counters
from fedmed.config import DeployedAggregationConfig, Plan, TrainingConfig
from fedmed.fairness.disclosure.tables import tell_everything
from fedmed.metrics.site_tables import SITE_ATTRIBUTE, SiteTables
from fedmed.protocol.messages import REPORT, make_content
from fedmed.protocol.requests import Request
from fedmed.protocol.tensors import pack_tensors
from fedmed.storage.history import Validation
from fedmed.storage.tensor_files import TensorFile
from fedmed.training.batch_norm_policy import find_norm_buffers
from server.rounds.courier import Courier
from server.rounds.exchange import Answer, Unanswered
from server.rounds.scoring import Scores, collect_tables
from server.rounds.updates import UpdateCollector
from server.rounds.validation import summarise
from server.rounds.weights import to_weighted
from tests.support.federation import Notes

State = dict[str, Tensor]
HONEST = ("h0", "h1", "h2")
BAD = "x"
NUM_CLASSES = 5
MODEL_SHA256 = "0" * 64
ASKED: dict[str, Any] = {
    "seed": 0,
    "rounds": 4,
    "classes": [f"class_{k}" for k in range(NUM_CLASSES)],
    "image_size": 16,
    "augmentation": "none",
    "model": {"name": "tiny"},
    "loss": {"ce": 1.0},
    "training": {},
    "batch_norm": "average",
}


def make_answer(site: str, content: RecordDict) -> Answer:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return Answer(site, Message(content, dst_node_id=1, message_type="train"), None, 0.0)


def make_model() -> nn.Sequential:
    """A network of three BatchNorms that has seen images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 6), (6, 6), (6, 6)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, NUM_CLASSES))
    for _ in range(30):
        model(torch.randn(8, 3, 12, 12))
    return model


@dataclass
class Round:
    """A round of three honest sites and a bad one, at the server's own functions."""

    folder: Path
    config: DeployedAggregationConfig = field(default_factory=DeployedAggregationConfig)
    num_honest: int = 3
    images: int = 300
    declared_by_bad: int = 300

    def __post_init__(self) -> None:
        self.model = make_model()
        self.before: State = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.parameters = frozenset(name for name, _ in self.model.named_parameters())
        self.norms = find_norm_buffers(self.model, self.before)
        (self.folder / "model.safetensors").write_bytes(pack_tensors(self.before))
        self.reference = TensorFile(self.folder / "model.safetensors")
        (self.folder / "updates").mkdir()
        self.honest = [f"h{index}" for index in range(self.num_honest)]
        declared = dict.fromkeys(self.honest, self.images) | {BAD: self.declared_by_bad}
        self.collector = UpdateCollector(
            self.folder / "updates", self.reference, declared, self.parameters, norms=self.norms
        )
        generator = torch.Generator().manual_seed(1)
        self.direction = {name: torch.randn(self.before[name].shape, generator=generator) for name in self.parameters}
        self.generator = generator
        self.updates = {site: self.make_honest() for site in self.honest}
        for site, update in self.updates.items():
            self.send(site, pack_tensors(update))

    def make_honest(self) -> State:
        """An update that has gone a step in the common direction and a smaller one of its own."""
        moved = {name: value.clone() for name, value in self.before.items()}
        for name in sorted(self.parameters):
            own = torch.randn(self.before[name].shape, generator=self.generator)
            moved[name] = self.before[name] + 0.01 * self.direction[name] + 0.005 * own
        for norm in self.norms:
            assert norm.counter is not None
            moved[norm.counter] = self.before[norm.counter] + 10
            spread = 1 + 0.2 * torch.rand(self.before[norm.variance].shape, generator=self.generator)
            moved[norm.variance] = self.before[norm.variance] * spread
        return moved

    def send(self, site: str, packed: bytes, **values: Any) -> None:
        told: dict[str, Any] = {"num_images": self.images, "loss": 1.0, "learning_rate": 0.1, "train_s": 1.0}
        self.collector.take(make_answer(site, make_content(REPORT, told | values, model=packed)))

    def close(self) -> "Closed":
        """Compare, weigh and average, as the round loop does."""
        self.collector.compare([], self.config.max_norm_ratio)
        weights = self.collector.site_weights("images")
        total = sum(weights.values())
        shares = {site: weight / total for site, weight in weights.items()}
        bounded = bound_weights(self.config, shares, self.collector.lengths(), [])
        updates = to_weighted(self.collector, bounded.weights, self.reference.path)
        batches = self.collector.most_batches(TrainingConfig())
        averaged = replace_counters(average_updates(updates), self.reference, self.norms, batches)
        after = {name: torch.from_numpy(np.array(values)) for name, values in averaged}
        return Closed(self, after, bounded.weights, bounded.describe())

    def spread(self, state: State) -> float:
        """Return how much the logits of a model differ between images."""
        self.model.load_state_dict(state)
        with torch.no_grad():
            logits = self.model.eval()(torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(2)))
        return float(logits.std(dim=0).mean())


@dataclass
class Closed:
    """What came out of a round."""

    round: Round
    after: State
    weights: dict[str, float]
    limits: dict[str, str]

    def status(self, site: str = BAD) -> str:
        return self.round.collector.updates[site].status

    def reason(self, site: str = BAD) -> str:
        return self.round.collector.updates[site].reason or ""

    def check_unharmed(self, *, least_progress: float = 0.0) -> None:
        """The honest sites are all in, and the model is as good as one of theirs."""
        assert [self.status(site) for site in self.round.honest] == ["accepted"] * self.round.num_honest
        assert all(bool(torch.isfinite(value).all()) for value in self.after.values())
        assert self.round.spread(self.after) > 0.5 * self.round.spread(self.round.updates["h0"])
        assert self.progress() > least_progress

    def progress(self) -> float:
        """Return how far the model went where the honest sites went; 1 is as far as they."""
        moved, wanted = 0.0, 0.0
        for name in self.round.parameters:
            honest = sum(update[name] - self.round.before[name] for update in self.round.updates.values())
            mean = honest / self.round.num_honest
            moved += float(((self.after[name] - self.round.before[name]) * mean).sum())
            wanted += float((mean * mean).sum())
        return moved / wanted


def draw_answers(site: str, seed: int, num_images: int = 200, attributes: int = 4) -> SiteTables:
    """Honest tables of the federated model, by site, sex, age and both, or by the first of these."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, num_images))
    logits = torch.from_numpy(rng.normal(size=(num_images, NUM_CLASSES)))
    sex, age = rng.choice(["f", "m"], num_images).tolist(), rng.choice(["old", "young"], num_images).tolist()
    crossed = [f"{one}, {other}" for one, other in zip(sex, age, strict=True)]
    groups = {SITE_ATTRIBUTE: [site] * num_images, "sex": sex, "age": age, "sex x age": crossed}
    return tell_everything({"federated": logits}, labels, dict(list(groups.items())[:attributes]))


def close_evaluation(
    contents: Mapping[str, RecordDict], most_images: int = 1000, notes: Notes | None = None, **fairness: Any
) -> tuple[Scores, Validation]:
    """Collect answers and compute a round's figures from them, as the round loop does."""
    scores = collect(contents, most_images, notes, **fairness)
    return scores, summarise(scores.tables)


def collect(
    contents: Mapping[str, RecordDict], most_images: int = 1000, notes: Notes | None = None, **fairness: Any
) -> Scores:
    """Collect answers as the round loop does."""

    def ask(*_: Any, on_answer: Callable[[Answer], None], **__: Any) -> Unanswered:
        for site, content in contents.items():
            on_answer(make_answer(site, content))
        return Unanswered([], [])

    plan = Plan.model_validate(ASKED | ({"fairness": fairness} if fairness else {}))
    return collect_tables(
        cast(Courier, SimpleNamespace(ask=ask)),
        Request(plan=plan, round=1, part="validation"),
        Path("model"),
        MODEL_SHA256,
        list(contents),
        num_images=dict.fromkeys(contents, most_images),
        num_classes=NUM_CLASSES,
        deadline_s=1.0,
        listener=notes or Notes(),
    )
