#!lua
-- Hold units of one or more lines for each command, until its deadline: all lines or none.
-- A command that falls short first takes back what is due in its partition.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack [[reservation_id, ttl_ms, lines, body, candidates?], …]; lines flat: sku,
--                   location or '', quantity; body: lua/lib/reservation.lua, with the same lines;
--                   candidates: a list of locations a line, in order of preference
--       2 retention_ms  how long an ended reservation is kept
--       3 outbox_max_events  with as many in the outbox all are refused
--       4 outbox_max_bytes   the same in bytes
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         reserved (a word, or {reserved, value} where sourcing chose the locations) |
--         {already_reserved, value} | {reservation_mismatch} | {unknown_sku, sku} |
--         {insufficient_stock, {{sku, location or '', requested, available}, …}} | more_due;
--         partition_closed | backlog_full for the whole call (engine/statuses.py)
--- @include lib/writes_unless_full.lua
--- @include lib/backlog.lua
--- @include lib/batch.lua
--- @include lib/finish.lua
--- @include lib/hold.lua
--- @include lib/sourcing.lua
--- @include lib/take_back.lua
local commands, retention_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])
local TAKE_BACK_MAX, QUANTITY_MAX = 500, 1000000
local looked_at, lines_short = 0, 0

if not is_open() then
  return 'partition_closed'
end
refuse_when_full()
if is_backlog_full(tonumber(ARGV[3]), tonumber(ARGV[4])) then
  return 'backlog_full'
end

for c = 1, #commands do
  local command = commands[c]
  local lines = command[3]
  for i = 3, #lines, 3 do
    if not is_quantity(lines[i]) or lines[i] > QUANTITY_MAX then
      return redis.error_reply('ERR quantity ' .. tostring(lines[i]) .. ' is not in 1..1000000')
    end
    if lines[i - 1] == '' then
      command.sourced = true
    end
  end
  if #lines == 0 or #lines % 3 ~= 0 or not is_quantity(command[2]) then
    return redis.error_reply('ERR a reserve needs lines of three values and a ttl_ms of 1 or more')
  end
end

-- The answer where this id is kept already; nil where it isn't.
local function replay(command)
  local r = read_reservation(command[1])
  if r == nil then
    return nil
  end
  if r and r.body[3] == cmsgpack.unpack(command[4])[3] then
    return {'already_reserved', r.value}
  end
  return {'reservation_mismatch'}
end

local function decide(command)
  while true do
    local takes, short, unknown_sku = source(command[3], command[5])
    local answer = takes and write_hold(command, takes) or replay(command)
    if answer then
      return answer
    elseif unknown_sku then
      lines_short = lines_short + #command[3] / 3
      return {'unknown_sku', unknown_sku}
    elseif nothing_due then
      lines_short = lines_short + #command[3] / 3
      return {'insufficient_stock', short}
    elseif looked_at >= TAKE_BACK_MAX or lines_read >= LINES_MAX then
      return 'more_due'
    end
    looked_at = looked_at + take_back(TAKE_BACK_MAX - looked_at, retention_ms)
  end
end

local answers = decide_each(commands, decide, function() return lines_held + lines_short + lines_read end)
write_due_lists()
return finish(answers)
