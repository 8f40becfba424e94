-- The commands of a reserve as they come: flat, reservation_id, ttl_ms, bytes of its tail, candidates, how many
-- values of lines, the lines (sku, location or '', quantity, …).
local QUANTITY_MAX = 1000000

-- Where each begins, where its tail ends, and which of them (by the place where they begin) leave a location
-- to sourcing. Raises for a programmer's mistake, before anything is written; so does comparing what is no
-- number.
local function read_asked(values, bytes_of_tails)
  local starts, tail_ends, sourced = {}, {[0] = 0}, {}
  local n, at, last, bytes = 0, 1, #values, 0
  while at <= last do
    local ttl_ms, count = values[at + 1], values[at + 4]
    if not (count >= 3 and count % 3 == 0 and ttl_ms >= 1 and ttl_ms % 1 == 0) then
      error('a reserve needs lines of three values and a ttl_ms of 1 or more')
    end
    for i = at + 5, at + 4 + count, 3 do
      local quantity = values[i + 2]
      if not (quantity >= 1 and quantity <= QUANTITY_MAX and quantity % 1 == 0) then
        error('quantity ' .. quantity .. ' is not in 1..1000000')
      end
      if values[i + 1] == '' then
        sourced[at] = true
      end
    end
    n = n + 1
    bytes = bytes + values[at + 2]
    starts[n], tail_ends[n] = at, bytes
    at = at + 5 + count
  end
  if bytes ~= bytes_of_tails then
    error('the tails have ' .. bytes_of_tails .. ' bytes, not ' .. bytes)
  end
  return starts, tail_ends, sourced
end
