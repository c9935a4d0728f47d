"""The ServerApp of the deployment benchmark: the usual one, which knows the benchmark's network."""

from server.federation import create_deployed_app
from simulations.benchmarks import deployment_apps

__all__ = ["server_app"]

assert deployment_apps  # importing it registers the network
server_app = create_deployed_app()
