"""All of Flower's internals at the server: the SuperLink's process, its doors, stores and the executor."""
