-- A reservation as it is kept: the msgpack values state, created, deadline, seq, parts, body, one
-- after the other. `body` = {order_id, customer_id or '', fingerprint, lines} with lines flat (sku,
-- location, quantity, sku, …) never changes, so it is carried along as bytes. `parts` is nil until a
-- part is taken, then flat (confirmed, released, confirmed, …), a pair a line; a reservation that
-- ended in one piece needs none: its state tells it.
--- @include damage.lua
--- @include keys.lua
local HELD, CONFIRMED, RELEASED, EXPIRED = 0, 1, 2, 3
local ENDED_STATUS = {[CONFIRMED] = 'already_confirmed', [RELEASED] = 'already_released',
  [EXPIRED] = 'reservation_expired'}

local function is_count(n)
  return type(n) == 'number' and n >= 0 and n % 1 == 0
end

local function readable(r)
  if not (is_count(r.state) and r.state <= EXPIRED and is_count(r.created) and is_count(r.deadline)
      and type(r.body) == 'table' and type(r.body[3]) == 'string'
      and type(r.body[4]) == 'table' and #r.body[4] > 0 and #r.body[4] % 3 == 0) then
    return false
  end
  local lines = r.body[4]
  for i = 1, #lines, 3 do
    if type(lines[i]) ~= 'string' or type(lines[i + 1]) ~= 'string' or not is_count(lines[i + 2]) then
      return false
    end
    if r.parts then
      local at = (i - 1) / 3 * 2
      if not (is_count(r.parts[at + 1]) and is_count(r.parts[at + 2])) then
        return false
      end
    end
  end
  return true
end

local function unpack_reservation(value)
  local r = {value = value}
  local offset
  offset, r.state, r.created, r.deadline, r.seq, r.parts = cmsgpack.unpack_limit(value, 5)
  r.body_bytes = string.sub(value, offset + 1)
  r.body = cmsgpack.unpack(r.body_bytes)
  if r.parts ~= nil and type(r.parts) ~= 'table' then
    error('parts')
  end
  return readable(r) and r or error('fields')
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
