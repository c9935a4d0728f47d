"""Keys, certificates and signatures of a federation.

Three kinds of keys, each in a file of its own: the authority (``ca.key``) signs the server's certificate and nothing
else; a site proves who it is with ``site.key``; ``release.key`` signs the models that go out. Private keys are made
with mode 0600 and without a passphrase, because the services that use them start without a person.
"""

from fedmed.keys.authority import Authority
from fedmed.keys.certificates import (
    certificate_expiry,
    certificate_names,
    days_left,
    find_lacking_names,
    is_issued_by,
    is_pair,
)
from fedmed.keys.pairs import (
    check_signature,
    fingerprint,
    make_release_key,
    make_site_key,
    read_private_key,
    read_public_key,
    sign,
)

__all__ = [
    "Authority",
    "certificate_expiry",
    "certificate_names",
    "check_signature",
    "days_left",
    "find_lacking_names",
    "fingerprint",
    "is_issued_by",
    "is_pair",
    "make_release_key",
    "make_site_key",
    "read_private_key",
    "read_public_key",
    "sign",
]
