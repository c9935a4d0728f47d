"""The ClientApp: a site's answers to describe, fit and evaluate.

The same object runs in a simulation's worker and in a hospital's process.
"""

import logging
from importlib import metadata
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from pydantic import ValidationError

from client.local import Site, open_site
from fedmed.config import Plan
from fedmed.data import count_classes
from fedmed.errors import FedmedError
from fedmed.network import Network, get_network, hash_model
from fedmed.training import evaluate, fit
from fedmed.wire import (
    REPORT,
    REQUEST,
    make_content,
    pack_tables,
    read_model,
    read_values,
    unpack_tables,
)

_logger = logging.getLogger("fedmed.client")

app = ClientApp()


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Answer who this site is, how many images it has and which versions it runs."""
    site = open_site(context.node_config)
    plan, _ = _read_request(message, site)
    data = site.data
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    values: dict[str, Any] = {
        "site": site.name,
        "num_images": {name: len(part) for name, part in parts.items()},
        "model_digest": get_network(plan).digest(),
        "versions": {package: metadata.version(package) for package in ("fedmed", "flwr", "torch")},
        "class_counts": None,
    }
    if site.share_class_counts:
        values["class_counts"] = {name: count_classes(part, len(data.classes)) for name, part in parts.items()}
    return Message(make_content(REPORT, values), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model on this site's images and answer with the update."""
    site = open_site(context.node_config)
    plan, request = _read_request(message, site)
    round_number = int(request["round"])
    network, kept = _fill_network(message, plan, site, before_round=round_number)
    momentum = {name.removeprefix("momentum/"): t for name, t in kept.items() if name.startswith("momentum/")}
    result = fit(
        network.model,
        site.data.train,
        plan,
        site=site.name,
        round_number=round_number,
        device=site.device,
        optimizer_state=momentum if plan.training.keep_momentum else None,
    )
    state = network.local_state() | {f"momentum/{name}": t for name, t in result.optimizer_state.items()}
    if state:
        site.state.save(round_number, state, {}, keep=request.get("best_round"))
    values = {
        "num_images": result.num_images,
        "loss": result.loss,
        "learning_rate": result.learning_rate,
        "train_s": result.train_s,
    }
    return Message(make_content(REPORT, values, model=network.pack()), reply_to=message)


@app.evaluate()
def score(message: Message, context: Context) -> Message:
    """Score a global model on this site's validation or test images and answer with tables.

    Test tables are computed once for a model and stored; asked again, the stored answer is given.
    """
    site = open_site(context.node_config)
    plan, request = _read_request(message, site)
    is_test = request["part"] == "test"
    model_sha256 = hash_model(read_model(message))
    stored = site.read_test_tables(model_sha256) if is_test else None
    if stored is None:
        network, _ = _fill_network(message, plan, site, before_round=int(request["round"]) + 1)
        part = site.data.test if is_test else site.data.validation
        tables = evaluate(network.model, part, plan, group=site.name, device=site.device)
        if is_test:
            site.store_test_tables(model_sha256, pack_tables(tables))
    else:
        tables = unpack_tables(stored)
    return Message(make_content(REPORT, {"model_sha256": model_sha256}, tables=tables), reply_to=message)


def _read_request(message: Message, site: Site) -> tuple[Plan, dict[str, Any]]:
    request = read_values(message, REQUEST)
    try:
        plan = Plan.model_validate(request.pop("plan"))
    except (KeyError, ValidationError):
        raise FedmedError(
            "The server's plan cannot be read here. Server and site must run the same version of fedmed."
        ) from None
    if tuple(plan.classes) != site.data.classes:
        raise FedmedError(
            f"The server's classes are {plan.classes}, this site's are {list(site.data.classes)}. "
            "They must be the same, in the same order."
        )
    return plan, request


def _fill_network(
    message: Message, plan: Plan, site: Site, *, before_round: int
) -> tuple[Network, dict[str, torch.Tensor]]:
    """Return the network with the message's values and the site's state from before a round."""
    network = get_network(plan)
    found = site.state.load_before(before_round)
    for problem in site.state.problems:
        _logger.warning("%s: %s An older state is used.", site.name, problem)
    kept = found[0] if found else {}
    network.fill(read_model(message), kept)
    return network, kept
