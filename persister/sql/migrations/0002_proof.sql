-- What proves the ledger: a hash chain over the events of a partition, tables that nobody can change
-- afterwards, and the live reservations, kept along in the transaction that writes the events.

ALTER TABLE events ADD COLUMN hash bytea;
ALTER TABLE positions ADD COLUMN hash bytea;

-- hash = SHA-256 of the hash before (32 zero bytes at first) and of the body as it is stored.
DO $$
DECLARE
    event record;
    chained bytea;
    in_partition integer;
BEGIN
    FOR event IN SELECT partition, epoch, seq, body::text AS body FROM events ORDER BY partition, seq LOOP
        IF in_partition IS DISTINCT FROM event.partition THEN
            in_partition := event.partition;
            chained := decode(repeat('00', 32), 'hex');
        END IF;
        chained := sha256(chained || convert_to(event.body, 'UTF8'));
        UPDATE events SET hash = chained
        WHERE partition = event.partition AND epoch = event.epoch AND seq = event.seq;
        UPDATE positions SET hash = chained WHERE partition = event.partition;
    END LOOP;
END $$;

ALTER TABLE events ALTER COLUMN hash SET NOT NULL;

-- The held reservations with what is left of their lines: [[sku, location, quantity, confirmed,
-- released], …].
CREATE TABLE live_reservations (
    partition      integer     NOT NULL,
    reservation_id text        NOT NULL,
    order_id       text        NOT NULL,
    customer_id    text,
    fingerprint    text        NOT NULL,
    created_ms     bigint      NOT NULL,
    deadline_ms    bigint      NOT NULL,
    seq            bigint      NOT NULL,
    lines          json        NOT NULL,
    CONSTRAINT live_reservations_identity PRIMARY KEY (partition, reservation_id)
);

INSERT INTO live_reservations
SELECT held.partition, held.reservation_id, min(held.order_id), min(held.customer_id),
    (SELECT e.body->>'fingerprint' FROM events e
     WHERE e.partition = held.partition AND e.body->>'reservation_id' = held.reservation_id
       AND e.type = 'reserve' ORDER BY e.seq DESC LIMIT 1),
    (SELECT (extract(epoch FROM e.occurred_at) * 1000)::bigint FROM events e
     WHERE e.partition = held.partition AND e.body->>'reservation_id' = held.reservation_id
       AND e.type = 'reserve' ORDER BY e.seq DESC LIMIT 1),
    (SELECT (e.body->>'deadline_ms')::bigint FROM events e
     WHERE e.partition = held.partition AND e.body->>'reservation_id' = held.reservation_id
       AND e.type IN ('reserve', 'extend') ORDER BY e.seq DESC LIMIT 1),
    (SELECT max(e.seq) FROM events e
     WHERE e.partition = held.partition AND e.body->>'reservation_id' = held.reservation_id),
    json_agg(json_build_array(held.sku, held.location, held.quantity, held.confirmed, held.released)
        ORDER BY held.line)
FROM (
    SELECT partition, reservation_id, sku, location, min(order_id) AS order_id,
        min(customer_id) AS customer_id, min(line) FILTER (WHERE type = 'reserve') AS line,
        coalesce(sum(quantity) FILTER (WHERE type = 'reserve'), 0)::bigint AS quantity,
        coalesce(sum(quantity) FILTER (WHERE type = 'confirm'), 0)::bigint AS confirmed,
        coalesce(sum(quantity) FILTER (WHERE type = 'release'), 0)::bigint AS released,
        sum(sum(held_delta)) OVER (PARTITION BY partition, reservation_id) AS held
    FROM movements WHERE reservation_id IS NOT NULL
    GROUP BY partition, reservation_id, sku, location
) AS held
WHERE held.held > 0
GROUP BY held.partition, held.reservation_id;

-- Nothing is ever updated or deleted. ENABLE ALWAYS: also not under session_replication_role=replica.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER movements_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON movements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only;
ALTER TABLE movements ENABLE ALWAYS TRIGGER movements_append_only;
