"""A model of nginx's balancing: smooth weighted round robin, least_conn, and random two least_conn.

Follows src/http/ngx_http_upstream_round_robin.c and src/http/modules/ngx_http_upstream_{least_conn,random}_module.c of
nginx 1.22 to 1.30. A reload starts new workers with counts of zero; requests under way end in the old workers. Without
`zone` each worker counts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

RANDOM_TRIES = 20  # as in ngx_http_upstream_random_module.c


@dataclass(slots=True)
class Peer:
    """One server of an upstream, with the fields of ngx_http_upstream_rr_peer_t.

    Attributes:
        weight: as configured; 0 stands for `down`.
        max_fails, fail_timeout: as configured, the second in seconds.
        conns: requests under way.
        current_weight, effective_weight: state of the smooth round robin; failures lower the second one for a while.
        fails: failures within fail_timeout.
        accessed, checked: when it failed last, and when the count of failures began or a request tested it; seconds.
    """

    weight: int
    max_fails: int
    fail_timeout: float
    conns: int = 0
    current_weight: int = 0
    effective_weight: int = 0
    fails: int = 0
    accessed: float = 0.0
    checked: float = 0.0


class Peers:
    """The servers of an upstream as one set of counters knows them: all workers' with `zone`, else one worker's."""

    def __init__(self, weights: Sequence[int], max_fails: int, fail_timeout: float) -> None:
        """Start with no requests; weight 0 is a server that is down."""
        self.all = [Peer(weight, max_fails, fail_timeout, effective_weight=weight or 1) for weight in weights]
        self.total_weight = sum(weight or 1 for weight in weights)

    def usable(self, tried: set[int], now: float) -> list[int]:
        """Return the servers that may be chosen: not tried yet, not down, not left out for their failures."""
        return [
            i
            for i, peer in enumerate(self.all)
            if peer.weight
            and i not in tried
            and not (peer.max_fails and peer.fails >= peer.max_fails and now - peer.checked <= peer.fail_timeout)
        ]

    def connect(self, i: int, now: float) -> int:
        """Count a request to a server, and return the server."""
        peer = self.all[i]
        if now - peer.checked > peer.fail_timeout:
            peer.checked = now
        peer.conns += 1
        return i

    def free(self, i: int, now: float, *, failed: bool) -> None:
        """Count the end of a request."""
        peer = self.all[i]
        peer.conns -= 1
        if failed:
            peer.fails += 1
            peer.accessed = peer.checked = now
            if peer.max_fails:
                peer.effective_weight = max(0, peer.effective_weight - peer.weight // peer.max_fails)
        elif peer.accessed < peer.checked:
            peer.fails = 0

    def smooth(self, candidates: Sequence[int], best: int | None) -> int:
        """Pick one of several by smooth weighted round robin."""
        total = 0
        for i in candidates:
            peer = self.all[i]
            peer.current_weight += peer.effective_weight
            total += peer.effective_weight
            if peer.effective_weight < peer.weight:
                peer.effective_weight += 1
            if best is None or peer.current_weight > self.all[best].current_weight:
                best = i
        if best is None:
            raise ValueError("no candidates")
        self.all[best].current_weight -= total
        return best

    def round_robin(self, tried: set[int], now: float) -> int | None:
        """Choose by smooth weighted round robin, nginx's default method."""
        usable = self.usable(tried, now)
        return self.connect(self.smooth(usable, None), now) if usable else None

    def least_conn(self, tried: set[int], now: float) -> int | None:
        """Choose the server with the fewest requests per weight; among several, by smooth round robin."""
        usable = self.usable(tried, now)
        if not usable:
            return None
        best, many = usable[0], False
        for i in usable[1:]:
            peer, than = self.all[i], self.all[best]
            ours, theirs = peer.conns * than.weight, than.conns * peer.weight
            if ours < theirs:
                best, many = i, False
            elif ours == theirs:
                many = True
        if not many:
            return self.connect(best, now)
        peer = self.all[best]
        equal = [i for i in usable if i >= best and self.all[i].conns * peer.weight == peer.conns * self.all[i].weight]
        return self.connect(self.smooth(equal, best), now)

    def random_two_least_conn(self, tried: set[int], now: float, chance: random.Random) -> int | None:
        """Draw two servers by weight, and choose the one with fewer requests per weight."""
        usable, first = set(self.usable(tried, now)), None
        for _ in range(RANDOM_TRIES):
            i = self.draw(chance)
            if i == first or i not in usable:
                continue
            if first is None:
                first = i
                continue
            peer, than = self.all[i], self.all[first]
            return self.connect(first if peer.conns * than.weight > than.conns * peer.weight else i, now)
        return self.round_robin(tried, now)

    def draw(self, chance: random.Random) -> int:
        """Draw a server by weight. One that is down has the weight 1; the caller draws again."""
        x = chance.randrange(self.total_weight)
        for i, peer in enumerate(self.all):
            x -= peer.weight or 1
            if x < 0:
                return i
        raise AssertionError("the weights sum to more")


@dataclass(slots=True, eq=False)
class Workers:
    """The workers that one start or reload made: their counts, one set for all or one each, and requests under way."""

    counters: list[Peers]
    under_way: int = 0


@dataclass(slots=True)
class Ticket:
    """Where a request is counted."""

    workers: Workers
    peers: Peers
    server: int


class Nginx:
    """One nginx with its workers and its one upstream.

    Attributes:
        weights: those that are live.
        reloads: how many there were.
    """

    def __init__(  # noqa: PLR0913 - each is a directive of nginx's
        self,
        weights: Sequence[int],
        *,
        method: str,
        chance: random.Random,
        zone: bool = True,
        workers: int = 2,
        max_fails: int = 10,
        fail_timeout: float = 60.0,
    ) -> None:
        """Start; `method` is least_conn, round_robin or random_two_least_conn."""
        self.method, self.zone, self.worker_count = method, zone, workers
        self.max_fails, self.fail_timeout = max_fails, fail_timeout
        self.chance = chance
        self.reloads = 0
        self.old_workers: list[Workers] = []
        self.weights = list(weights)
        self.serving = self._new_workers()

    def _new_workers(self) -> Workers:
        count = 1 if self.zone else self.worker_count
        return Workers([Peers(self.weights, self.max_fails, self.fail_timeout) for _ in range(count)])

    def reload(self, weights: Sequence[int]) -> None:
        """Make new workers with new weights and no counts; the old ones finish what they have begun."""
        self.old_workers = [each for each in (*self.old_workers, self.serving) if each.under_way]
        self.weights = list(weights)
        self.serving = self._new_workers()
        self.reloads += 1

    @property
    def draining(self) -> int:
        """How many sets of old workers still have requests."""
        self.old_workers = [each for each in self.old_workers if each.under_way]
        return len(self.old_workers)

    def choose(self, tried: set[int], now: float) -> Ticket | None:
        """Choose a server that is not among those tried; None if there is none, which nginx answers with 502."""
        # The kernel gives a connection to any of the workers that wait for one.
        peers = self.chance.choice(self.serving.counters)
        if self.method == "least_conn":
            server = peers.least_conn(tried, now)
        elif self.method == "round_robin":
            server = peers.round_robin(tried, now)
        else:
            server = peers.random_two_least_conn(tried, now, self.chance)
        if server is None:
            return None
        self.serving.under_way += 1
        return Ticket(self.serving, peers, server)

    def free(self, ticket: Ticket, now: float, *, failed: bool) -> None:
        """Count the end of a request, in the workers that began it."""
        ticket.workers.under_way -= 1
        ticket.peers.free(ticket.server, now, failed=failed)
