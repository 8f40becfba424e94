-- Ids on the lists of their deadlines, and the deadlines where the sweeper looks; gathered during
-- the call and written once, in slices: `unpack` fails at 8,000 values.
--- @include damage.lua
--- @include keys.lua
local due_lists = {}

local function add_due(deadline, id)
  local ids = due_lists[deadline]
  if not ids then
    ids = {}
    due_lists[deadline] = ids
  end
  ids[#ids + 1] = id
end

local function write_due_lists()
  for deadline, ids in pairs(due_lists) do
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
