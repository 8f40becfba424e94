"""Stock records of Redis against the balances of the ledger, at the same seq.

A record read after head stood at seq *h* has all events up to *h*, and those up to its own seq. So it is
compared with the ledger's balance at the higher of the two: the ledger lower: wait; the ledger higher:
take off the movements above. Nothing is compared "now" with "then", and no lock is taken anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine import keys
from persister.differences import Counters, Difference, Kind
from persister.sides import SLICE, Name, Sides

_AUDIT = "the ledger's side, no event mends it: run 'holdfast audit'"


class StockRun:
    """The comparison of all stock records of a partition."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._seen: set[Name] = set()  # SCAN may name a key twice
        self.checked = 0
        self.differences: list[Difference] = []

    def run(self, on_progress: Callable[[int], None]) -> None:
        """Those in Redis, then those that only the ledger has."""
        sides = self._sides
        for found in sides.scan(keys.stock_pattern(sides.partition)):
            self.compare(self._names_of(found))
            on_progress(self.checked)
        last: Name = ("", "")
        while rows := sides.rows("all_balances", sku=last[0], location=last[1], limit=SLICE):
            sides.connection.commit()
            last = (rows[-1][0], rows[-1][1])
            self.compare([(sku, location) for sku, location in rows])
        sides.connection.commit()

    def compare(self, names: Sequence[Name]) -> None:
        """Compare the stock records of these skus and locations, but for those compared before."""
        fresh = [name for name in dict.fromkeys(names) if name not in self._seen]
        if not fresh:
            return
        self._seen.update(fresh)
        floor, in_redis = self._sides.counters(fresh)
        head_seq = self._sides.head_seq()
        possible = [c.seq for c in in_redis.values() if c and c.seq <= head_seq]
        reached = self._sides.wait_for_ledger(max(possible, default=0))
        with self._sides.snapshot():
            in_ledger = self._sides.balances(fresh)
            for name in fresh:
                redis, ledger = in_redis[name], in_ledger.get(name)
                if redis is None:
                    self._judge_unreadable(name, ledger)
                elif redis.seq > head_seq:
                    why = f"its seq is {redis.seq}, though the last event is {head_seq}"
                    self._differ(Kind.COUNTER_DRIFT, name, redis, ledger, why)
                elif redis.seq > reached:
                    why = f"the ledger has come to seq {reached} only"
                    self._differ(Kind.LEDGER_BEHIND, name, redis, ledger, why)
                else:
                    self._judge(name, redis, ledger, max(redis.seq, min(floor, reached)))
        self.checked += len(fresh)

    def _names_of(self, stock_keys: Sequence[bytes]) -> list[Name]:
        """Skus and locations of stock keys; a key that no script would make is a difference."""
        names = []
        for key in stock_keys:
            try:
                names.append(keys.stock_name(key.decode()))
            except ValueError:
                name = (key.decode(errors="replace"), "")
                if name in self._seen:
                    continue
                self._seen.add(name)
                why = "no script makes a key of that name; somebody else writes to this Redis"
                self._differ(Kind.MISSING_IN_LEDGER, name, None, None, why)
        return names

    def _judge_unreadable(self, name: Name, ledger: Counters | None) -> None:
        if ledger is None:
            why = "the record can't be read, and the ledger has no balance of it"
            self._differ(Kind.COUNTER_DRIFT, name, None, None, why)
        else:
            wrong = self._wrong_balance(name, ledger)
            why = wrong or "no readable record in Redis"
            self._differ(Kind.MISSING_IN_REDIS, name, None, ledger, why, repairable=not wrong)

    def _judge(self, name: Name, redis: Counters, ledger: Counters | None, at: int) -> None:
        """``at``: a seq that both sides have reached."""
        if ledger is not None and ledger.seq == redis.seq and ledger.units == redis.units:
            return
        then = self._at_seq(name, ledger, at)
        drift = (
            redis.on_hand - then.on_hand,
            redis.held - then.held,
            redis.quarantined - then.quarantined,
        )
        if ledger is None or ledger.seq < redis.seq:
            kind = Kind.MISSING_IN_LEDGER
            why = f"the ledger has no event {redis.seq} for it"
        elif drift == (0, 0, 0):
            return
        else:
            kind = Kind.LEAKED_HOLD if drift[0] == drift[2] == 0 else Kind.COUNTER_DRIFT
            why = f"at seq {at} the ledger has {then.units}, Redis {redis.units}"
        wrong = self._wrong_balance(name, ledger)
        self._differ(kind, name, redis, ledger, wrong or why, repairable=not wrong, drift=drift)

    def _wrong_balance(self, name: Name, ledger: Counters | None) -> str:
        """Is it the ledger's own fault? What to say then."""
        total = self._sides.movements_sum(name)
        if total == (ledger.units if ledger else (0, 0, 0)):
            return ""
        kept = f"balance is {ledger.units}" if ledger else "balance is gone"
        return f"its {kept} (on_hand, held, quarantined), its movements add up to {total}: {_AUDIT}"

    def _at_seq(self, name: Name, ledger: Counters | None, seq: int) -> Counters:
        """The ledger's counters as they were at an earlier seq."""
        if ledger is None:
            return Counters(0, 0, 0, seq)
        if ledger.seq <= seq:
            return ledger
        later = self._sides.movements_sum(name, seq, ledger.seq)
        return Counters(
            ledger.on_hand - later[0], ledger.held - later[1], ledger.quarantined - later[2], seq
        )

    def _differ(
        self,
        kind: Kind,
        name: Name,
        redis: Counters | None,
        ledger: Counters | None,
        detail: str,
        *,
        repairable: bool = False,
        drift: tuple[int, int, int] | None = None,
    ) -> None:
        self.differences.append(
            Difference(
                kind=kind,
                partition=self._sides.partition,
                sku=name[0],
                location=name[1],
                redis=redis,
                ledger=ledger,
                detail=detail,
                repairable=repairable,
                drift=drift,
            )
        )


def leaked_in_ledger(sides: Sides, explained: set[Name]) -> list[Difference]:
    """Balances whose held is not what is left of the live reservations, in one statement and so in
    one snapshot. ``explained``: those whose cause is told already."""
    found = []
    with sides.snapshot():
        for sku, location, *numbers, live in sides.rows("leaked_holds"):
            if (sku, location) in explained:
                continue
            ledger = Counters(*numbers)
            total = sides.movements_sum((sku, location))
            if total == ledger.units:
                cause = "as its movements do: a live reservation was changed or taken away"
            else:
                cause = f"but its movements add up to {total}: the balance was changed"
            detail = f"its live reservations hold {live}, its balance says {ledger.held}, {cause}; {_AUDIT}"
            found.append(
                Difference(
                    kind=Kind.LEAKED_HOLD,
                    partition=sides.partition,
                    sku=sku,
                    location=location,
                    ledger=ledger,
                    detail=detail,
                )
            )
    return found
