"""Keys, certificates and signatures of a federation.

Four kinds of keys, each in a file of its own: the authority (``ca.key``) signs the server's certificate and, with
``tls: mutual``, those of the sites; a site proves who it is with ``site.key``; ``release.key`` signs the models that go
out; an operator's key signs a decision to release. Private keys have mode 0600. Those of sites and operators are locked
by a passphrase unless somebody says otherwise; those that the server needs are not, as it starts without a person.
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
    is_locked,
    make_operator_key,
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
    "is_locked",
    "is_pair",
    "make_operator_key",
    "make_release_key",
    "make_site_key",
    "read_private_key",
    "read_public_key",
    "sign",
]
