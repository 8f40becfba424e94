#!lua flags=no-writes
-- What became of movements whose id is remembered: for a server that is full and so refuses the script move.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  as for move
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order: {already_applied, record} |
--         {request_mismatch} | {store_full} where the id isn't remembered | more_due;
--         partition_closed for the whole call (engine/statuses.py)
--- @include lib/applied.lua
--- @include lib/batch.lua
--- @include lib/open.lua
local values = cmsgpack.unpack(ARGV[1])
local WIDTH = 11

if not is_open() then
  return 'partition_closed'
end

local function what_is_known(at)
  lines_done = lines_done + 1
  return applied_before(values[at], values[at + WIDTH - 1]) or {'store_full'}
end

return {head.now, decide_each(values, starts_every(WIDTH, values), what_is_known), damaged}
