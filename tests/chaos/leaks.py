"""What a process holds, as Linux's /proc has it: threads, and file descriptors by what they lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Holdings:
    """Of one process at one moment."""

    threads: int
    descriptors: Counter[str]  #: By a server's name, or by the kind of thing.

    def beyond(self, allowed: Holdings) -> list[str]:
        """What is held beyond what is allowed."""
        more = [f"{self.threads} threads, {allowed.threads} allowed"] if self.threads > allowed.threads else []
        leaked = self.descriptors - allowed.descriptors
        return more + [
            f"{self.descriptors[what]} descriptors of {what}, {allowed.descriptors[what]} allowed" for what in leaked
        ]

    def allowing(self, pools: Mapping[str, int], spare: Mapping[str, int]) -> Holdings:
        """The same, but at least what its pools may hold, which fill by chance, and some more of what is `spare`."""
        return Holdings(self.threads, (self.descriptors | Counter(pools)) + Counter(spare))

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.descriptors.items()))
        return f"{self.threads} threads; {counts}"


def holdings(pid: int, servers: Mapping[int, str]) -> Holdings:
    """What the process holds now; `servers` are names by port."""
    process = Path("/proc", str(pid))
    leads_to = _connections(process, servers)
    found: Counter[str] = Counter()
    for descriptor in (process / "fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # It was closed just now.
            continue
        found[leads_to.get(target) or _kind(target)] += 1
    return Holdings(len(list((process / "task").iterdir())), found)


def most_of(several: Sequence[Holdings]) -> Holdings:
    """Of everything the most that one of them holds: who leads holds more than the others."""
    most: Counter[str] = Counter()
    for each in several:
        most |= each.descriptors
    return Holdings(max(each.threads for each in several), most)


def _connections(process: Path, servers: Mapping[int, str]) -> dict[str, str]:
    """The server at the other end of each socket, by what /proc calls the socket."""
    found = {}
    for line in (process / "net/tcp").read_text().splitlines()[1:]:
        _, _, remote, _, _, _, _, _, _, inode, *_ = line.split()
        port = int(remote.partition(":")[2], 16)
        if port in servers:
            found[f"socket:[{inode}]"] = servers[port]
    return found


def _kind(target: str) -> str:
    """`socket`, `pipe`, `anon_inode`; of a file its name, or what kind it is."""
    return Path(target).suffix or Path(target).name if target.startswith("/") else target.partition(":")[0]
