"""What benchmarks that train with several seeds have in common: options, the loop over seeds, and means in words."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar, cast

import torch

from fedmed.config import RunConfig
from fedmed.config.files import load_run_config
from fedmed.errors import FedmedError
from simulations.studies.table import estimate_mean

CONFIG = Path("configs/ham10000_sites.yaml")


class Finding(TypedDict):
    """What a benchmark finds with one seed; every benchmark adds its own figures."""

    seed: NotRequired[int]
    """Which :func:`measure_seeds` writes into it."""


Found = TypeVar("Found", bound=Finding)


def add_seed_options(parser: argparse.ArgumentParser, settings: Sequence[str]) -> None:
    """Add the options that :func:`measure_seeds` reads; ``settings`` are laid over the config before ``--set``."""
    parser.add_argument("--config", type=Path, default=CONFIG, help="of a simulation")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"laid over: {', '.join(settings)}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def measure_seeds(
    options: argparse.Namespace,
    settings: Sequence[str],
    measure: Callable[[RunConfig], Iterable[Found]],
    describe: Callable[[Found], str],
) -> list[Found] | None:
    """Measure every seed, tell of each finding on the standard error and write them to ``--json`` as they come.

    Parameters
    ----------
    options : Namespace
        Of :func:`add_seed_options`.
    settings : sequence of str
        ``KEY=VALUE``.
    measure : callable
        From the config of a seed to its findings.
    describe : callable
        From a finding, with its ``seed``, to a line.

    Returns
    -------
    list of dict or None
        All findings with their seeds; None, with a message, if something foreseeable stood in the way.
    """
    torch.set_num_threads(options.threads)
    found: list[Found] = []
    try:
        for seed in range(options.seeds):
            config = load_run_config(options.config, [*settings, *options.set, f"seed={seed}"])
            for finding in measure(config):
                found.append(cast(Found, {"seed": seed, **finding}))
                print(describe(found[-1]), file=sys.stderr, flush=True)
                if options.json:
                    options.json.write_text(json.dumps(found, indent=1) + "\n")
    except FedmedError as error:
        print(f"The benchmark did not finish.\n{error}", file=sys.stderr)
        return None
    return found


def with_interval(values: Sequence[float], form: str) -> str:
    """Return a mean, as the format ``form`` writes it, with its 95 % interval over seeds; a single one has none."""
    found = estimate_mean(values)
    if found["interval"] is None:
        return f"{found['value']:{form}} ({'one seed' if found['n'] == 1 else 'the same at all seeds'})"
    low, high = found["interval"]
    return f"{found['value']:{form}} ({low:{form}} to {high:{form}})"
