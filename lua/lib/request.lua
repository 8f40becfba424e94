-- What the request id of a part did: kept as {operation, fingerprint, the reservation's value after it},
-- and longer than the reservation itself.
--- @include reservation.lua

-- The answer of a part's first success; nil where there was none.
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

-- Until twice the retention after the latest possible end of the reservation.
local function keep_success(key, operation, fingerprint, r, value, now, retention_ms, lifetime_max_ms)
  local ends = math.max(r.deadline, r.created + lifetime_max_ms) + 2 * retention_ms
  if ends > now then
    redis.call('SET', key, cmsgpack.pack({operation, fingerprint, value}), 'PX', integer(ends - now))
  end
end
