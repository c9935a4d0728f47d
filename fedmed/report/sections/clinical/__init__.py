"""Sections for clinical reading: ordered classes, slope of calibration, shift between sites; no plain figures."""
