-- Which lines of a reservation a partial confirm or release means.
--- @include reservation.lua

-- What is asked for of each line, as {index of the line = quantity}; nil and a status where it
-- can't be had. `wanted` is flat (sku, location or '', quantity, …).
local function match_part(r, wanted)
  local lines, found = r.body[4], {}
  for w = 1, #wanted, 3 do
    local at, more
    for i = 1, #lines, 3 do
      if lines[i] == wanted[w] and (wanted[w + 1] == '' or lines[i + 1] == wanted[w + 1]) then
        more, at = at, i
      end
      if more then
        return nil, {'invalid_request', wanted[w]}
      end
    end
    local quantity = (found[at] or 0) + wanted[w + 2]
    if not at or quantity > left_of_line(r, at) then
      return nil, {'exceeds_reservation', wanted[w], at and left_of_line(r, at) or 0}
    end
    found[at] = quantity
  end
  return found
end
