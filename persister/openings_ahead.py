"""Which openings made the events that a ledger has still to read from Kafka.

A ledger that came back from an older dump was not told of the openings since. What one of them had replaced
may stand in the topic before its own events, and would be taken for lawful: so all is looked through before
any of it is written.
"""

from __future__ import annotations

from collections.abc import Callable

from persister.kafka_source import KafkaSource
from persister.ledger import KafkaMark


class OpeningsAhead:
    """Of one partition of the topic. What was looked through once isn't again.

    ``first_seqs``: the lowest seq of each epoch there.
    """

    def __init__(self) -> None:
        self.first_seqs: dict[int, int] = {}
        self._from = self._to = KafkaMark("", 0)

    def look(self, source: KafkaSource, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Look from where the source stands to its end, and leave it where it stands; false where ``goes_on``
        said so before that. LedgerError where Kafka does not give what it has."""
        begin = source.mark
        is_known = begin.topic_id == self._to.topic_id
        if not (is_known and self._from.offset <= begin.offset <= self._to.offset):
            self._from, self._to, self.first_seqs = begin, begin, {}
        if self._to != begin:
            source.go_to(self._to.offset)
        for events in source.rest():
            for event in events:
                first = self.first_seqs.get(event.epoch, event.seq)
                self.first_seqs[event.epoch] = min(first, event.seq)
            self._to = source.mark
            if not goes_on():
                return False
        self._to = source.mark  # also behind what can't be read at the end
        if self._to != begin:
            source.go_to(begin.offset)
        return True
