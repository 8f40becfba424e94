-- Events of this call, written as one outbox entry whose id is the epoch-seq of the last one.
-- The entry's field `events` is a msgpack array of events (engine/events.py reads it).
--- @include keys.lua
--- @include open.lua
local events = {}

local function next_seq()
  head.seq = head.seq + 1
  return head.seq
end

local function emit(packed)
  events[#events + 1] = packed
end

local function write_outbox()
  if #events == 0 then
    return
  end
  redis.call('HSET', KEYS[1], 'seq', integer(head.seq), 'last_ms', integer(head.now))
  redis.call('XADD', KEYS[3], integer(head.epoch) .. '-' .. integer(head.seq),
    'events', '\221' .. struct.pack('>I4', #events) .. table.concat(events))
end
