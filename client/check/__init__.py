"""``flower-client --check``, one file a subject."""
