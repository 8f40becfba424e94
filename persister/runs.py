"""A run of reconciliation from its start to its row in ``reconciliations``, with repair or without."""

from __future__ import annotations

from contextlib import nullcontext

import msgspec
import psycopg
from redis import Redis

from persister.database import QUERIES, Connection
from persister.differences import Repair, Report
from persister.reconcile import WAIT_S, reconcile
from persister.repair import only_repair, plan, repair


def run(
    redis: Redis,
    connection: Connection,
    partition: int = 0,
    *,
    trigger: str,
    repair_by: str | None = None,
    dry_run: bool = False,
    retention_ms: int,
    wait_s: float = WAIT_S,
) -> Report:
    """Reconcile and keep the run; where ``repair_by`` says who asks for it repair what can be, and reconcile
    once more. The repairs' events and the run keep that name.

    The report is of the last run; ``repaired`` tells what was done before it. A dry run tells what a
    repair would do, and neither does it nor is kept. What ``reconcile`` and ``repair`` raise.
    """
    with only_repair(connection, partition) if repair_by else nullcontext():
        reconciliation_id, why = (None, None) if dry_run else _next_id(connection)
        report = reconcile(redis, connection, partition, wait_s=wait_s)
        report = msgspec.structs.replace(report, reconciliation_id=reconciliation_id, not_kept=why)
        if dry_run:
            return msgspec.structs.replace(report, repaired=_planned(report))
        if not repair_by or report.clean:
            return _keep(connection, partition, report, trigger)
        name = str(reconciliation_id) if reconciliation_id else f"of {report.started_at}"
        repaired = repair(
            redis,
            connection,
            partition,
            report.differences,
            found_by=f"reconciliation {name}, repaired by {repair_by}",
            retention_ms=retention_ms,
            wait_s=wait_s,
        )
        report = msgspec.structs.replace(report, repaired=repaired, repaired_by=repair_by)
        _keep(connection, partition, report, trigger)
        after = run(
            redis,
            connection,
            partition,
            trigger="after repair",
            retention_ms=retention_ms,
            wait_s=wait_s,
        )
        return msgspec.structs.replace(after, repaired=repaired, repaired_by=repair_by)


def _planned(report: Report) -> list[Repair]:
    return [
        Repair(
            kind=each.kind,
            sku=each.sku,
            location=each.location,
            reservation_id=each.reservation_id,
            outcome=plan(each),
        )
        for each in report.differences
    ]


def _next_id(connection: Connection) -> tuple[int | None, str | None]:
    """The id of a run that begins; None and why where it can't be kept."""
    try:
        row = connection.execute(QUERIES["next_reconciliation"]).fetchone()
        connection.commit()
        return (row[0] if row else None), None
    except (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.UndefinedTable,
        psycopg.errors.ReadOnlySqlTransaction,
    ) as error:
        connection.rollback()
        return None, " ".join(str(error).split())


def _keep(connection: Connection, partition: int, report: Report, trigger: str) -> Report:
    if report.reconciliation_id is None:
        return report
    try:
        connection.execute(
            QUERIES["keep_reconciliation"],
            {
                "reconciliation_id": report.reconciliation_id,
                "partition": partition,
                "started_at": report.started_at,
                "duration_ms": report.duration_ms,
                "checked": report.checked,
                "reservations_checked": report.reservations_checked,
                "differences": msgspec.json.encode(report.differences).decode(),
                "repaired_by": report.repaired_by,
                "repaired": msgspec.json.encode(report.repaired).decode(),
                "trigger": trigger,
                "clean": report.clean,
            },
        )
        connection.commit()
        return report
    except psycopg.errors.InsufficientPrivilege as error:
        connection.rollback()
        why = " ".join(str(error).split())
        return msgspec.structs.replace(report, reconciliation_id=None, not_kept=why)
