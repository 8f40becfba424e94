-- Take units out of a reservation: confirm, release and expire differ in the state they leave, in
-- the column of `parts` they count up, and in whether the units leave the house (on_hand).
--- @include outbox.lua
--- @include reservation.lua
--- @include stock.lua
local TAKE_EVENT = '\159' .. cmsgpack.pack('take')
local ENDED_AS = {confirm = CONFIRMED, release = RELEASED, expire = EXPIRED}

-- A reservation after `part` ({index = quantity}) was taken, or all that is left where it is nil: its
-- state, its parts, and how much that took of each line. The latter two are nil where all of every line
-- goes at once.
local function after_take(operation, r, part)
  if not part and not r.parts then
    return ENDED_AS[operation]
  end
  local lines, parts, taken, left = r.body[4], {}, {}, 0
  for i = 1, #lines, 3 do
    local open, at = left_of_line(r, i), (i - 1) / 3 * 2
    local quantity = part and (part[i] or 0) or open
    left = left + open - quantity
    parts[at + 1] = (r.parts and r.parts[at + 1] or 0) + (operation == 'confirm' and quantity or 0)
    parts[at + 2] = (r.parts and r.parts[at + 2] or 0) + (operation == 'release' and quantity or 0)
    taken[at / 2 + 1] = quantity
  end
  return left == 0 and ENDED_AS[operation] or HELD, parts, taken
end

-- Take `part`, or all that is left where it is nil. Writes the reservation and the event, notes the
-- stock to be written; answers the reservation's new value.
local function take(operation, id, r, part, request_id, fingerprint, retention_ms)
  local lines, seq = r.body[4], next_seq()
  local state, parts, taken = after_take(operation, r, part)
  for i = 1, #lines, 3 do
    local quantity = taken and taken[(i + 2) / 3] or lines[i + 2]
    if quantity > 0 then
      take_off(lines[i], lines[i + 1], quantity, operation == 'confirm', seq)
    end
  end
  local value = pack_reservation(r, state, r.deadline, seq, parts)
  if state == HELD then
    redis.call('SET', r.key, value)
  else
    redis.call('SET', r.key, value, 'PX', retention_ms)
  end
  emit(TAKE_EVENT, value, cmsgpack.pack(operation, head.now, id, request_id or '', fingerprint or '', taken))
  return value
end
