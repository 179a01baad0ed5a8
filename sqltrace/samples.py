"""What is noted of some executions of a group only: where they came from, and whether they were equals."""

from __future__ import annotations

from collections import Counter

from sqltrace.callsite import CallSite

_MAX_SITES = 64
_MAX_DIGESTS = 64
DIGESTS = 8  # of a statement in a recording: enough to see that it repeats itself


# How many of a kind have run before one that is sampled: with it the 1st, 2nd, 4th, 9th, 16th, 33rd, 64th … are.
# Not the powers of two, which are even: of a loop that runs the same statement at two lines in turn they see one only.
SAMPLED = frozenset(2**power - 1 + (power > 1 and power % 2) for power in range(40))


class Samples:
    """
    Call sites and digests of parameters of some executions.

    Call sites are taken of the 1st, 2nd, 4th, 9th, 16th … execution of a statement with one origin
    and of slow ones; each stands for those up to the next. Of the parameters of
    the first eight executions only a hash is kept, which never leaves the process.
    Later ones that have a call site are compared with these.

    Attributes:
        varied: Whether a later execution had parameters that none of the first eight had.
        engines: Identities of the dialects that it ran with.
        first, last: Readings of the clock at the start of the first and of the latest execution.
    """

    __slots__ = ("_digests", "_several", "_sites", "engines", "first", "last", "varied")

    def __init__(self, first: int) -> None:
        self.first = self.last = first
        self.engines: set[int] = set()
        self.varied = False
        self._sites: list[tuple[int, CallSite]] = []
        self._several = False  # not one and the same
        self._digests: dict[int, int] = {}

    def add(self, number: int, call_site: CallSite | None, digest: int | None, later_digest: int | None) -> None:
        """Take the execution with this number in its group; 1 is the first."""
        if call_site is not None and len(self._sites) < _MAX_SITES:
            self._sites.append((number, call_site))
            self._several = self._several or call_site is not self._sites[0][1]
        if digest is not None:
            self.compare(digest)
        elif later_digest is not None:
            self.varied = self.varied or later_digest not in self._digests

    def compare(self, digest: int) -> None:
        """Take the parameters of one of the first eight."""
        digests = self._digests
        # A group may have any number of texts, with their values in them, and each has its first eight.
        if len(digests) < _MAX_DIGESTS or digest in digests:
            digests[digest] = digests.get(digest, 0) + 1

    def busiest(self, count: int) -> tuple[CallSite, int] | None:
        """The call site that most of the `count` came from, and about how many; `None` where none is known."""
        if not self._sites:
            return None
        if not self._several:
            return self._sites[0][1], count
        lines: Counter[CallSite] = Counter()
        ways: Counter[int] = Counter()  # of one line there may be several, by what called it
        ends = [number for number, _ in self._sites[1:]] + [count + 1]
        for (number, site), end in zip(self._sites, ends, strict=True):
            lines[site] += end - number
            ways[id(site)] += end - number
        [(line, most)] = lines.most_common(1)
        return max((site for _, site in self._sites if site == line), key=lambda site: ways[id(site)]), most

    @property
    def only_site(self) -> CallSite | None:
        """The call site, if all that are known are the same; else `None`."""
        return self._sites[0][1] if len({site for _, site in self._sites}) == 1 else None

    @property
    def equal(self) -> int:
        """How many of the first executions had the most frequent parameters; 0 where it is not known."""
        return max(self._digests.values()) if self._digests else 0

    @property
    def compared(self) -> int:
        """Executions of which the parameters were compared."""
        return sum(self._digests.values())
