-- Events of the ledger applied once more. Each is {type, epoch, seq, at_ms, id, lines, …} (see
-- lua/replay.lua); lines flat: sku, location, quantity and the deltas of on_hand, held, quarantined. Stock
-- follows those deltas, whatever is found here: Redis minus ledger stays what it was.
--- @include due.lua
--- @include keep_success.lua
--- @include take.lua

local function add_deltas(lines, seq)
  for i = 1, #lines, 6 do
    local s = stock(lines[i], lines[i + 1]) or create_stock(lines[i], lines[i + 1])
    if not s.damaged then
      s.held, s.available = s.held + lines[i + 4], s.available - lines[i + 4]
      apply(s, lines[i + 3], lines[i + 5], seq)
    end
  end
end

-- An ended reservation is remembered for as long after its end as it would have been.
local function write(r, state, deadline, seq, parts, forget_ms)
  local value = pack_reservation(r, state, deadline, seq, parts)
  if state == HELD then
    redis.call('SET', r.key, value)
  elseif forget_ms > head.now then
    redis.call('SET', r.key, value, 'PX', integer(forget_ms - head.now))
  else
    redis.call('DEL', r.key)
  end
  return value
end

local function held(id)
  local r = read_reservation(id)
  return r and r.state == HELD and r or nil
end

local function part_of(r, lines)
  local taken, part = {}, {}
  for i = 1, #lines, 6 do
    taken[lines[i] .. ':' .. lines[i + 1]] = lines[i + 2]
  end
  for i = 1, #r.body[4], 3 do
    part[i] = taken[r.body[4][i] .. ':' .. r.body[4][i + 1]]
  end
  return part
end

local function replay_take(e, id, seq, limits)
  local r, request_id, fingerprint, state = held(id), e[7], e[8], e[9]
  if not r then
    return
  end
  local part = fingerprint ~= '' and part_of(r, e[6]) or nil
  local _, parts = after_take(e[1], r, part)
  local value = write(r, state, r.deadline, seq, parts, e[4] + limits.retention_ms)
  if part then
    keep_success(part_request_key(id, request_id), e[1], fingerprint, r, value, head.now,
      limits.retention_ms, limits.lifetime_max_ms)
  end
end

-- A reservation that was given back or had no hold ended as released; one that was restored stands here.
local function replay_repair(e, id, seq, limits)
  local r, state = id ~= '' and held(id), e[7]
  if r and state == HELD then
    write(r, HELD, r.deadline, seq, r.parts)
  elseif r then
    local _, parts = after_take('release', r)
    write(r, state, r.deadline, seq, parts, e[4] + limits.retention_ms)
  end
end

-- The reservation as it was taken over, whatever is here: {…, state or -1, deadline, created, tail, parts}.
local function replay_adopt(e, id, seq, limits)
  local state, parts = e[7], e[11]
  if id == '' then
    return
  elseif state < 0 then
    redis.call('DEL', reservation_key(id))
    return
  end
  write(with_tail(id, e[9], e[10]), state, e[8], seq, #parts > 0 and parts or nil, e[4] + limits.retention_ms)
  if state == HELD and limits.with_due then
    add_due(e[8], id)
  end
end

local REPLAYS = {
  reserve = function(e, id, seq, limits)
    write(with_tail(id, e[4], e[8]), HELD, e[7], seq)
    if limits.with_due then
      add_due(e[7], id)
    end
  end,
  extend = function(e, id, seq, limits)
    local r = held(id)
    if r then
      write(r, HELD, e[7], seq, r.parts)
    end
    if r and limits.with_due then
      add_due(e[7], id)
    end
  end,
  confirm = replay_take,
  release = replay_take,
  expire = replay_take,
  repair = replay_repair,
  adopt = replay_adopt,
  discard = function() end,
}

local function replay_movement(e, id, seq, limits)
  local s, forget_ms = stock(e[6][1], e[6][2]), e[4] + limits.retention_ms
  if forget_ms > head.now and not s.damaged then
    redis.call('SET', movement_request_key(id), cmsgpack.pack({e[7], e[4], e[2], seq, s.on_hand, s.held,
      s.quarantined, s.safety_stock}), 'PX', integer(forget_ms - head.now))
  end
end

local function replay(e, limits)
  head.epoch, head.seq = e[2], e[3]
  add_deltas(e[6], e[3])
  local again = REPLAYS[e[1]] or replay_movement
  again(e, e[5], e[3], limits)
end
