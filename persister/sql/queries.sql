-- Every query of the ledger under a name (persister/queries.py reads this file).

-- name: session
-- What the role, the database, the server or an environment variable may set otherwise. The time limits
-- first, so that none of them ends this. synchronous_commit: what is committed is trimmed elsewhere. The
-- schema is public, or what the URL names in its options (source client): two parts whose roles have other
-- search_paths must not work on two ledgers.
SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SELECT pg_catalog.set_config(name, CASE name WHEN 'synchronous_commit' THEN 'on'
  WHEN 'search_path' THEN 'public' ELSE '0' END, false)
FROM pg_catalog.pg_settings
WHERE name IN ('idle_session_timeout', 'transaction_timeout')
  OR name = 'synchronous_commit' AND setting = 'off'
  OR name = 'search_path' AND source <> 'client';
SET datestyle = 'ISO, YMD';
SET timezone = 'UTC';
SET bytea_output = 'hex';
SET default_transaction_isolation = 'read committed';
SET default_transaction_read_only = off

-- name: reader_session
SELECT set_config('statement_timeout', %(ms)s, false), set_config('default_transaction_read_only', 'on', false)

-- name: lock_partition
-- The server is to notice after some 15 s that the host of the lease's holder has vanished.
SELECT pg_try_advisory_lock(1215193670, %(partition)s),
  set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false),
  set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '15000', false)

-- name: position
SELECT epoch, seq FROM positions WHERE partition = %(partition)s

-- name: stopped
SELECT stopped FROM positions WHERE partition = %(partition)s

-- name: position_for_update
SELECT epoch, seq, hash FROM positions WHERE partition = %(partition)s FOR UPDATE

-- name: positions
SELECT p.partition, p.epoch, p.seq, p.stopped, e.occurred_at
FROM positions p LEFT JOIN events e USING (partition, epoch, seq)

-- name: move_position
INSERT INTO positions (partition, epoch, seq, hash, kafka_offset, kafka_topic_id)
VALUES (%(partition)s, %(epoch)s, %(seq)s, %(hash)s, %(offset)s, %(topic_id)s)
ON CONFLICT ON CONSTRAINT positions_identity
DO UPDATE SET epoch = EXCLUDED.epoch, seq = EXCLUDED.seq, hash = EXCLUDED.hash, stopped = NULL,
  quarantine_id = NULL,
  kafka_offset = coalesce(EXCLUDED.kafka_offset, positions.kafka_offset),
  kafka_topic_id = coalesce(EXCLUDED.kafka_topic_id, positions.kafka_topic_id), updated_at = now()

-- name: kafka_mark
SELECT kafka_topic_id, kafka_offset FROM positions
WHERE partition = %(partition)s AND kafka_offset IS NOT NULL

-- name: stop_partition
INSERT INTO positions (partition, epoch, seq, stopped, quarantine_id)
VALUES (%(partition)s, 0, 0, %(why)s, %(quarantine_id)s)
ON CONFLICT ON CONSTRAINT positions_identity
DO UPDATE SET stopped = EXCLUDED.stopped, quarantine_id = EXCLUDED.quarantine_id,
  updated_at = now()

-- name: go_on
UPDATE positions SET stopped = NULL, updated_at = now()
WHERE partition = %(partition)s AND stopped IS NOT NULL AND quarantine_id IS NULL

-- name: leave_quarantine
UPDATE positions SET stopped = NULL, quarantine_id = NULL,
  kafka_offset = coalesce(%(offset)s::bigint, kafka_offset),
  kafka_topic_id = coalesce(%(topic_id)s::text, kafka_topic_id), updated_at = now()
WHERE partition = %(partition)s AND quarantine_id IS NOT NULL

-- name: openings
SELECT epoch, first_seq, run_id, used_at IS NOT NULL FROM openings WHERE partition = %(partition)s

-- name: note_opening
INSERT INTO openings (partition, epoch, first_seq, run_id)
SELECT %(partition)s, greatest(%(above)s,
  (SELECT coalesce(max(epoch), 0) FROM openings WHERE partition = %(partition)s),
  (SELECT coalesce(max(epoch), 0) FROM positions WHERE partition = %(partition)s)) + 1,
  %(first_seq)s, %(run_id)s
RETURNING epoch

-- name: use_opening
INSERT INTO openings (partition, epoch, first_seq, run_id, used_at)
VALUES (%(partition)s, %(epoch)s, %(first_seq)s, '', now())
ON CONFLICT (partition, epoch) DO UPDATE SET used_at = now() WHERE openings.used_at IS NULL

-- name: ledger_identity
SELECT concat_ws('.', (SELECT ledger_id FROM ledger_identity),
  (SELECT system_identifier FROM pg_control_system()),
  (SELECT oid FROM pg_database WHERE datname = current_database()))

-- name: note_adoption
INSERT INTO adoptions (partition, former, ledger, epoch, seq, adopted_by, reason)
VALUES (%(partition)s, %(former)s, %(ledger)s, %(epoch)s, %(seq)s, %(by)s, %(reason)s)
RETURNING adoption_id

-- name: adopting
SELECT a.adoption_id, a.adopted_by, a.reason
FROM positions p JOIN adoptions a ON a.adoption_id = p.adopting
WHERE p.partition = %(partition)s

-- name: begin_adoption
INSERT INTO positions (partition, epoch, seq, adopting) VALUES (%(partition)s, 0, 0, %(adoption_id)s)
ON CONFLICT ON CONSTRAINT positions_identity
DO UPDATE SET adopting = EXCLUDED.adopting, updated_at = now()

-- name: end_adoption
UPDATE positions SET adopting = NULL, stopped = NULL, quarantine_id = NULL, updated_at = now()
WHERE partition = %(partition)s

-- name: note_hole
INSERT INTO holes (partition, from_seq, to_seq, adoption_id, body, hash)
VALUES (%(partition)s, %(from)s, %(to)s, %(adoption_id)s, %(body)s, %(hash)s)

-- name: holes
SELECT from_seq, to_seq, adoption_id, body::text, hash FROM holes
WHERE partition = %(partition)s AND to_seq >= %(seq)s ORDER BY from_seq

-- name: all_holes
SELECT partition, body::text FROM holes ORDER BY partition, from_seq

-- name: hole_to_tell
-- What no adopt event has told of yet.
SELECT min(from_seq), max(to_seq) FROM holes
WHERE partition = %(partition)s AND adoption_id = %(adoption_id)s AND NOT EXISTS (
  SELECT FROM events e WHERE e.partition = %(partition)s AND e.type = 'adopt'
    AND e.body->'hole' IS NOT NULL AND e.seq > holes.to_seq)

-- name: beats
SELECT beat, previous FROM beats WHERE partition = %(partition)s

-- name: note_beat
INSERT INTO beats (partition, beat, previous) VALUES (%(partition)s, %(beat)s, %(previous)s)
ON CONFLICT ON CONSTRAINT beats_identity
DO UPDATE SET beat = EXCLUDED.beat, previous = EXCLUDED.previous, beat_at = now()

-- name: known_events
SELECT epoch, seq, body::text FROM events
WHERE partition = %(partition)s
  AND (epoch, seq) BETWEEN (%(first_epoch)s, %(first)s) AND (%(last_epoch)s, %(last)s)

-- name: copy_events
COPY events (partition, epoch, seq, type, occurred_at, body, hash) FROM STDIN

-- name: copy_movements
COPY movements (partition, epoch, seq, line, type, sku, location, quantity, on_hand_delta,
  held_delta, quarantined_delta, reservation_id, order_id, customer_id, reference, reason,
  occurred_at) FROM STDIN

-- name: add_to_balances
INSERT INTO balances (partition, sku, location, on_hand, held, quarantined, seq)
SELECT %(partition)s, * FROM unnest(%(skus)s::text[], %(locations)s::text[], %(on_hand)s::bigint[],
  %(held)s::bigint[], %(quarantined)s::bigint[], %(seqs)s::bigint[])
ON CONFLICT ON CONSTRAINT balances_identity
DO UPDATE SET on_hand = balances.on_hand + EXCLUDED.on_hand,
  held = balances.held + EXCLUDED.held,
  quarantined = balances.quarantined + EXCLUDED.quarantined,
  seq = EXCLUDED.seq

-- name: balances_of
SELECT b.sku, b.location, b.on_hand, b.held, b.quarantined, b.seq
FROM balances b
JOIN unnest(%(skus)s::text[], %(locations)s::text[]) AS asked (sku, location)
  USING (sku, location)
WHERE b.partition = %(partition)s

-- name: all_balances
SELECT sku, location FROM balances
WHERE partition = %(partition)s AND (sku, location) > (%(sku)s, %(location)s)
ORDER BY sku, location LIMIT %(limit)s

-- name: above_seq
SELECT coalesce(sum(on_hand_delta), 0)::bigint, coalesce(sum(held_delta), 0)::bigint,
  coalesce(sum(quarantined_delta), 0)::bigint
FROM movements
WHERE partition = %(partition)s AND sku = %(sku)s AND location = %(location)s
  AND seq > %(above)s AND seq <= %(up_to)s

-- name: movements_after
-- Of each partition what comes after its place, merged by time. One writer a partition commits its events in the
-- order of seq (and epoch, which never falls), so nothing appears below a place later on. told_at: the time,
-- but never back within a partition, so that a page never has a row without those before it.
SELECT partition, epoch, seq, line, type, sku, location, quantity, on_hand_delta, held_delta,
  quarantined_delta, reservation_id, order_id, reference, reason, occurred_at
FROM (
  SELECT m.*, max(m.occurred_at) OVER (PARTITION BY m.partition ORDER BY m.epoch, m.seq, m.line) AS told_at
  FROM positions p
  LEFT JOIN unnest(%(partitions)s::integer[], %(epochs)s::bigint[], %(seqs)s::bigint[],
    %(lines)s::integer[]) AS place (partition, epoch, seq, line) USING (partition)
  CROSS JOIN LATERAL (
    SELECT * FROM movements m
    WHERE m.partition = p.partition
      AND (m.epoch, m.seq, m.line) > (coalesce(place.epoch, 0), coalesce(place.seq, 0), coalesce(place.line, 0))
      AND (%(since)s::timestamptz IS NULL OR m.occurred_at >= %(since)s)
    ORDER BY m.epoch, m.seq, m.line LIMIT %(limit)s
  ) AS m
) AS page
ORDER BY told_at, partition, epoch, seq, line
LIMIT %(limit)s

-- name: movements_matching
-- The same with filters, in the order that their indexes have. A query of its own: without a filter only the primary
-- key, which has the epoch before the seq, gives a page; in this order the whole partition would be read and sorted.
SELECT partition, epoch, seq, line, type, sku, location, quantity, on_hand_delta, held_delta,
  quarantined_delta, reservation_id, order_id, reference, reason, occurred_at
FROM (
  SELECT m.*, max(m.occurred_at) OVER (PARTITION BY m.partition ORDER BY m.epoch, m.seq, m.line) AS told_at
  FROM positions p
  LEFT JOIN unnest(%(partitions)s::integer[], %(epochs)s::bigint[], %(seqs)s::bigint[],
    %(lines)s::integer[]) AS place (partition, epoch, seq, line) USING (partition)
  CROSS JOIN LATERAL (
    SELECT * FROM movements m
    WHERE m.partition = p.partition
      AND (m.seq, m.line) > (coalesce(place.seq, 0), coalesce(place.line, 0))
      AND (%(since)s::timestamptz IS NULL OR m.occurred_at >= %(since)s)
      AND (%(sku)s::text IS NULL OR m.sku = %(sku)s)
      AND (%(location)s::text IS NULL OR m.location = %(location)s)
      AND (%(type)s::text IS NULL OR m.type = %(type)s)
      AND (%(reservation_id)s::text IS NULL OR m.reservation_id = %(reservation_id)s)
      AND (%(order_id)s::text IS NULL OR m.order_id = %(order_id)s)
    ORDER BY m.seq, m.line LIMIT %(limit)s
  ) AS m
) AS page
ORDER BY told_at, partition, epoch, seq, line
LIMIT %(limit)s

-- name: places_since
-- Where in each partition the events of that time and later begin: times never run back within it.
SELECT p.partition, coalesce(e.epoch, p.epoch) AS epoch, coalesce(e.seq, p.seq + 1) AS seq
FROM positions p
LEFT JOIN LATERAL (
  SELECT epoch, seq FROM events e WHERE e.partition = p.partition AND e.occurred_at >= %(since)s
  ORDER BY e.occurred_at, e.epoch, e.seq LIMIT 1
) AS e ON true

-- name: reservations_begun
-- The first line of each reserve, and of each adopt event, which may tell of a reservation whose reserve the
-- ledger has lost; after the places, merged as movements_after is.
SELECT partition, epoch, seq, 1 AS line, reservation_id
FROM (
  SELECT m.*, max(m.occurred_at) OVER (PARTITION BY m.partition ORDER BY m.seq) AS told_at
  FROM positions p
  LEFT JOIN unnest(%(partitions)s::integer[], %(epochs)s::bigint[], %(seqs)s::bigint[],
    %(lines)s::integer[]) AS place (partition, epoch, seq, line) USING (partition)
  CROSS JOIN LATERAL (
    SELECT * FROM movements m
    WHERE m.partition = p.partition AND m.type IN ('reserve', 'adopt') AND m.line = 1
      AND (m.seq, m.line) > (coalesce(place.seq, 0), coalesce(place.line, 0))
      AND (%(order_id)s::text IS NULL OR m.order_id = %(order_id)s)
      AND (%(customer_id)s::text IS NULL OR m.customer_id = %(customer_id)s)
    ORDER BY m.seq LIMIT %(limit)s
  ) AS m
) AS page
ORDER BY told_at, partition, seq
LIMIT %(limit)s

-- name: events_of_reservations
-- In order. Extends have no movements.
SELECT e.partition, e.body::text, (extract(epoch FROM now()) * 1000)::bigint AS now_ms
FROM (
  SELECT partition, epoch, seq FROM movements WHERE reservation_id = ANY(%(ids)s::text[])
  UNION
  SELECT partition, epoch, seq FROM events
  WHERE type = 'extend' AND body->>'reservation_id' = ANY(%(ids)s::text[])
) AS found
JOIN events e USING (partition, epoch, seq)
ORDER BY e.partition, e.epoch, e.seq

-- name: live_of
SELECT reservation_id, order_id, customer_id, fingerprint, created_ms, deadline_ms, seq, lines
FROM live_reservations WHERE partition = %(partition)s AND reservation_id = ANY(%(ids)s::text[])

-- name: delete_live
DELETE FROM live_reservations
WHERE partition = %(partition)s AND reservation_id = ANY(%(ids)s::text[])

-- name: copy_live
COPY live_reservations (partition, reservation_id, order_id, customer_id, fingerprint, created_ms,
  deadline_ms, seq, lines) FROM STDIN

-- name: audit_partitions
-- Every partition that any of the tables has rows of, without reading the tables.
WITH RECURSIVE found (partition) AS (
  SELECT least((SELECT min(partition) FROM events), (SELECT min(partition) FROM movements),
    (SELECT min(partition) FROM positions), (SELECT min(partition) FROM balances),
    (SELECT min(partition) FROM holes),
    (SELECT min(partition) FROM live_reservations))
  UNION ALL
  SELECT least((SELECT min(e.partition) FROM events e WHERE e.partition > f.partition),
    (SELECT min(m.partition) FROM movements m WHERE m.partition > f.partition),
    (SELECT min(p.partition) FROM positions p WHERE p.partition > f.partition),
    (SELECT min(b.partition) FROM balances b WHERE b.partition > f.partition),
    (SELECT min(h.partition) FROM holes h WHERE h.partition > f.partition),
    (SELECT min(l.partition) FROM live_reservations l WHERE l.partition > f.partition))
  FROM found f WHERE f.partition IS NOT NULL
)
SELECT partition FROM found WHERE partition IS NOT NULL ORDER BY partition

-- name: audit_tables
SELECT c.relname, t.tgenabled, t.tgtype, t.tgqual IS NULL AND t.tgattr::text = '', p.prosrc,
  EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema()
LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = c.relname || '_append_only'
LEFT JOIN pg_proc p ON p.oid = t.tgfoid
WHERE c.relname = ANY(%(tables)s::text[]) AND c.relkind IN ('r', 'p')
ORDER BY c.relname

-- name: audit_events
SELECT epoch, seq, type, (extract(epoch FROM occurred_at) * 1000)::bigint, body::text, hash
FROM events WHERE partition = %(partition)s AND (epoch, seq) >= (%(epoch)s, %(seq)s)
ORDER BY epoch, seq

-- name: audit_movements
SELECT epoch, seq, line, type, sku, location, quantity, on_hand_delta, held_delta,
  quarantined_delta, reservation_id, order_id, customer_id, reference, reason,
  (extract(epoch FROM occurred_at) * 1000)::bigint
FROM movements WHERE partition = %(partition)s AND (epoch, seq) >= (%(epoch)s, %(seq)s)
ORDER BY epoch, seq, line

-- name: audit_holes
-- Those of before the part are before its first event.
SELECT h.from_seq, h.to_seq, h.adoption_id, h.body::text, h.hash FROM holes h
WHERE h.partition = %(partition)s AND h.to_seq > (
  SELECT coalesce(max(seq), 0) FROM (
    SELECT seq FROM events WHERE partition = %(partition)s AND (epoch, seq) < (%(epoch)s, %(seq)s)
    ORDER BY epoch DESC, seq DESC LIMIT 1) AS before)
ORDER BY h.from_seq

-- name: audit_position
SELECT epoch, seq, hash, stopped FROM positions WHERE partition = %(partition)s

-- name: audit_balances
SELECT sku, location, on_hand, held, quarantined, seq FROM balances
WHERE partition = %(partition)s AND seq >= %(seq)s ORDER BY sku COLLATE "C", location COLLATE "C"

-- name: audit_live
SELECT reservation_id, order_id, customer_id, fingerprint, created_ms, deadline_ms, seq, lines
FROM live_reservations WHERE partition = %(partition)s AND seq >= %(seq)s
ORDER BY reservation_id COLLATE "C"

-- name: audit_stale_live
SELECT l.reservation_id FROM live_reservations l
WHERE l.partition = %(partition)s AND l.seq < %(seq)s AND EXISTS (
  SELECT FROM movements m WHERE m.reservation_id = l.reservation_id
    AND m.partition = l.partition AND (m.epoch, m.seq) >= (%(epoch)s, %(seq)s))

-- name: audit_earlier
SELECT e.body::text FROM (
  SELECT DISTINCT partition, epoch, seq FROM movements
  WHERE reservation_id = %(reservation_id)s AND partition = %(partition)s
    AND (epoch, seq) < (%(epoch)s, %(seq)s)) AS m
JOIN events e USING (partition, epoch, seq)
ORDER BY epoch, seq

-- name: audit_oldest
SELECT epoch, seq FROM events WHERE partition = %(partition)s ORDER BY epoch, seq LIMIT 1

-- name: audit_last_up_to
SELECT epoch, seq, (extract(epoch FROM occurred_at) * 1000)::bigint FROM events
WHERE partition = %(partition)s AND epoch <= %(epoch)s ORDER BY epoch DESC, seq DESC LIMIT 1

-- name: audit_first_from
SELECT seq, (extract(epoch FROM occurred_at) * 1000)::bigint FROM events
WHERE partition = %(partition)s AND epoch = %(epoch)s AND seq >= %(seq)s ORDER BY seq LIMIT 1

-- name: audit_before
SELECT epoch, seq, hash FROM events
WHERE partition = %(partition)s AND (epoch, seq) < (%(epoch)s, %(seq)s)
ORDER BY epoch DESC, seq DESC LIMIT 1

-- name: has_migrations
SELECT to_regclass('schema_migrations') IS NOT NULL

-- name: known_migrations
SELECT version FROM schema_migrations

-- name: ledgers_elsewhere
SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'schema_migrations' AND n.nspname <> coalesce(current_schema(), '')
  AND EXISTS (SELECT FROM pg_class m WHERE m.relnamespace = n.oid AND m.relname = 'movements')
  AND EXISTS (SELECT FROM pg_settings WHERE name = 'search_path' AND source <> 'client')
ORDER BY n.nspname

-- name: owners
SELECT c.relname, r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
  AND c.relname = ANY(%(tables)s::text[])
ORDER BY c.relname

-- name: sequences_of
SELECT s.relname FROM pg_class t
JOIN pg_namespace n ON n.oid = t.relnamespace AND n.nspname = current_schema()
JOIN pg_depend d ON d.refobjid = t.oid AND d.refclassid = 'pg_class'::regclass
  AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
WHERE t.relname = %(table)s

-- name: trigger_functions
SELECT DISTINCT p.proname, r.rolname FROM pg_trigger t
JOIN pg_class c ON c.oid = t.tgrelid
JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema()
JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = n.oid
JOIN pg_roles r ON r.oid = p.proowner
WHERE c.relname = ANY(%(tables)s::text[]) AND NOT t.tgisinternal

-- name: roles_there
SELECT rolname FROM pg_roles WHERE rolname = ANY(%(names)s::text[])

-- name: login
SELECT rolcanlogin, rolsuper FROM pg_roles WHERE rolname = %(name)s

-- name: is_member
SELECT pg_has_role(%(name)s::name, %(group)s::name, 'USAGE')

-- name: lock_timeout
SELECT set_config('lock_timeout', %(timeout)s, true)

-- name: become
SELECT set_config('role', %(role)s, true)

-- name: my_rights
SELECT current_user::text, r.rolsuper, current_database()::text, current_schema()::text,
  pg_has_role(d.datdba, 'USAGE') AS owns_database,
  (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = current_schema())
FROM pg_roles r, pg_database d
WHERE r.rolname = current_user AND d.datname = current_database()

-- name: may_become_owner
SELECT pg_has_role('holdfast_owner'::name, %(right)s::text)

-- name: roles_reach_schema
SELECT has_schema_privilege('holdfast_owner', current_schema(), 'CREATE')
  AND has_schema_privilege('holdfast_writer', current_schema(), 'USAGE')
  AND has_schema_privilege('holdfast_reader', current_schema(), 'USAGE')

-- name: live_slice
SELECT reservation_id, order_id, customer_id, fingerprint, created_ms, deadline_ms, seq, lines
FROM live_reservations WHERE partition = %(partition)s AND reservation_id > %(after)s
ORDER BY reservation_id LIMIT %(limit)s

-- name: leaked_holds
SELECT coalesce(b.sku, l.sku), coalesce(b.location, l.location), coalesce(b.on_hand, 0),
  coalesce(b.held, 0), coalesce(b.quarantined, 0), coalesce(b.seq, 0), coalesce(l.held, 0)
FROM (SELECT * FROM balances WHERE partition = %(partition)s) AS b
FULL JOIN (
  SELECT line->>0 AS sku, line->>1 AS location, sum((line->>2)::bigint
    - coalesce((line->>3)::bigint, 0) - coalesce((line->>4)::bigint, 0))::bigint AS held
  FROM live_reservations, json_array_elements(lines) AS line
  WHERE partition = %(partition)s GROUP BY 1, 2
) AS l ON l.sku = b.sku AND l.location = b.location
WHERE coalesce(b.held, 0) <> coalesce(l.held, 0)
ORDER BY 1, 2

-- name: held_by
SELECT reservation_id, sku, location, sum(held_delta)::bigint FROM movements
WHERE partition = %(partition)s AND reservation_id = ANY(%(ids)s::text[])
GROUP BY reservation_id, sku, location HAVING sum(held_delta) <> 0

-- name: confirmed_by
SELECT reservation_id, sku, location, sum(quantity)::bigint, min(customer_id) FROM movements
WHERE reservation_id = ANY(%(ids)s::text[]) AND type = 'confirm'
GROUP BY reservation_id, sku, location

-- name: movements_of_references
SELECT e.body->>'movement_id', m.reference, m.type, m.sku, m.location, m.quantity
FROM movements m
JOIN unnest(%(references)s::text[]) AS asked (reference) USING (reference)
JOIN events e USING (partition, epoch, seq)
WHERE m.type IN ('receive', 'return', 'damage') AND m.reservation_id IS NULL

-- name: received_as
SELECT DISTINCT sku FROM movements
WHERE sku = ANY(%(skus)s::text[]) AND location = %(location)s AND type = 'receive'
  AND reference = %(reference)s

-- name: events_of_reservation
SELECT body::text FROM events
WHERE partition = %(partition)s AND body->>'reservation_id' = %(reservation_id)s
  AND (epoch, seq) >= (SELECT max(epoch), max(seq) FROM movements WHERE partition = %(partition)s
    AND reservation_id = %(reservation_id)s AND type = 'reserve')
ORDER BY epoch, seq

-- name: lock_repair
SELECT pg_try_advisory_lock(1215193671, %(partition)s)

-- name: unlock_repair
SELECT pg_advisory_unlock(1215193671, %(partition)s)

-- name: next_reconciliation
SELECT nextval('reconciliations_reconciliation_id_seq')

-- name: keep_reconciliation
INSERT INTO reconciliations (reconciliation_id, partition, started_at, finished_at, duration_ms,
  checked, reservations_checked, differences, repaired, repaired_by, trigger, clean)
VALUES (%(reconciliation_id)s, %(partition)s, %(started_at)s, now(), %(duration_ms)s, %(checked)s,
  %(reservations_checked)s, %(differences)s, %(repaired)s, %(repaired_by)s, %(trigger)s, %(clean)s)

-- name: latest_reconciliation
SELECT reconciliation_id, partition, started_at, finished_at, duration_ms, checked,
  reservations_checked, differences, repaired, repaired_by, trigger, clean,
  (SELECT coalesce(json_agg(h.body ORDER BY h.from_seq), '[]') FROM holes h
   WHERE h.partition = r.partition) AS holes
FROM reconciliations r ORDER BY reconciliation_id DESC LIMIT 1

-- name: event_up_to
SELECT epoch, seq, (extract(epoch FROM occurred_at) * 1000)::bigint, type FROM events
WHERE partition = %(partition)s AND (epoch, seq) <= (%(epoch)s, %(seq)s)
ORDER BY epoch DESC, seq DESC LIMIT 1

-- name: events_from
SELECT epoch, seq, body::text FROM events
WHERE partition = %(partition)s AND (epoch, seq) >= (%(epoch)s, %(seq)s) ORDER BY epoch, seq

-- name: oldest_live
SELECT min(created_ms) FROM live_reservations WHERE partition = %(partition)s

-- name: restore_earlier
SELECT epoch, seq FROM (
  SELECT DISTINCT ON (reservation_id) epoch, seq FROM movements
  WHERE partition = %(partition)s AND type = 'reserve' AND (epoch, seq) < (%(epoch)s, %(seq)s)
    AND reservation_id IN (
      SELECT reservation_id FROM movements
      WHERE partition = %(partition)s AND (epoch, seq) >= (%(epoch)s, %(seq)s)
        AND type IN ('confirm', 'release', 'expire', 'repair') AND reservation_id IS NOT NULL
      EXCEPT
      SELECT reservation_id FROM movements
      WHERE partition = %(partition)s AND (epoch, seq) >= (%(epoch)s, %(seq)s) AND type = 'reserve')
  ORDER BY reservation_id, epoch DESC, seq DESC) AS begun
ORDER BY epoch, seq LIMIT 1

-- name: restore_stock
SELECT b.sku, b.location, b.on_hand - coalesce(w.on_hand, 0), b.held - coalesce(w.held, 0),
  b.quarantined - coalesce(w.quarantined, 0), CASE WHEN w.sku IS NULL THEN b.seq ELSE 0 END
FROM balances b
LEFT JOIN (
  SELECT sku, location, sum(on_hand_delta)::bigint AS on_hand, sum(held_delta)::bigint AS held,
    sum(quarantined_delta)::bigint AS quarantined
  FROM movements WHERE partition = %(partition)s AND (epoch, seq) >= (%(epoch)s, %(seq)s)
  GROUP BY sku, location
) AS w USING (sku, location)
WHERE b.partition = %(partition)s

-- name: balances
SELECT sku, location, on_hand, held, quarantined, seq FROM balances WHERE partition = %(partition)s

-- name: live_deadlines
SELECT reservation_id, deadline_ms FROM live_reservations WHERE partition = %(partition)s ORDER BY seq

-- name: last_reconciliations
SELECT asked.partition, last.finished_at, last.clean, json_array_length(last.differences) AS differences,
  (SELECT r.finished_at FROM reconciliations r WHERE r.partition = asked.partition AND r.clean
   ORDER BY r.reconciliation_id DESC LIMIT 1) AS last_success_at
FROM unnest(%(partitions)s::integer[]) AS asked (partition)
CROSS JOIN LATERAL (
  SELECT finished_at, clean, differences FROM reconciliations r
  WHERE r.partition = asked.partition ORDER BY r.reconciliation_id DESC LIMIT 1
) AS last

-- name: quarantined
SELECT q.quarantine_id, q.seq, d.discarded_by, d.reason
FROM quarantine q LEFT JOIN quarantine_discards d USING (quarantine_id)
WHERE q.partition = %(partition)s AND q.source = %(source)s AND q.topic_id = %(topic_id)s
  AND q.place = %(place)s AND q.raw_sha256 = sha256(%(raw)s::bytea)

-- name: keep_quarantined
INSERT INTO quarantine (partition, source, topic_id, place, raw, why, epoch, seq, last_seq)
VALUES (%(partition)s, %(source)s, %(topic_id)s, %(place)s, %(raw)s, %(why)s, %(epoch)s, %(seq)s,
  %(last_seq)s)
ON CONFLICT ON CONSTRAINT quarantine_once DO NOTHING

-- name: quarantine
SELECT q.quarantine_id, q.partition, q.source, q.topic_id, q.place, q.raw, q.why, q.epoch, q.seq,
  q.last_seq, q.first_seen_at, CASE
    WHEN d.quarantine_id IS NOT NULL THEN 'discarded'
    WHEN p.quarantine_id IS DISTINCT FROM q.quarantine_id AND p.seq > q.seq THEN 'passed'
    ELSE 'open' END,
  p.quarantine_id IS NOT DISTINCT FROM q.quarantine_id, d.discarded_by, d.reason, d.discarded_at
FROM quarantine q
LEFT JOIN quarantine_discards d USING (quarantine_id)
LEFT JOIN positions p ON p.partition = q.partition
WHERE %(quarantine_id)s::bigint IS NULL OR q.quarantine_id = %(quarantine_id)s
ORDER BY q.quarantine_id

-- name: lock_position
SELECT FROM positions WHERE partition = %(partition)s FOR UPDATE

-- name: discard_quarantined
INSERT INTO quarantine_discards (quarantine_id, discarded_by, reason)
VALUES (%(quarantine_id)s, %(by)s, %(reason)s)

-- name: type_of
SELECT type FROM events WHERE partition = %(partition)s AND seq = %(seq)s
