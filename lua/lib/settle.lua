-- Confirm and release, which differ in what take.lua does and in the word of success: each command is
-- {reservation_id, request_id or '', fingerprint of the part or '', wanted}; `wanted` is flat (sku,
-- location or '', quantity, …) and empty for all that is left.
--- @include ended.lua
--- @include part.lua
--- @include take.lua

-- Refuse a programmer's mistake before anything is written.
local function check_wanted(commands)
  for _, command in ipairs(commands) do
    local wanted = command[4]
    for i = 3, #wanted, 3 do
      if not (is_count(wanted[i]) and wanted[i] >= 1) then
        error('quantity ' .. tostring(wanted[i]) .. ' is not 1 or more')
      end
    end
    if #wanted % 3 ~= 0 or (#wanted > 0 and command[2] == '') then
      error('a part needs lines of three values and a request_id')
    end
  end
end

-- The first success of a part's request id, kept as {operation, fingerprint, value}.
local function first_success(operation, success, reservation_id, key, fingerprint)
  local kept = redis.pcall('GET', key)
  if not kept then
    return nil
  end
  local ok, record = pcall(cmsgpack.unpack, type(kept) == 'string' and kept or '')
  local first = ok and type(record) == 'table' and type(record[3]) == 'string'
    and unpack_reservation(record[3])
  if not first then
    tell_damaged(key)
    return {'request_mismatch'} -- it was used, we can't tell for what: never take twice
  end
  -- An id is used again long after it ended: the record may be of the reservation before.
  local r = read_reservation(reservation_id)
  if r and r.created ~= first.created then
    return nil
  end
  if record[1] ~= operation or record[2] ~= fingerprint then
    return {'request_mismatch'}
  end
  return {success, record[3], 1}
end

local function settle(operation, success, command, retention_ms, lifetime_max_ms)
  local id, request_id, fingerprint, wanted = command[1], command[2], command[3], command[4]
  local partial = #wanted > 0
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
  if partial then
    part, refusal = match_part(r, wanted)
    if refusal then
      return refusal
    end
  end
  begin_writes()
  local value = take(operation, id, r, part, request_id, fingerprint, retention_ms)
  if partial then
    -- Outlives the reservation: its latest possible end, twice the retention.
    local latest = math.max(r.deadline, r.created + lifetime_max_ms) - head.now
    redis.call('SET', request, cmsgpack.pack({operation, fingerprint, value}),
      'PX', integer(latest + 2 * retention_ms))
  end
  return {success, value}
end
