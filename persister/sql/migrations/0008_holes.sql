-- Events that this ledger has lost for good, in its own words and in its chain: the hash of a hole is SHA-256
-- of the hash before it and of its body, and the next event's goes on from there.
CREATE TABLE holes (
    partition   integer NOT NULL,
    from_seq    bigint  NOT NULL,
    to_seq      bigint  NOT NULL,
    adoption_id bigint  NOT NULL,
    body        json    NOT NULL,
    hash        bytea   NOT NULL,
    CONSTRAINT holes_identity PRIMARY KEY (partition, from_seq),
    CONSTRAINT holes_adoption FOREIGN KEY (adoption_id) REFERENCES adoptions (adoption_id),
    CONSTRAINT holes_range CHECK (from_seq BETWEEN 1 AND to_seq)
);
CREATE TRIGGER holes_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON holes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE holes ENABLE ALWAYS TRIGGER holes_append_only;

-- The adoption that was begun and is not finished: until then nobody opens the partition.
ALTER TABLE positions ADD COLUMN adopting bigint;
