"""From a run's numbers to ``report.json``; no HTML."""
