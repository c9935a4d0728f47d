"""The parent process of the server: children, restarts, roster, status and console."""
