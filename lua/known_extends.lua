#!lua flags=no-writes
-- What extends are told that need nothing written: for a server that is full and so refuses the script extend.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  as for extend
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         {unknown_reservation} | {already_confirmed, value} | {already_released, value} |
--         {reservation_expired, value} | {extended, value} where its deadline is as late already |
--         {store_full} | more_due; partition_closed for the whole call (engine/statuses.py)
--- @include lib/batch.lua
--- @include lib/extension.lua
local values = cmsgpack.unpack(ARGV[1])

if not is_open() then
  return 'partition_closed'
end
check_ttls(values)

local function what_is_known(at)
  return extension(values[at], values[at + 1]) or {'store_full'}
end

return {head.now, decide_each(values, starts_every(2, values), what_is_known), damaged}
