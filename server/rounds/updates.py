"""The updates of one round: received, written to disk, checked, and accounted for site by site."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from flwr.app import Message

from fedmed.aggregation import (
    check_num_images,
    check_update,
    compare_norms,
    find_implausible_buffers,
    site_weights,
)
from fedmed.config import Compression, TrainingConfig
from fedmed.data import FEWEST_IN_BATCH, count_batches
from fedmed.errors import FedmedError, WireError
from fedmed.protocol.messages import REPORT, read_model, read_report, read_values
from fedmed.protocol.quantisation import CompressionError, decompress_update
from fedmed.protocol.reports import Declined, GroupLosses, TrainReport
from fedmed.storage.atomic_files import explain_write_failure
from fedmed.storage.history import Participation
from fedmed.storage.tensor_files import TensorFile
from fedmed.training.batch_norm_policy import NormBuffers
from server.rounds.exchange import MALFORMATIONS, Answer, explain_malformation
from server.rounds.fopro_record import check_prompt


@dataclass
class Update:
    """One site's part in a round; ``status`` says whether it counts."""

    site: str
    status: str
    reason: str | None = None
    limit: str | None = None
    """What was cut of its part, as a sentence."""
    images: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    train_s: float | None = None
    update_mib: float | None = None
    update_bytes: int | None = None
    update_norm: float | None = None
    start_loss: float | None = None
    """Mean loss of the global model on the site's training images, where the aggregation asks for it."""
    group_losses: GroupLosses | None = None
    """Likewise by patient group: number of images and sum of losses."""
    divergence: float | None = None
    """Of the site's features from the teacher's, where the aggregation asks for it."""
    ekd: float | None = None
    """Mean distance of features from the teacher's, where the plan has one."""
    prompt_bands: list[float | None] | None = None
    """Gain of the site's prompt by band of frequencies."""

    def to_record(self, share: float | None) -> Participation:
        """Return the site's line of the participation table."""
        return Participation(
            site=self.site,
            status=self.status,
            reason=self.reason,
            images=self.images,
            share=share,
            limit=self.limit,
            train_s=self.train_s,
            update_mib=self.update_mib,
            update_bytes=self.update_bytes,
            update_norm=self.update_norm,
        )


@dataclass
class UpdateCollector:
    """Takes the answers of one round's training.

    Parameters
    ----------
    folder : Path
        Where updates are written, one file a site; must be empty.
    reference : TensorFile
        The global model that was sent.
    declared : mapping of str to int
        Training images that each site stated when it joined.
    parameters : frozenset of str
        Names of the model's parameters, whose change is compared between sites.
    compression : {"none", "fp16", "int8"}
        Form in which updates must come.
    """

    folder: Path
    reference: TensorFile
    declared: Mapping[str, int]
    parameters: frozenset[str]
    compression: Compression = "none"
    norms: Sequence[NormBuffers] = ()
    """The model's BatchNorms."""
    stated: Mapping[str, int] = field(default_factory=dict)
    """Training images by a site's newest word, where that is more than what it declared when it joined: then it counts
    with those."""
    updates: dict[str, Update] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Sites whose number of images is not the one that they declared."""

    def take(self, answer: Answer) -> Update:
        """Write and check one answer."""
        if answer.message is None:
            update = Update(answer.site, "error", answer.reason)
        else:
            try:
                update = self._read(answer.site, answer.message)
            except (WireError, CompressionError) as error:
                update = Update(answer.site, "quarantined", str(error))
            except FedmedError:  # a full disk, for example: not the site's
                raise
            except MALFORMATIONS as error:
                update = Update(answer.site, "quarantined", explain_malformation(error))
        self.updates[answer.site] = update
        return update

    def mark(self, sites: list[str], status: str, reason: str) -> None:
        """Note that sites have no update in this round."""
        for site in sites:
            self.updates[site] = Update(site, status, reason)

    def compare(self, recent_norms: list[float], max_ratio: float) -> None:
        """Quarantine updates whose norm, or whose BatchNorm statistics, are far from the others'."""
        norms = {site: u.update_norm for site, u in self.updates.items() if u.status == "accepted"}
        known = {site: norm for site, norm in norms.items() if norm is not None}
        for site, reason in compare_norms(known, recent_norms, max_ratio).items():
            self.quarantine(site, reason)
        files = {update.site: TensorFile(self.file_of(update.site)) for update in self.accepted()}
        for site, reason in find_implausible_buffers(files, self.reference, self.norms, self.parameters).items():
            self.quarantine(site, reason)

    def only(self, sites: Collection[str]) -> "UpdateCollector":
        """Return the same with the updates of some sites alone."""
        return replace(self, updates={site: update for site, update in self.updates.items() if site in sites})

    def quarantine(self, site: str, reason: str) -> None:
        """Leave an update out of the round."""
        self.updates[site].status, self.updates[site].reason = "quarantined", reason

    def accepted(self) -> list[Update]:
        """Return the updates that count, in the order of the sites' names."""
        return [self.updates[site] for site in sorted(self.updates) if self.updates[site].status == "accepted"]

    def site_weights(self, weighting: Literal["images", "equal"]) -> dict[str, float]:
        """Return the weights of the accepted updates without any rule for fairness, in the order of the names."""
        return site_weights(weighting, {u.site: u.images for u in self.accepted() if u.images is not None})

    def lengths(self) -> dict[str, float]:
        """Return the norms of the accepted updates."""
        return {u.site: u.update_norm for u in self.accepted() if u.update_norm is not None}

    def most_batches(self, training: TrainingConfig) -> int:
        """Return how many batches the site with most has had in the round; few images leave BatchNorm alone."""
        images = [u.images for u in self.accepted() if u.images is not None and u.images >= FEWEST_IN_BATCH]
        batches = (count_batches(number, training.batch_size) for number in images)
        return training.epochs_per_round * max(batches, default=0)

    def file_of(self, site: str) -> Path:
        """Return the tensor file of a site's update."""
        return self.folder / f"{site}.safetensors"

    def mean_loss(self) -> float | None:
        """Return the mean training loss of the accepted updates, weighted by images."""
        parts = [(u.images, u.loss) for u in self.accepted() if u.images is not None and u.loss is not None]
        total = sum(images for images, _ in parts)
        return sum(images * loss for images, loss in parts) / total if total else None

    def to_records(self) -> list[Participation]:
        """Return the participation table, one line a site, in the order of their names."""
        total = sum(update.images or 0 for update in self.accepted())
        lines = []
        for site in sorted(self.updates):
            update = self.updates[site]
            share = (update.images or 0) / total if update.status == "accepted" and total else None
            lines.append(update.to_record(share))
        return lines

    def _read(self, site: str, message: Message) -> Update:
        if Declined.fits(read_values(message, REPORT)):
            return Update(
                site,
                "declined",
                "it has fewer training images than its policy.min_images now, or fewer patients than its k; it only "
                "scores models",
            )
        told, packed = read_report(message, TrainReport), read_model(message)
        update = Update(site, "accepted", update_mib=len(packed) / 2**20, update_bytes=len(packed))
        stated = self.stated.get(site, self.declared[site])
        reason = check_num_images(told.num_images, stated)
        if told.num_images != stated:
            self.changed.add(site)
        if reason is None:
            update.images = min(told.num_images, self.declared[site])
            update.loss, update.train_s = told.loss, told.train_s
            update.learning_rate, update.ekd, update.prompt_bands = told.learning_rate, told.ekd, told.prompt_bands
            update.start_loss, update.group_losses = told.start_loss, told.group_losses
            update.divergence = told.mas_weight
            self._write(site, packed)
            check = check_update(self.file_of(site), self.reference, measured=self.parameters)
            update.update_norm, reason = check.norm, check.reason or check_prompt(TensorFile(self.file_of(site)))
        if reason is not None:
            update.status, update.reason = "quarantined", reason
        return update

    def _write(self, site: str, packed: bytes) -> None:
        """Write an update without flushing it: a round that is cut short is trained again."""
        path = self.file_of(site)
        arrived = path if self.compression == "none" else path.with_suffix(".packed")
        try:
            arrived.write_bytes(packed)
        except OSError as error:
            raise explain_write_failure(arrived, error) from error
        if arrived != path:
            decompress_update(arrived, self.reference, path)
            arrived.unlink()
