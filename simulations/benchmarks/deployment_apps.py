"""What the sites of the deployment benchmark run: a network of any size, and a ClientApp that does all but train.

Requests are checked and written down as in a hospital; only the training and the scoring are left out.
"""

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from client.guard.guard import guard_messages
from client.guard.requests import ModelMemory, Request, read_request
from client.hospital.site_data import Site, open_site
from client.site import describe
from fedmed.fairness.disclosure.tables import disclose_tables
from fedmed.metrics.site_tables import FEDERATED
from fedmed.models import MODELS
from fedmed.protocol.messages import REPORT, make_content
from fedmed.protocol.reports import DistilReport, MissingModel, ScoreReport
from fedmed.seeding import make_rng
from fedmed.training.network import hash_model

VALUES_PER_MB = 250_000
_HEAD_BYTES = 8  # of a safetensors file: the length of the header that follows

client_app = ClientApp(mods=[guard_messages])
client_app.query()(describe)

_memory = ModelMemory()


class Ballast(nn.Module):
    """Parameters that do nothing, a tensor for every megabyte.

    Parameters
    ----------
    megabytes : int
        Size in float32, 1 MB being 10^6 bytes.
    """

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        tensors = (nn.Parameter(torch.randn(VALUES_PER_MB)) for _ in range(megabytes))
        self.weights = nn.ParameterList(tensors)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return made-up logits that depend on the image, as a model has to that is released."""
        return images.flatten(1).mean(dim=1, keepdim=True) * torch.tensor([1.0, -1.0, 0.5])


@MODELS.register("benchmark_ballast")
def build_ballast(num_classes: int, *, megabytes: int = 2) -> nn.Module:
    """Return a network of a given size."""
    return Ballast(megabytes)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the model that came, changed here and there so that no part of it is known to the server yet."""
    site, request = open_site(context.node_config), read_request(message)
    packed = _memory.take(message, request)
    if packed is None:
        return _ask_for_model(message)
    told = DistilReport(num_images=len(site.data.train), loss=1.0, learning_rate=0.0, train_s=0.0)
    content = make_content(REPORT, told.to_values(), model=change_model(packed, site, request))
    return Message(content, reply_to=message)


@client_app.evaluate()
def score(message: Message, context: Context) -> Message:
    """Answer with the tables of a network that always says the same."""
    site, request = open_site(context.node_config), read_request(message)
    packed = _memory.take(message, request)
    if packed is None:
        return _ask_for_model(message)
    name = "test" if request.part == "test" else "validation"
    part, counted = getattr(site.data, name), site.count_part(name, request.plan.fairness)
    logits = {FEDERATED: torch.zeros(len(part), len(request.plan.classes))}
    tables = disclose_tables(logits, part.labels, counted.groups, counted.plan, site.disclosure_of(name), part.patients)
    told = ScoreReport(model_sha256=hash_model(packed))
    return Message(make_content(REPORT, told.to_values(), tables=tables), reply_to=message)


def change_model(packed: bytes, site: Site, request: Request) -> bytes:
    """Return a packed model in which one value of every tensor is another.

    Parts that the server holds already would not be sent.
    """
    begin = _HEAD_BYTES + int.from_bytes(packed[:_HEAD_BYTES], "little")
    values = np.frombuffer(packed, dtype="<f4", offset=begin).copy()
    marked = values[:: VALUES_PER_MB // 2]
    marked += make_rng(request.plan.seed, site.name, request.round, "benchmark").normal(size=len(marked))
    return b"".join([packed[:begin], values.data.cast("B")])


def _ask_for_model(message: Message) -> Message:
    return Message(make_content(REPORT, MissingModel(missing_model=True).to_values()), reply_to=message)
