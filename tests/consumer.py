"""A consumer as docs/events.md describes one, written against version 2 as it was first.

It must stay right when types, members and counters are added: don't change it for a new one.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict


class Consumer:
    """Keeps the stock of one partition: ``stock[sku, location][counter]`` in units."""

    def __init__(self) -> None:
        self.place = (0, 0)
        self.stock: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def take(self, message: bytes) -> None:
        event = json.loads(message)
        assert event["version"] == 2, f"version {event['version']} is not known here"
        place = (event["epoch"], event["seq"])
        if event["seq"] <= self.place[1] and place <= self.place:
            return
        assert event["seq"] == self.place[1] + 1, f"after {self.place} came {place}"
        for line in event.get("lines", []):
            counters = self.stock[line["sku"], line["location"]]
            for member, value in line.items():
                if member.endswith("_delta"):
                    counters[member.removesuffix("_delta")] += value
        self.place = place
