-- The repairs of lua/repair.lua. Each answers the seq of its event, or nil where what it would mend is
-- no longer as it was judged.
--- @include due.lua
--- @include outbox.lua
--- @include reservation.lua
--- @include stock.lua

-- Lines flat: sku, location, quantity and the deltas of on_hand, held, quarantined. Those of a drift add
-- up to 0: found, and taken back.
local function tell(seq, reason, lines, id, body, state)
  emit(cmsgpack.pack({'repair', seq, head.now, id or '', body and body[1] or '', body and body[2] or '',
    state or -1, reason, lines}))
  return seq
end

local function both_ways(lines, sku, location, on_hand, held, quarantined)
  local most = math.max(math.abs(on_hand), math.abs(held), math.abs(quarantined))
  local quantity = math.min(most, 1000000000)
  for _, sign in ipairs({1, -1}) do
    for _, value in ipairs({sku, location, quantity, sign * on_hand, sign * held, sign * quarantined}) do
      lines[#lines + 1] = value
    end
  end
end

local function create(reason, sku, location)
  local s, key = stock(sku, location), stock_key(sku, location)
  local kept = redis.pcall('HMGET', key, 'seq', 'safety_stock', 'reorder_point') -- an error has none of them
  if s and not s.damaged and whole(kept[1]) then
    return nil
  end
  begin_writes()
  redis.call('DEL', key)
  s = create_stock(sku, location)
  s.created, s.moved, s.safety_stock = false, true, whole(kept[2]) or 0
  s.available = -s.safety_stock
  redis.call('HSET', key, 'safety_stock', integer(s.safety_stock), 'reorder_point',
    integer(whole(kept[3]) or 0))
  if type(redis.pcall('SADD', locations_key(sku), location)) == 'table' then
    tell_damaged(locations_key(sku))
  end
  local seq = next_seq()
  touch(s, seq)
  return tell(seq, reason, {sku, location, 0, 0, 0, 0})
end

local function correct(reason, sku, location, on_hand, held, quarantined)
  local s = stock(sku, location)
  if not s or s.damaged then
    return nil
  end
  begin_writes()
  local seq, lines = next_seq(), {}
  s.on_hand, s.held, s.quarantined = s.on_hand - on_hand, s.held - held, s.quarantined - quarantined
  s.available, s.moved = s.available - on_hand + held + quarantined, true
  touch(s, seq)
  both_ways(lines, sku, location, on_hand, held, quarantined)
  return tell(seq, reason, lines)
end

-- The reservation that the ledger has, as this script would have read it.
local function from_ledger(id, created, deadline, parts, tail)
  local r = with_tail(id, created, tail)
  r.deadline, r.parts = deadline, parts
  return r
end

local function write_ended(r, seq, parts, retention_ms)
  redis.call('SET', r.key, pack_reservation(r, RELEASED, r.deadline, seq, parts), 'PX', retention_ms)
end

-- All that is left counted as released.
local function all_released(r)
  local parts = r.parts
  for at = 1, parts and #parts or 0, 2 do
    parts[at + 1] = r.body[4][(at + 1) / 2 * 3] - parts[at]
  end
  return parts
end

local function give_back(reason, retention_ms, id, ...)
  if read_reservation(id) then
    return nil
  end
  begin_writes()
  local r, seq, lines = from_ledger(id, ...), next_seq(), {}
  for i = 1, #r.body[4], 3 do
    local sku, location, left = r.body[4][i], r.body[4][i + 1], left_of_line(r, i)
    if left > 0 then
      take_off(sku, location, left, false, seq)
      for _, value in ipairs({sku, location, left, 0, -left, 0}) do
        lines[#lines + 1] = value
      end
    end
  end
  write_ended(r, seq, all_released(r), retention_ms)
  return tell(seq, reason, lines, id, r.body, RELEASED)
end

local function restore(reason, id, created, deadline, parts, tail, judged)
  local r = from_ledger(id, created, deadline, parts, tail)
  if redis.pcall('GET', r.key) ~= judged then
    return nil
  end
  begin_writes()
  local seq = next_seq()
  redis.call('SET', r.key, pack_reservation(r, HELD, deadline, seq, r.parts))
  add_due(deadline, id)
  return tell(seq, reason, {}, id, r.body, HELD)
end

local function end_orphan(reason, retention_ms, id, judged)
  local r = read_reservation(id)
  if not r or r.value ~= judged then
    return nil
  end
  begin_writes()
  local seq, lines = next_seq(), {}
  for i = 1, #r.body[4], 3 do
    local s = stock(r.body[4][i], r.body[4][i + 1])
    if left_of_line(r, i) > 0 and s and not s.damaged then
      both_ways(lines, s.sku, s.location, 0, left_of_line(r, i), 0)
      touch(s, seq) -- its numbers stay, its seq is that of the ledger's balance
    end
  end
  write_ended(r, seq, all_released(r), retention_ms)
  return tell(seq, reason, lines, id, r.body, RELEASED)
end

local function mend(command, retention_ms)
  local reason, action = command[1], command[2]
  if action == 'create' then
    return create(reason, command[3], command[4])
  elseif action == 'correct' then
    return correct(reason, unpack(command, 3, 7))
  elseif action == 'give_back' then
    return give_back(reason, retention_ms, unpack(command, 3, 7))
  elseif action == 'restore' then
    return restore(reason, unpack(command, 3, 8))
  elseif action == 'end' then
    return end_orphan(reason, retention_ms, command[3], command[4])
  end
  error('no repair ' .. tostring(action))
end
