-- Put ids on the lists of their deadlines ({deadline_ms = ids}), and the deadlines where the sweeper
-- looks. In slices: `unpack` fails at 8,000 values.
--- @include damage.lua
--- @include keys.lua
local function write_due_lists(lists)
  for deadline, ids in pairs(lists) do
    for first = 1, #ids, 1000 do
      local pushed = redis.pcall('RPUSH', due_key(deadline),
        unpack(ids, first, math.min(first + 999, #ids)))
      if type(pushed) == 'table' then
        tell_damaged(due_key(deadline))
      end
    end
    redis.call('ZADD', KEYS[2], integer(deadline), integer(deadline))
  end
end
