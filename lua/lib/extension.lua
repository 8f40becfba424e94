-- What an extend is told where nothing needs to be written.
--- @include ended.lua
--- @include open.lua

-- The answer, the reservation and its new deadline; no answer where the new one is later than the old.
local function extension(id, ttl_ms)
  local r = read_reservation(id)
  if not r then
    return {'unknown_reservation'}
  elseif r.state ~= HELD then
    return {ENDED_STATUS[r.state], r.value}
  elseif r.deadline <= head.now then
    return {'reservation_expired', r.value}
  end
  local deadline = math.ceil((head.now + ttl_ms) / 100) * 100
  if deadline <= r.deadline then
    return {'extended', r.value}
  end
  return nil, r, deadline
end

-- Refuse a programmer's mistake before anything is written.
local function check_ttls(values)
  for at = 1, #values, 2 do
    if not is_quantity(values[at + 1]) then
      error('ttl_ms ' .. tostring(values[at + 1]) .. ' is not 1 or more')
    end
  end
end
