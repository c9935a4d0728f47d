"""A site's local work: fit, evaluate, optimizers, schedules and the network; nothing of messages."""
