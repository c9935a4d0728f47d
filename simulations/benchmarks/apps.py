"""What the engine benchmark runs at the sites: our ClientApp, and the same work with the records of stock Flower."""

import os
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.hospital.site_data import Site, open_site
from client.site import app
from fedmed.config import Plan, RunConfig
from fedmed.data import prepare_data
from fedmed.distillation.network import get_network
from fedmed.metrics.classification import compute_figures
from fedmed.models import MODELS
from fedmed.storage.run_folder import RunFolder
from fedmed.training.evaluate import evaluate
from fedmed.training.fit import fit

__all__ = ["app", "stock_app"]

RUN_VARIABLE = "FEDMED_BENCHMARK_RUN"


@MODELS.register("benchmark_tiny")
def build_tiny(num_classes: int) -> nn.Module:
    """Return a network of one kilobyte."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, num_classes))


@MODELS.register("benchmark_100mb")
def build_100mb(num_classes: int) -> nn.Module:
    """Return a network of 100 MB for images of 16 x 16 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 32_768), nn.ReLU(), nn.Linear(32_768, num_classes))


def make_benchmark_run(folder: Path, config: RunConfig) -> RunFolder:
    """Return a new run folder with the data split, for a measurement that a later run does not go on with."""
    run = RunFolder.create(folder, "none")
    prepared = prepare_data(config.data, config.sites, config.seed, run.splits)
    run.write_config(config.model_copy(update={"classes": list(prepared.classes)}))
    run.write_roster({number + 1: site for number, site in enumerate(prepared.sites)})
    run.record_start()
    return run


def open_benchmark_site(run: RunFolder, name: str) -> Site:
    """Return a site of the benchmark's run folder."""
    return open_site({"run-dir": str(run.path), "site": name, "cache-mib": 1000.0})


stock_app = ClientApp()


@stock_app.train()
def train_stock(message: Message, context: Context) -> Message:
    """Train as ``client.site`` does, with the records of Flower's own FedAvg."""
    site, plan, model = _prepare(message, context)
    result = fit(model, site.data.train, plan, site=site.name, round_number=1, device=site.device)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"loss": result.loss, "num-examples": result.num_images}),
        }
    )
    return Message(content, reply_to=message)


@stock_app.evaluate()
def evaluate_stock(message: Message, context: Context) -> Message:
    """Score as ``client.site`` does, with the records of Flower's own FedAvg."""
    site, plan, model = _prepare(message, context)
    tables = evaluate(model, site.data.validation, plan, group=site.name, device=site.device)
    value = compute_figures(tables)["balanced_accuracy"].value or 0.0
    metrics = MetricRecord({"balanced_accuracy": value, "num-examples": max(1, tables.num_images)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _prepare(message: Message, context: Context) -> tuple[Site, Plan, nn.Module]:
    torch.set_num_threads(1)
    run = RunFolder.open(Path(os.environ[RUN_VARIABLE]))
    site = open_benchmark_site(run, run.read_roster()[int(context.node_config["partition-id"]) + 1])
    plan = run.read_config().make_plan()
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    model = get_network(plan).model
    model.load_state_dict(arrays.to_torch_state_dict())
    return site, plan, model
