-- How far the outbox is acknowledged: what is up to there is safe elsewhere (Kafka has committed it, or the
-- ledger has). Some of that stays in the outbox for a while, for a ledger that falls back by seconds.
--- @include open.lua
local function has_after(epoch, seq)
  return #redis.call('XRANGE', KEYS[3], integer(epoch) .. '-' .. integer(seq + 1), '+', 'COUNT', 1) > 0
end

-- Where no entry follows, all is acknowledged: also what was replayed, and so was never told to the outbox.
local function note_acknowledged(epoch, seq, bytes)
  if not has_after(epoch, seq) then
    seq, bytes = head.seq, head.written_bytes
  end
  head.acknowledged_seq, head.acknowledged_bytes = seq, bytes
  redis.call('HSET', KEYS[1], 'acknowledged_epoch', integer(epoch), 'acknowledged_seq', integer(seq),
    'acknowledged_bytes', integer(bytes))
end

local function acknowledged_epoch()
  return whole(redis.call('HGET', KEYS[1], 'acknowledged_epoch')) or 0
end

-- Never back, and never beyond head: a trimmer that was killed comes again with what it knows.
local function acknowledge(epoch, seq, bytes)
  note_acknowledged(math.max(epoch, acknowledged_epoch()),
    math.max(math.min(seq, head.seq), head.acknowledged_seq),
    math.min(head.acknowledged_bytes + bytes, head.written_bytes))
end

-- The ledger fell back to here, and what is kept is not safe any more; how many bytes of it is not known.
local function take_back_acknowledged(epoch, seq)
  note_acknowledged(epoch, math.max(seq, head.trimmed_seq), head.trimmed_bytes)
end

local function take_away(epoch, seq, kept_bytes)
  redis.call('XTRIM', KEYS[3], 'MINID', integer(epoch) .. '-' .. integer(seq + 1))
  local all = redis.call('XLEN', KEYS[3]) == 0
  local trimmed_seq = all and head.seq or math.max(head.trimmed_seq, math.min(seq, head.seq))
  local trimmed_bytes = all and head.written_bytes
    or math.max(head.trimmed_bytes, head.acknowledged_bytes - kept_bytes)
  redis.call('HSET', KEYS[1], 'trimmed_seq', integer(trimmed_seq), 'trimmed_bytes', integer(trimmed_bytes))
end
