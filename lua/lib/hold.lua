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
  local seal, asked = cmsgpack.unpack(tail)
  return pack_tail({asked[1], asked[2], fingerprint_of(seal, asked), merged()})
end

local WRITTEN_AT_ONCE = 64
local unwritten = {} -- flat: key, value

-- Whoever reads reservations that this call may have held has to call it first.
local function write_holds()
  if #unwritten > 0 then
    redis.call('MSET', unpack(unwritten))
    unwritten = {}
  end
end

-- Write what sourcing took for an id that isn't kept, with the bytes of the body and its seal. Answers the
-- value.
local function write_hold(id, key, ttl_ms, tail)
  local shared, seq, n = beginnings[ttl_ms] or begin_with(ttl_ms), next_seq(), #unwritten
  local value = shared.bytes .. cmsgpack.pack(seq, nil, (shared.check + 7 * seq) % CHECK_MOD) .. tail
  begin_writes()
  unwritten[n + 1], unwritten[n + 2] = key, value
  if n + 2 >= 2 * WRITTEN_AT_ONCE then
    write_holds()
  end
  for i = 1, taken, 2 do
    touch(takes[i], seq)
  end
  add_due(shared.deadline, id)
  emit(RESERVE_EVENT, value, cmsgpack.pack(id))
  lines_done = lines_done + taken / 2
  return value
end
