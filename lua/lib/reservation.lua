-- A reservation as it is kept: the msgpack values state, created, deadline, seq, parts, check, seal, body,
-- one after the other. `body` = {order_id, customer_id or '', named, lines} with lines flat (sku, location,
-- quantity, sku, …) never changes and `seal` is its checksum; both together, the `tail`, are carried along as
-- bytes. `named` is the fingerprint where the seal isn't that too, else ''. `check` is the checksum of the
-- values before it. `parts` is nil until a part is taken, then flat (confirmed, released, confirmed, …), a
-- pair a line; a reservation that ended in one piece needs none: its state tells it.
--- @include damage.lua
--- @include keys.lua
--- @include lines.lua
local HELD, CONFIRMED, RELEASED, EXPIRED = 0, 1, 2, 3
local SEAL_BYTES, CHECK_MOD = 24, 65521

local type = type

local function is_quantity(n)
  return type(n) == 'number' and n >= 1 and n % 1 == 0
end

local function seal_of(body_bytes)
  return string.sub(redis.sha1hex(body_bytes), 1, SEAL_BYTES)
end

-- What makes two reserves the same.
local function fingerprint_of(seal, body)
  return body[3] ~= '' and body[3] or seal
end

local function check_of(state, created, deadline, seq, parts)
  local sum = state + 3 * created + 5 * deadline + 7 * seq
  if parts then
    for i = 1, #parts do
      sum = sum + (10 + i) * parts[i]
    end
  end
  return sum % CHECK_MOD
end

-- Raises, or answers nil, for what these scripts did not write: what carries the right check and seal can
-- be copied into an event unread, and no broken record ever gets there and stops the ledger.
local function unpack_reservation(value)
  local offset, state, created, deadline, seq, parts, check, seal = cmsgpack.unpack_limit(value, 7)
  local bytes = string.sub(value, offset + 1)
  if check ~= check_of(state, created, deadline, seq, parts) or seal ~= seal_of(bytes) then
    return nil
  end
  return {value = value, state = state, created = created, deadline = deadline, seq = seq, parts = parts,
    seal = seal, bytes = bytes, body = cmsgpack.unpack(bytes)}
end

local function unpacked(value)
  local ok, r = pcall(unpack_reservation, value)
  return ok and r or nil
end

-- The reservation; nil where there is none; false where it can't be read (and that is told).
local function read_reservation(id)
  local key = reservation_key(id)
  local value = redis.pcall('GET', key)
  if value == false then
    return nil
  end
  local r = type(value) == 'string' and unpacked(value)
  if not r then
    tell_damaged(key)
    return false
  end
  r.key = key
  lines_done = lines_done + #r.body[4] / 3
  return r
end

-- `r` as far as it never changes (created, seal, bytes) with what changes.
local function pack_reservation(r, state, deadline, seq, parts)
  return cmsgpack.pack(state, r.created, deadline, seq, parts,
    check_of(state, r.created, deadline, seq, parts), r.seal) .. r.bytes
end

local function pack_tail(body)
  local bytes = cmsgpack.pack(body)
  return cmsgpack.pack(seal_of(bytes)) .. bytes
end

-- A reservation of whose value only the tail is there yet.
local function with_tail(id, created, tail)
  local seal, body = cmsgpack.unpack(tail)
  return {key = reservation_key(id), created = created, seal = seal,
    bytes = string.sub(tail, SEAL_BYTES + 2), body = body}
end

local function left_of_line(r, i)
  if not r.parts then
    return r.body[4][i + 2]
  end
  local at = (i - 1) / 3 * 2
  return r.body[4][i + 2] - r.parts[at + 1] - r.parts[at + 2]
end
