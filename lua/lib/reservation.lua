-- A reservation as it is kept: the msgpack values state, created, deadline, seq, parts, body, one
-- after the other, and a checksum. `body` = {order_id, customer_id or '', fingerprint, lines} with
-- lines flat (sku, location, quantity, sku, …) never changes, so it is carried along as bytes. `parts`
-- is nil until a part is taken, then flat (confirmed, released, confirmed, …), a pair a line; a
-- reservation that ended in one piece needs none: its state tells it.
--- @include damage.lua
--- @include keys.lua
local HELD, CONFIRMED, RELEASED, EXPIRED = 0, 1, 2, 3
local NO_PARTS = cmsgpack.pack(nil)
local CHECKSUM_BYTES = 8
local lines_read = 0 -- of all reservations looked at in this call

local type = type

local function is_quantity(n)
  return type(n) == 'number' and n >= 1 and n % 1 == 0
end

-- With its checksum: what carries a right one was written by these scripts, so it can be copied into
-- an event unread, and no broken record ever gets there and stops the ledger.
local function sealed(bytes)
  return bytes .. string.sub(redis.sha1hex(bytes), 1, CHECKSUM_BYTES)
end

local function unpack_reservation(value)
  local bytes = string.sub(value, 1, -CHECKSUM_BYTES - 1)
  if sealed(bytes) ~= value then
    return nil
  end
  local r, offset = {value = value}, nil
  offset, r.state, r.created, r.deadline, r.seq, r.parts = cmsgpack.unpack_limit(bytes, 5)
  r.body_bytes = string.sub(bytes, offset + 1)
  r.body = cmsgpack.unpack(r.body_bytes)
  return r
end

-- The reservation; nil where there is none; false where it can't be read (and that is told).
local function read_reservation(id)
  local key = reservation_key(id)
  local value = redis.pcall('GET', key)
  if value == false then
    return nil
  end
  local r = type(value) == 'string' and unpack_reservation(value)
  if not r then
    tell_damaged(key)
    return false
  end
  r.key = key
  lines_read = lines_read + #r.body[4] / 3
  return r
end

local function pack_reservation(state, created, deadline, seq, parts, body_bytes)
  return sealed(cmsgpack.pack(state, created, deadline, seq, parts) .. body_bytes)
end

local function left_of_line(r, i)
  if not r.parts then
    return r.body[4][i + 2]
  end
  local at = (i - 1) / 3 * 2
  return r.body[4][i + 2] - r.parts[at + 1] - r.parts[at + 2]
end
