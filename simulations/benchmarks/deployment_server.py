"""The ServerApp of the deployment benchmark: the usual one, which knows the benchmark's network.

That network is nothing but bytes, so it has no deployable form and is released as it was trained.
"""

from fedmed.export import write_model
from server import federation
from server.finish.chosen import ChosenModel
from server.rounds.session import Session
from simulations.benchmarks import deployment_apps

__all__ = ["server_app"]


def _keep_train_form(session: Session, model: ChosenModel, best_round: int | None) -> None:
    write_model(session.run.model, model.model_path, session.plan, chosen_round=model.round)


assert deployment_apps  # importing it registers the network
federation.make_candidate = _keep_train_form  # type: ignore[attr-defined]
server_app = federation.create_deployed_app()
