-- What the request id of a part did the first time: kept by keep_success.lua.
--- @include reservation.lua

-- The answer of a part's first success; nil where there was none.
local function first_success(operation, success, reservation_id, key, fingerprint)
  local kept = redis.pcall('GET', key)
  if not kept then
    return nil
  end
  local _, record = pcall(cmsgpack.unpack, kept) -- an error's text where it can't be read
  local first = type(record) == 'table' and unpacked(record[3])
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
