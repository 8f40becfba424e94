#!lua
-- Hold units of one or more lines for each command, until its deadline: all lines or none.
-- A command that falls short first takes back what is due in its partition.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack, flat: reservation_id, ttl_ms, bytes of its tail, candidates, how many values of
--                   lines, lines; reservation_id, …. Lines flat: sku, location or '', quantity; candidates: 0,
--                   or a list of locations a line, in order of preference
--       2 tails     one after the other (lua/lib/reservation.lua), each with the lines of its command
--       3 retention_ms  how long an ended reservation is kept
--       4 outbox_max_events  with as many in the outbox no new id is held
--       5 outbox_max_bytes   the same in bytes
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         1: reserved (or {reserved, value} where sourcing chose the locations) |
--         -n: insufficient_stock of its only line, of which n are available |
--         {insufficient_stock, {sku, location or '', requested, available, sku, …}} |
--         {reservation_mismatch} | {already_released, value} | {reservation_expired, value} |
--         {already_reserved, value} | {backlog_full} | {unknown_sku, sku} | more_due;
--         partition_closed for the whole call (engine/statuses.py)
--- @include lib/writes_unless_full.lua
--- @include lib/absent.lua
--- @include lib/asked.lua
--- @include lib/backlog.lua
--- @include lib/batch.lua
--- @include lib/finish.lua
--- @include lib/hold.lua
--- @include lib/repeated.lua
--- @include lib/sourcing.lua
--- @include lib/take_back.lua
local values, tails, retention_ms = cmsgpack.unpack(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local TAKE_BACK_MAX, looked_at = 500, 0

if not is_open() then
  return 'partition_closed'
end
refuse_when_full()
local is_full = is_backlog_full(tonumber(ARGV[4]), tonumber(ARGV[5]))
if is_full and #values == 0 then
  return 'backlog_full' -- nothing to reserve: whoever asks so wants to know what a reserve would be told
end

local starts, tail_ends, sourced = read_asked(values, #tails)

local function tail_of(number)
  return string.sub(tails, tail_ends[number - 1] + 1, tail_ends[number])
end

-- The answer where this id is kept already; nil where it isn't.
local function replay(at, number)
  write_holds()
  local r = read_reservation(values[at])
  if r == nil then
    return nil
  end
  return repeated(r, tail_of(number), head.now)
end

local function hold_it(at, number, key)
  local id = values[at]
  local tail = sourced[at] and sourced_tail(tail_of(number)) or tail_of(number)
  local value = write_hold(id, key or reservation_key(id), values[at + 1], tail)
  held_here[id] = true
  return sourced[at] and {'reserved', value} or 1
end

local function decide(at, number)
  local key, count = absent_key(values, starts, number), values[at + 4]
  local known = not key and replay(at, number)
  if known then
    return known
  elseif is_full then
    lines_done = lines_done + 1
    return {'backlog_full'}
  end
  while true do
    local enough, unknown_sku = source(values, at + 5, at + 4 + count, values[at + 3])
    if too_much then
      too_much = false
      return 'more_due'
    elseif enough then
      return hold_it(at, number, key)
    elseif unknown_sku or nothing_due then
      lines_done = lines_done + count / 3
      return unknown_sku and {'unknown_sku', unknown_sku} or count == 3 and -shorts[4]
        or {'insufficient_stock', shortages()}
    elseif looked_at >= TAKE_BACK_MAX or lines_done >= LINES_MAX then
      return 'more_due'
    end
    write_holds()
    looked_at = looked_at + take_back(TAKE_BACK_MAX - looked_at, retention_ms)
  end
end

local answers = decide_each(values, starts, decide)
write_holds()
write_due_lists()
return finish(answers)
