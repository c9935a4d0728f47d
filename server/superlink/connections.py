"""Who holds connections to the public port, and who has to give way so that sites always find one.

A connection is a stranger's until a signed request has come over it. Strangers share two small pools, one for
handshakes under way and one for what comes after; in each the newest takes the place of the oldest, so whoever holds
many connections displaces only the own ones and those of other strangers. The rest is for sites: connections over
which a signed request has come, and those from addresses of which that is true of late.
"""

import contextlib
import ipaddress
import logging
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

_NETWORK_BITS = 64  # of an IPv6 address; whoever has one address of such a network usually has all
_QUIET_S = 60.0

Peer = tuple[str, int]
"""Address and port of the other side."""

log = logging.getLogger("fedmed.superlink")


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be.

    Attributes
    ----------
    most : int
        In all, so that files can still be opened.
    per_source : int
        From one address of sites; for IPv6, one network of 64 bits. The machine itself may hold any number: what
        connects from there is a proxy of the house, or a trial of many sites on one machine.
    per_stranger : int
        From one address of which no signed request has come.
    handshakes : int
        Of strangers that have not finished the TLS handshake.
    strangers : int
        Of strangers that have, and have sent no signed request yet.
    known_s : float
        For how long an address counts as a site's after a signed request.
    addresses_per_site : int
        That are remembered; a site cannot fill the memory for others.
    """

    most: int = 512
    per_source: int = 64
    per_stranger: int = 16
    handshakes: int = 128
    strangers: int = 64
    known_s: float = 86_400.0
    addresses_per_site: int = 8


@dataclass(eq=False)
class Connection:
    """One connection."""

    peer: Peer
    source: str | None
    close: Callable[[], None]
    has_shaken_hands: bool = False
    is_signed: bool = False
    certificate_key: bytes | None = field(default=None, repr=False)


class ConnectionCounter:
    """Admits connections and has others give way; belongs to one event loop.

    Parameters
    ----------
    limits : ConnectionLimits, optional
        How many.
    clock : callable
        Seconds, for tests.
    """

    def __init__(self, limits: ConnectionLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits or ConnectionLimits(), clock
        self._open: dict[Peer, Connection] = {}  # the oldest first
        self._addresses: dict[int, OrderedDict[str, float]] = {}
        self._logged_at = float("-inf")

    def __len__(self) -> int:
        """Return the number of connections, those from this machine among them."""
        return len(self._open)

    def admit(self, peer: Peer, source: str | None, close: Callable[[], None]) -> bool:
        """Count a connection that has come, perhaps in place of another; return False if there is no room for it.

        Parameters
        ----------
        peer : tuple
            The other side.
        source : str, optional
            What counts as one source; None: this machine.
        close : callable
            Ends the connection.
        """
        if source is not None and not (self._has_room_at(source) and self._has_room(source)):
            if self._clock() - self._logged_at > _QUIET_S:
                self._logged_at = self._clock()
                held = sum(one.source == source for one in self._open.values())
                log.warning("too many connections, %d of them from %s", held, source)
            return False
        self._open[peer] = Connection(peer, source, close)
        return True

    def finish_handshake(self, peer: Peer | None, certificate_key: bytes | None = None) -> None:
        """Note that a connection is encrypted, or that there is no encryption here.

        Parameters
        ----------
        peer : tuple, optional
            The other side.
        certificate_key : bytes, optional
            Public key (DER) of the certificate that it has shown.
        """
        found = None if peer is None else self._open.get(peer)
        if found is not None:
            found.has_shaken_hands, found.certificate_key = True, certificate_key
            self._displace([one for one in self._find_strangers() if one.has_shaken_hands], self.limits.strangers)

    def give_up_handshake(self, peer: Peer) -> bool:
        """End a connection whose handshake takes too long; return whether it did."""
        found = self._open.get(peer)
        return found is not None and not found.has_shaken_hands and self._displace([found], 0)

    def note_signed(self, peer: Peer | None, node_id: int) -> None:
        """Note that a signed request of a site has come over a connection: it and its address are a site's."""
        found = None if peer is None else self._open.get(peer)
        if found is None or found.source is None:
            return
        found.is_signed = True
        addresses = self._addresses.setdefault(node_id, OrderedDict())
        addresses[found.source] = self._clock()
        addresses.move_to_end(found.source)
        while len(addresses) > self.limits.addresses_per_site:
            addresses.popitem(last=False)

    def find_key(self, peer: Peer | None) -> bytes | None:
        """Return the public key (DER) of the certificate that the other side has shown, None if it has shown none."""
        found = None if peer is None else self._open.get(peer)
        return None if found is None else found.certificate_key

    def leave(self, peer: Peer) -> None:
        """Count a connection that has ended."""
        self._open.pop(peer, None)

    def _find_known(self) -> set[str | None]:
        """Return the sources that are sites'."""
        oldest = self._clock() - self.limits.known_s
        late = {source for found in self._addresses.values() for source, at in found.items() if at > oldest}
        return late | {one.source for one in self._open.values() if one.is_signed}

    def _find_strangers(self) -> list[Connection]:
        known = self._find_known()
        return [one for one in self._open.values() if one.source is not None and one.source not in known]

    def _has_room_at(self, source: str) -> bool:
        """Make room among the connections of one source, from those without a signed request."""
        mine = [one for one in self._open.values() if one.source == source]
        most = self.limits.per_source if source in self._find_known() else self.limits.per_stranger
        return len(mine) < most or self._displace_one([one for one in mine if not one.is_signed])

    def _has_room(self, source: str) -> bool:
        """Make room among all connections."""
        if source not in self._find_known():
            begun = [one for one in self._find_strangers() if not one.has_shaken_hands]
            self._displace(begun, self.limits.handshakes - 1)
        num_counted = sum(one.source is not None for one in self._open.values())
        return num_counted < self.limits.most or self._displace_one(self._find_strangers())

    def _displace_one(self, among: list[Connection]) -> bool:
        return self._displace(among, len(among) - 1)

    def _displace(self, among: list[Connection], most: int) -> bool:
        """End connections until ``most`` are left, the oldest of the source that holds most; return whether any."""
        left = list(among)
        while len(left) > max(most, 0):
            counts = Counter(one.source for one in left)
            oldest = max(left, key=lambda one: counts[one.source])  # of equal ones, the first
            left.remove(oldest)
            self._open.pop(oldest.peer, None)
            oldest.close()
        return len(left) < len(among)


def find_source(address: str) -> str | None:
    """Return what counts as one source, None for this machine itself."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            network = ipaddress.ip_network((found, _NETWORK_BITS), strict=False)
            return None if found.is_loopback else str(network)
        found = found.ipv4_mapped
    return None if found.is_loopback else str(found)


def shut(connection: socket.socket) -> None:
    """End a connection that the event loop has: it notices, and closes the socket itself."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
