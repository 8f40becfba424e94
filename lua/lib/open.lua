-- Is this partition open, on this very server? And what time is it there?
-- Fills `head`; `now` never runs back, since last_ms is kept with every write.
--- @include keys.lua
local head = {}

-- Is this the process with that run_id, and are its data still those that it had with that replid?
-- (Found as plain text: a pattern would try every place of it, in each call of each script.)
local function runs_as(run_id)
  return string.find(redis.call('INFO', 'server'), 'run_id:' .. run_id .. '\r', 1, true) ~= nil
end

-- A server that becomes a replica has other data, and keeps its master's replid as the second one when it is
-- promoted again, without ever being restarted. A master only takes a new id, and no second one, when its
-- first replica attaches or its last one has been gone for long (repl-backlog-ttl, at the earliest that long
-- after a promotion): its data are its own.
local NO_SECOND = 'master_replid2:' .. string.rep('0', 40) .. '\r'

local function replication_says(text)
  return string.find(redis.call('INFO', 'replication'), text, 1, true) ~= nil
end

local function is_master()
  return replication_says('role:master\r')
end

local function replicates_as(replid)
  return replication_says('master_replid:' .. replid .. '\r')
end

local function has_data_of(replid)
  return replicates_as(replid) or (is_master() and replication_says(NO_SECOND))
end

local function whole(text)
  if text == '0' then
    return 0 -- most often, and three times as fast
  end
  return text and string.find(text, '^%-?%d+$') and #text <= 16 and tonumber(text) or nil
end

local function read_head()
  local fields = redis.pcall('HMGET', KEYS[1], 'epoch', 'seq', 'run_id', 'last_ms', 'replid',
    'trimmed_seq', 'written_bytes', 'trimmed_bytes', 'acknowledged_seq', 'acknowledged_bytes')
  if fields.err then
    return false
  end
  local time = redis.call('TIME')
  local server_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  head.epoch, head.seq = whole(fields[1]), whole(fields[2])
  head.run_id, head.replid = fields[3], fields[5]
  head.server_ms, head.now = server_ms, math.max(server_ms, whole(fields[4]) or 0)
  head.trimmed_seq = whole(fields[6]) or head.seq
  head.written_bytes, head.trimmed_bytes = whole(fields[7]) or 0, whole(fields[8]) or 0
  -- An older head tells only what was trimmed.
  head.acknowledged_seq = math.max(whole(fields[9]) or 0, head.trimmed_seq or 0)
  head.acknowledged_bytes = math.max(whole(fields[10]) or 0, head.trimmed_bytes)
  return head.epoch ~= nil and head.seq ~= nil
end

local function is_open()
  return read_head() and head.run_id and runs_as(head.run_id)
    and (not head.replid or has_data_of(head.replid))
end
