"""Questions of our own over HTTP, beside Flower's: their paths, and for how long an answer is held back."""

OWN_PATHS = "/v1/fedmed/"
"""Below it are all of them."""
HELLO_PATH = f"{OWN_PATHS}hello"
"""Where a site asks how things stand."""
RELEASE_PATH = f"{OWN_PATHS}release/"
"""Below it are the files of the released model, the only answers that may be long."""
COLLECTED_PATH = f"{OWN_PATHS}collected"
"""Where a site says that it has the released model."""
DROP_PATH = f"{OWN_PATHS}drop"
"""Where the ServerApp says which answers it does not want any more."""
OPEN_PATH = f"{OWN_PATHS}open"
"""Where the supervisor says that the list of sites is the present one, and that they may come in."""

RELEASE_HEADER = "x-fedmed-release"
"""In the answer to the question for messages: SHA-256 of the manifest of the released model, once there is one."""

HOLD_S = 20.0
"""For how long the server holds the answer back while it has no message."""
RELEASED_HOLD_S = 1.0
"""The same once there is a release, for which the site shall come soon."""
PULL_TIMEOUT_S = 35.0
"""For how long a site waits for that answer."""
assert RELEASED_HOLD_S < HOLD_S <= PULL_TIMEOUT_S - 10, "a site must not give up while the server still holds back"
