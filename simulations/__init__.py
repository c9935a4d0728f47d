"""Simulated federations: the same apps as in a real one, on one machine."""

import os

# Before flwr and ray are imported anywhere: nothing about this machine or a run is reported to anyone.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
