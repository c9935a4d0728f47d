"""How long each side keeps what: the section ``keep`` of ``client.yaml`` and of ``server.yaml``."""

from typing import Annotated

from pydantic import Field

from fedmed.config.section import Section

Days = Annotated[float, Field(ge=0, le=36500)] | None
"""Null: until somebody deletes it."""


class SiteKeepConfig(Section):
    """Days after which a hospital deletes what it keeps, counted from the last change; applied at start and end."""

    run_state: Days = 30.0
    """State between rounds and the site's own model, of runs whose model has come home."""
    test_answers: Days = 365.0
    """Of such runs, the stored answers of a test, and the same with nothing held back for the site's own report."""
    logs: Days = 90.0
    """Old logs of the programs."""
    models: Days = None
    """Models and reports that have come home."""
    audit_log: Days = None
    """Oldest entries of the audit log, and what the server has signed about them; the newest entry always stays."""


class ServerKeepConfig(Section):
    """Days after which the coordinating site deletes what it keeps of a run, counted from the end of the run."""

    updates: Days = 0.0
    """Updates of single sites, of the round under way or of one that was stopped."""
    site_models: Days = 0.0
    """Single sites' models that were put away to teach the small network."""
    validation_tables: Days = 365.0
    """Tables of the validation images behind the last rounds and the best."""
    logs: Days = 90.0
    """Old logs of the programs, and the record of who was refused."""
