-- Take units out of a reservation: confirm, release and expire differ in the state they leave, in
-- the column of `parts` they count up, and in whether the units leave the house (on_hand).
--- @include outbox.lua
--- @include reservation.lua
--- @include stock.lua
local ENDED_AS = {confirm = CONFIRMED, release = RELEASED, expire = EXPIRED}

-- Take `part` ({index = quantity}), or all that is left where it is nil. Writes the reservation and
-- the event, notes the stock to be written; answers the reservation's new value.
local function take(operation, id, r, part, request_id, fingerprint, retention_ms)
  local lines, seq, left = r.body[4], next_seq(), 0
  local whole_lines = not part and not r.parts
  local parts, taken = not whole_lines and {} or nil, not whole_lines and {} or nil
  for i = 1, #lines, 3 do
    local open = left_of_line(r, i)
    local quantity = part and (part[i] or 0) or open
    if quantity > 0 then
      take_off(lines[i], lines[i + 1], quantity, operation == 'confirm', seq)
    end
    left = left + open - quantity
    if not whole_lines then
      local at = (i - 1) / 3 * 2
      parts[at + 1] = (r.parts and r.parts[at + 1] or 0) + (operation == 'confirm' and quantity or 0)
      parts[at + 2] = (r.parts and r.parts[at + 2] or 0) + (operation == 'release' and quantity or 0)
      taken[at / 2 + 1] = quantity
    end
  end
  local state = left == 0 and ENDED_AS[operation] or HELD
  local value = pack_reservation(state, r.created, r.deadline, seq, parts, r.body_bytes)
  if state == HELD then
    redis.call('SET', r.key, value)
  else
    redis.call('SET', r.key, value, 'PX', retention_ms)
  end
  emit('\154', cmsgpack.pack('take', operation, seq, head.now, id, request_id or '',
    fingerprint or '', state, taken), r.body_bytes)
  return value
end
