-- Events of this call, written as one outbox entry whose id is the epoch-seq of the last one.
-- The entry's field `events` is a msgpack array of events (engine/events.py reads it).
--- @include keys.lua
--- @include open.lua
local events, event_count, pieces = {''}, 0, 1 -- the first piece will be the head of the array

local function next_seq()
  head.seq = head.seq + 1
  return head.seq
end

-- One event, in three pieces that are joined once, at the end of the call.
local function emit(first, second, third)
  local n = pieces
  events[n + 1], events[n + 2], events[n + 3] = first, second or '', third or ''
  pieces, event_count = n + 3, event_count + 1
end

local function write_outbox()
  if event_count == 0 then
    return
  end
  events[1] = '\221' .. struct.pack('>I4', event_count)
  local bytes = table.concat(events)
  redis.call('HSET', KEYS[1], 'seq', integer(head.seq), 'last_ms', integer(head.now),
    'written_bytes', integer(head.written_bytes + #bytes))
  redis.call('XADD', KEYS[3], integer(head.epoch) .. '-' .. integer(head.seq), 'events', bytes)
end
