from fedmed.atomic_files import *  # noqa: F403  (temporary)
from fedmed.atomic_files import encode_json, sync_folder  # noqa: F401
