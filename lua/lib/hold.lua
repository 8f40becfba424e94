-- Write a reservation: its key, its place on the list of its deadline, its event.
--- @include due.lua
--- @include outbox.lua
--- @include reservation.lua
--- @include sourcing.lua
local RESERVE_EVENT = '\154' .. cmsgpack.pack('reserve')
local beginnings = {}

-- What is the same in all holds of this call with that ttl: the deadline, the first bytes of the value,
-- and what those add to its check.
local function begin_with(ttl_ms)
  local deadline = math.ceil((head.now + ttl_ms) / 100) * 100
  local shared = {deadline = deadline, bytes = cmsgpack.pack(HELD, head.now, deadline),
    check = check_of(HELD, head.now, deadline, 0)}
  beginnings[ttl_ms] = shared
  return shared
end

-- The tail of a reservation with the lines that sourcing took instead of those that were asked for.
local function sourced_tail(tail)
  local _, asked = cmsgpack.unpack(tail)
  return pack_tail({asked[1], asked[2], asked[3], merged()})
end

-- Write what sourcing took, with the bytes of the body and its seal. Answers the value; nil (and nothing
-- is written or taken) where the id is kept already.
local function write_hold(id, ttl_ms, tail)
  local shared, seq = beginnings[ttl_ms] or begin_with(ttl_ms), head.seq + 1
  local value = shared.bytes .. cmsgpack.pack(seq, nil, (shared.check + 7 * seq) % CHECK_MOD) .. tail
  begin_writes()
  if not redis.call('SET', reservation_key(id), value, 'NX') then
    undo()
    return nil
  end
  head.seq = seq
  for i = 1, taken, 2 do
    touch(takes[i], seq)
  end
  add_due(shared.deadline, id)
  emit(RESERVE_EVENT, value, cmsgpack.pack(id))
  lines_done = lines_done + taken / 2
  return value
end
