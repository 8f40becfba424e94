-- A server that was a replica and is a master again has other data than it had: closed, and so for good,
-- since what tells it (its second replid) is gone after an hour without replicas.
--- @include open.lua
local function close_if_promoted()
  if head.run_id and head.replid and head.run_id ~= '' and runs_as(head.run_id) and is_master()
      and not has_data_of(head.replid) then
    redis.call('HSET', KEYS[1], 'run_id', '')
  end
end
