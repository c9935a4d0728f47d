"""From ``report.json`` to the parts of the page; no counting."""
