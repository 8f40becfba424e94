-- Where in Kafka the event after the position stands; null while it was never read from there. The
-- topic's id tells whether it still is the topic the offset was read from.
ALTER TABLE positions ADD COLUMN kafka_offset bigint;
ALTER TABLE positions ADD COLUMN kafka_topic_id text;
