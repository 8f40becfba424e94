-- The commands of a reserve as they come: flat, reservation_id, ttl_ms, tail, candidates, how many values of
-- lines, the lines (sku, location or '', quantity, …).
--- @include reservation.lua
local QUANTITY_MAX = 1000000

-- Where the command after this one begins.
local function next_asked(values, at)
  return at + 5 + values[at + 4]
end

-- Where each begins, and which of them (by that place) leave a location to sourcing; or what is wrong:
-- a programmer's mistake, refused before anything is written.
local function read_asked(values)
  local starts, sourced, at = {}, {}, 1
  while at <= #values do
    local count = values[at + 4]
    if not is_quantity(count) or count % 3 ~= 0 or not is_quantity(values[at + 1]) then
      return nil, nil, 'ERR a reserve needs lines of three values and a ttl_ms of 1 or more'
    end
    for i = at + 5, at + 4 + count, 3 do
      local quantity = values[i + 2]
      if not is_quantity(quantity) or quantity > QUANTITY_MAX then
        return nil, nil, 'ERR quantity ' .. tostring(quantity) .. ' is not in 1..1000000'
      end
      if values[i + 1] == '' then
        sourced[at] = true
      end
    end
    starts[#starts + 1] = at
    at = next_asked(values, at)
  end
  return starts, sourced
end
