-- Take back the units of reservations whose deadline has passed, list by list, at most `limit`
-- entries, passed-over ones included, and few more than 4,000 lines. Answers how many were looked
-- at and how many expired. `nothing_due` is set once all that was due by now is gone.
--- @include take.lua
local nothing_due = false

-- The ids of one deadline; nil where the list can't be read.
local function due_ids(key, count)
  local ids = redis.pcall('LRANGE', key, 0, count - 1)
  if ids.err then
    tell_damaged(key)
    return nil
  end
  return ids
end

local function expire_one(id, retention_ms)
  local r = read_reservation(id)
  if r == nil then
    tell_damaged(reservation_key(id))
  end
  if not r or r.state ~= HELD or r.deadline > head.now then
    return 0
  end
  take('expire', id, r, nil, nil, nil, retention_ms)
  return 1
end

local function take_back(limit, retention_ms)
  local looked_at, expired = 0, 0
  while looked_at < limit and lines_done < LINES_MAX do
    local first = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', integer(head.now), 'LIMIT', 0, 1)
    if #first == 0 then
      nothing_due = true
      break
    end
    begin_writes()
    local key = prefix .. 'due:' .. first[1]
    local ids, done = due_ids(key, limit - looked_at), 0
    for _, id in ipairs(ids or {}) do
      if lines_done >= LINES_MAX then
        break
      end
      expired = expired + expire_one(id, retention_ms)
      done = done + 1
    end
    looked_at = looked_at + math.max(done, 1)
    if done > 0 then
      redis.call('LTRIM', key, done, -1)
    end
    -- A list of another type stays where it is: nothing there is ours to delete.
    if not ids or redis.call('EXISTS', key) == 0 then
      redis.call('ZREM', KEYS[2], first[1])
    end
  end
  return looked_at, expired
end
