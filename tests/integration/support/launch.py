"""Starts a command with the apps of the tests.

``python -m tests.integration.support.launch server|client ARGUMENTS``
"""

import sys

import client.app
import server.app

if __name__ == "__main__":
    which, *arguments = sys.argv[1:]
    if which == "server":
        sys.exit(server.app.main(arguments, server_app="tests.integration.support.apps:server_app"))
    sys.exit(client.app.main(arguments, client_app="tests.integration.support.apps:client_app"))
