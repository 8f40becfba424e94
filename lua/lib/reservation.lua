-- A reservation as it is kept: the msgpack values state, created, deadline, seq, parts, body, one
-- after the other. `body` = {order_id, customer_id or '', fingerprint, lines} with lines flat (sku,
-- location, quantity, sku, …) never changes, so it is carried along as bytes. `parts` is nil until a
-- part is taken, then flat (confirmed, released, confirmed, …), a pair a line; a reservation that
-- ended in one piece needs none: its state tells it.
--- @include damage.lua
--- @include keys.lua
local HELD, CONFIRMED, RELEASED, EXPIRED = 0, 1, 2, 3
local NO_PARTS = cmsgpack.pack(nil)

local function is_count(n)
  return type(n) == 'number' and n >= 0 and n % 1 == 0
end

local function readable(r, lines)
  if not (is_count(r.state) and r.state <= EXPIRED and is_count(r.created) and is_count(r.deadline)
      and type(r.body[3]) == 'string' and #lines > 0 and #lines % 3 == 0) then
    return false
  end
  for i = 1, #lines, 3 do
    if type(lines[i]) ~= 'string' or type(lines[i + 1]) ~= 'string' or not is_count(lines[i + 2]) then
      return false
    end
  end
  for i = 1, r.parts and #lines / 3 * 2 or 0 do
    if not is_count(r.parts[i]) then
      return false
    end
  end
  return true
end

-- Raises where the bytes are not a reservation's (see read_reservation).
local function unpack_reservation(value)
  local r, offset = {value = value}, nil
  offset, r.state, r.created, r.deadline, r.seq, r.parts = cmsgpack.unpack_limit(value, 5)
  r.body_bytes = string.sub(value, offset + 1)
  r.body = cmsgpack.unpack(r.body_bytes)
  return readable(r, r.body[4]) and r or error('not a reservation')
end

-- The reservation; nil where there is none; false where it can't be read (and that is told).
local function read_reservation(id)
  local key = reservation_key(id)
  local value = redis.pcall('GET', key)
  if value == false then
    return nil
  end
  if type(value) == 'string' then
    local ok, r = pcall(unpack_reservation, value)
    if ok then
      r.key = key
      return r
    end
  end
  tell_damaged(key)
  return false
end

local function pack_reservation(state, created, deadline, seq, parts, body_bytes)
  return cmsgpack.pack(state, created, deadline, seq, parts) .. body_bytes
end

local function left_of_line(r, i)
  if not r.parts then
    return r.body[4][i + 2]
  end
  local at = (i - 1) / 3 * 2
  return r.body[4][i + 2] - r.parts[at + 1] - r.parts[at + 2]
end
