-- What a reserve is told whose id is kept. Only while every unit of it is held or confirmed is it a success:
-- whoever looks at success alone must not sell without a hold.
--- @include reservation.lua

local function has_released_units(r)
  for at = 2, r.parts and #r.parts or 0, 2 do
    if r.parts[at] > 0 then
      return true
    end
  end
  return r.state == RELEASED
end

-- `r` as read_reservation answers it: false where it can't be read (its id was used, nobody can tell for what).
local function repeated(r, tail, now)
  if not r or fingerprint_of(r.seal, r.body) ~= fingerprint_of(cmsgpack.unpack(tail)) then
    return {'reservation_mismatch'}
  elseif has_released_units(r) then
    return {'already_released', r.value}
  elseif r.state == EXPIRED or (r.state == HELD and r.deadline <= now) then
    return {'reservation_expired', r.value}
  end
  return {'already_reserved', r.value}
end
