"""The coordinating site: the ServerApp, and the command ``flower-server`` around it."""

import os

# Before flwr is imported anywhere: nothing about this machine or a run is reported to anyone.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
