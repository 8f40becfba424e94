-- Events of this call, written as one outbox entry whose id is the epoch-seq of the last one.
-- The entry's field `events` is a msgpack array of events (engine/events.py reads it).
--- @include keys.lua
--- @include open.lua
local events, event_count = {}, 0

local function next_seq()
  head.seq = head.seq + 1
  return head.seq
end

-- One event, in up to four pieces that are joined once, at the end of the call.
local function emit(...)
  event_count = event_count + 1
  for i = 1, select('#', ...) do
    events[#events + 1] = select(i, ...)
  end
end

local function write_outbox()
  if event_count == 0 then
    return
  end
  local bytes = '\221' .. struct.pack('>I4', event_count) .. table.concat(events)
  redis.call('HSET', KEYS[1], 'seq', integer(head.seq), 'last_ms', integer(head.now),
    'written_bytes', integer(head.written_bytes + #bytes))
  redis.call('XADD', KEYS[3], integer(head.epoch) .. '-' .. integer(head.seq), 'events', bytes)
end
