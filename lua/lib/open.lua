-- Is this partition open, on this very server? And what time is it there?
-- Fills `head`; `now` never runs back, since last_ms is kept with every write.
--- @include keys.lua
local head = {}

-- The identity of the process, and of the line of replication its data are from: the latter changes
-- where a server becomes a replica and is promoted again, without ever being restarted.
local function server_run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function server_replid()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

local function whole(text)
  if text == '0' then
    return 0 -- most often, and three times as fast
  end
  return text and string.find(text, '^%-?%d+$') and #text <= 16 and tonumber(text) or nil
end

local function read_head()
  local fields = redis.pcall('HMGET', KEYS[1], 'epoch', 'seq', 'run_id', 'last_ms', 'replid',
    'trimmed_seq', 'written_bytes', 'trimmed_bytes')
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
  return head.epoch ~= nil and head.seq ~= nil
end

local function is_open()
  return read_head() and head.run_id == server_run_id()
    and (not head.replid or head.replid == server_replid())
end
