"""All of Flower's internals at the server: the SuperLink's process, its listeners, stores and the executor."""
