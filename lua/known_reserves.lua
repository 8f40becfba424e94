#!lua flags=no-writes
-- What became of reserves whose id is kept: for a server that is full and so refuses the script reserve.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  as for reserve
--       2 tails     as for reserve
-- RETURNS {now_ms, answers, damaged keys}, an answer a command, in order:
--         {reservation_mismatch} | {already_released, value} | {reservation_expired, value} |
--         {already_reserved, value} | {store_full} where the id isn't kept | more_due;
--         partition_closed for the whole call (engine/statuses.py)
--- @include lib/absent.lua
--- @include lib/asked.lua
--- @include lib/batch.lua
--- @include lib/open.lua
--- @include lib/repeated.lua
local values, tails = cmsgpack.unpack(ARGV[1]), ARGV[2]

if not is_open() then
  return 'partition_closed'
end

local starts, tail_ends = read_asked(values, #tails)

local function what_is_known(at, number)
  if absent_key(values, starts, number) then
    return {'store_full'}
  end
  local r = read_reservation(values[at])
  if r == nil then
    return {'store_full'}
  end
  return repeated(r, string.sub(tails, tail_ends[number - 1] + 1, tail_ends[number]), head.now)
end

return {head.now, decide_each(values, starts, what_is_known), damaged}
