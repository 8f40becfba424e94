-- Ids on the lists of their deadlines, and the deadlines where the sweeper looks; gathered during
-- the call and written once. A call has 512 of them at most; `unpack` would fail at 8,000.
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
    if type(redis.pcall('RPUSH', due_key(deadline), unpack(ids))) == 'table' then
      tell_damaged(due_key(deadline))
    end
    redis.call('ZADD', KEYS[2], integer(deadline), integer(deadline))
  end
end
