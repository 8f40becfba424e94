-- Indexes for what is asked of the ledger over HTTP. The partition comes first: whoever has read a partition
-- to its end must not walk over the rows of the others to see that. seq rises in the order of commits.

DROP INDEX movements_by_stock;
CREATE INDEX movements_by_sku ON movements (partition, sku, seq, location);
CREATE INDEX movements_by_location ON movements (partition, location, seq);
CREATE INDEX movements_by_type ON movements (partition, type, seq);
-- One row a reservation: the first line of its reserve (or of what a ledger took over that had lost that).
CREATE INDEX movements_by_customer ON movements (partition, customer_id, seq)
    WHERE customer_id IS NOT NULL AND type IN ('reserve', 'adopt') AND line = 1;
CREATE INDEX events_by_time ON events (partition, occurred_at);
-- Extends have no movements to find them by.
CREATE INDEX events_extends ON events ((body->>'reservation_id')) WHERE type = 'extend';

-- Who asked for a repair.
ALTER TABLE reconciliations ADD COLUMN repaired_by text;
