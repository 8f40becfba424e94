-- The append-only ledger. on_hand, held and quarantined of a sku at a location are the sums of the
-- deltas in movements; balances keeps those sums along, in the same transaction.

CREATE TABLE events (
    partition   integer     NOT NULL,
    epoch       bigint      NOT NULL,
    seq         bigint      NOT NULL,
    type        text        NOT NULL,
    occurred_at timestamptz NOT NULL,
    body        json        NOT NULL,
    CONSTRAINT events_identity PRIMARY KEY (partition, epoch, seq),
    CONSTRAINT events_seq_positive CHECK (epoch > 0 AND seq > 0)
);

CREATE TABLE movements (
    partition         integer     NOT NULL,
    epoch             bigint      NOT NULL,
    seq               bigint      NOT NULL,
    line              integer     NOT NULL,
    type              text        NOT NULL,
    sku               text        NOT NULL,
    location          text        NOT NULL,
    quantity          bigint      NOT NULL,
    on_hand_delta     bigint      NOT NULL,
    held_delta        bigint      NOT NULL,
    quarantined_delta bigint      NOT NULL,
    reservation_id    text,
    order_id          text,
    customer_id       text,
    reference         text,
    reason            text,
    occurred_at       timestamptz NOT NULL,
    CONSTRAINT movements_identity PRIMARY KEY (partition, epoch, seq, line),
    CONSTRAINT movements_quantity_range CHECK (quantity BETWEEN 0 AND 1000000000)
);

CREATE INDEX movements_by_stock ON movements (sku, location, seq);
CREATE INDEX movements_by_reservation ON movements (reservation_id) WHERE reservation_id IS NOT NULL;
CREATE INDEX movements_by_order ON movements (order_id) WHERE order_id IS NOT NULL;

-- How far the ledger has come; moves in the transaction that writes the rows. stopped says why a
-- partition must not go on (a gap, a different event under a known identity).
CREATE TABLE positions (
    partition  integer     NOT NULL,
    epoch      bigint      NOT NULL,
    seq        bigint      NOT NULL,
    stopped    text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT positions_identity PRIMARY KEY (partition)
);

CREATE TABLE balances (
    partition   integer NOT NULL,
    sku         text    NOT NULL,
    location    text    NOT NULL,
    on_hand     bigint  NOT NULL,
    held        bigint  NOT NULL,
    quarantined bigint  NOT NULL,
    seq         bigint  NOT NULL,
    CONSTRAINT balances_identity PRIMARY KEY (partition, sku, location)
);
