-- Does the outbox hold as much as it may? Then nothing begins that will need more events, while what
-- has begun can end. What waits in it follows from head: what was written less what is acknowledged.
--- @include open.lua
local function is_backlog_full(events_max, bytes_max)
  return head.seq - head.acknowledged_seq >= events_max
    or head.written_bytes - head.acknowledged_bytes >= bytes_max
end
