-- Confirm and release, which differ in what take.lua does and in the word of success: a command is the four
-- values reservation_id, request_id or '', fingerprint of the part or '', wanted; `wanted` is flat (sku,
-- location or '', quantity, …), or 0 for all that is left.
--- @include ended.lua
--- @include first_success.lua
--- @include keep_success.lua
--- @include part.lua
--- @include take.lua

-- Refuse a programmer's mistake before anything is written.
local function check_wanted(values)
  for at = 1, #values, 4 do
    local wanted = values[at + 3]
    if wanted ~= 0 then
      for i = 3, #wanted, 3 do
        if not is_quantity(wanted[i]) then
          error('quantity ' .. tostring(wanted[i]) .. ' is not 1 or more')
        end
      end
      if #wanted == 0 or #wanted % 3 ~= 0 or values[at + 1] == '' then
        error('a part needs lines of three values and a request_id')
      end
    end
  end
end

local function settle(operation, success, values, at, retention_ms, lifetime_max_ms)
  local id, request_id, fingerprint, wanted = values[at], values[at + 1], values[at + 2], values[at + 3]
  local request = request_id ~= '' and part_request_key(id, request_id)
  local known = request and first_success(operation, success, id, request, fingerprint)
  if known then
    return known
  end
  local r = read_reservation(id)
  if not r then
    return {'unknown_reservation'}
  end
  if r.state ~= HELD then
    return {ENDED_STATUS[r.state], r.value}
  end
  if r.deadline <= head.now then
    return {'reservation_expired', r.value}
  end
  local part, refusal
  if wanted ~= 0 then
    part, refusal = match_part(r, wanted)
    if refusal then
      return refusal
    end
  end
  begin_writes()
  local value = take(operation, id, r, part, request_id, fingerprint, retention_ms)
  if wanted ~= 0 then
    keep_success(request, operation, fingerprint, r, value, head.now, retention_ms, lifetime_max_ms)
  end
  return value
end
