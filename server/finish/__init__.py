"""What happens after the last round: recalibration, temperature, own models, small network, artefact, report."""
