#!lua
-- Change what is physically there: receipts, returns, damage, transfers, counts, quality checks.
-- Receive, return and count create the record of a sku; the others need one.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 commands  msgpack, flat: movement_id, type, sku, location, quantity, to_location or '',
--                   reference or '', reason or '', expected_on_hand or -1, 1 if a return goes back
--                   into sale, fingerprint, …
--       2 retention_ms  how long an applied movement is remembered
--       3 outbox_max_events  with as many in the outbox receive is refused
--       4 outbox_max_bytes   the same in bytes
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         {already_applied, record} | {request_mismatch} | {backlog_full} | {unknown_sku, sku} |
--         {stale_expectation, on_hand} | {would_break_holds, on_hand, held, quarantined} |
--         {invalid_request, sku} (on_hand would pass 10^15) | {applied, record} | more_due;
--         partition_closed for the whole call (engine/statuses.py). A record is the msgpack of
--         {fingerprint, at_ms, epoch, seq, on_hand, held, quarantined, safety_stock} of sku and
--         location after the movement
--- @include lib/writes_unless_full.lua
--- @include lib/backlog.lua
--- @include lib/batch.lua
--- @include lib/finish.lua
--- @include lib/movement.lua
local values, retention_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])
local WIDTH = 11

if not is_open() then
  return 'partition_closed'
end
refuse_when_full()
local is_full = is_backlog_full(tonumber(ARGV[3]), tonumber(ARGV[4]))

for at = 1, #values, WIDTH do
  local kind, quantity = values[at + 1], values[at + 4]
  local least = kind == 'count' and 0 or 1
  if not (CHANGES[kind] and type(quantity) == 'number' and quantity % 1 == 0 and quantity >= least
      and quantity <= 1000000000) then
    return redis.error_reply('ERR no movement ' .. tostring(kind) .. ' of ' .. tostring(quantity))
  end
end

local function decide(at)
  local c = {unpack(values, at, at + WIDTH - 1)}
  local id, kind, sku, location, fingerprint = c[1], c[2], c[3], c[4], c[11]
  lines_done = lines_done + 1
  local known = applied_before(id, fingerprint)
  if known then
    return known
  elseif is_full and kind == 'receive' then
    return {'backlog_full'}
  end
  local s = stock(sku, location)
  if not s and not CREATES[kind] and redis.call('EXISTS', locations_key(sku)) == 0 then
    return {'unknown_sku', sku}
  end
  local on_hand, quarantined, refusal = change_of(c, s or NOTHING)
  if refusal then
    return refusal
  end
  begin_writes()
  local seq = next_seq()
  local lines = {sku, location, c[5], on_hand, 0, quarantined}
  s = s or create_stock(sku, location)
  apply(s, on_hand, quarantined, seq)
  if kind == 'transfer' then
    apply(stock(sku, c[6]) or create_stock(sku, c[6]), c[5], 0, seq)
    lines = {sku, location, c[5], -c[5], 0, 0, sku, c[6], c[5], c[5], 0, 0}
  end
  local record = cmsgpack.pack({fingerprint, head.now, head.epoch, seq, s.on_hand, s.held,
    s.quarantined, s.safety_stock})
  redis.call('SET', movement_request_key(id), record, 'PX', retention_ms)
  emit(cmsgpack.pack({'move', kind, seq, head.now, id, fingerprint, c[7], c[8], lines}))
  return {'applied', record}
end

return finish(decide_each(values, starts_every(WIDTH, values), decide))
