"""The work behind the ClientApp's handlers, which are in :mod:`client.site` or in a file of the kind's name here."""
