-- Remember what the request id of a part did: {operation, fingerprint, the reservation's value after it}.
--- @include keys.lua

-- Until twice the retention after the latest possible end of the reservation.
local function keep_success(key, operation, fingerprint, r, value, now, retention_ms, lifetime_max_ms)
  local ends = math.max(r.deadline, r.created + lifetime_max_ms) + 2 * retention_ms
  if ends > now then
    redis.call('SET', key, cmsgpack.pack({operation, fingerprint, value}), 'PX', integer(ends - now))
  end
end
