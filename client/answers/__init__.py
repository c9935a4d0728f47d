"""The work behind the ClientApp's handlers; the handlers themselves are in :mod:`client.site`."""
