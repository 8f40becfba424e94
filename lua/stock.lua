#!lua flags=no-writes
-- Read the stock of many skus at once.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  msgpack [sku, …]
-- RETURNS {now_ms, answers, damaged keys}, an answer a sku, in order: a record a location, each the msgpack
--         values location, on_hand, held, quarantined, safety_stock; one record as it is, none or
--         several in a list; none for an unknown_sku. One that can't be read is left out | more_due;
--         partition_closed for the whole call
--- @include lib/batch.lua
--- @include lib/sourcing.lua
local skus = cmsgpack.unpack(ARGV[1])

if not is_open() then
  return 'partition_closed'
end

local function read_all(at)
  local sku, records = skus[at], {}
  local found = locations(sku)
  for i = 1, #found do
    local on_hand, held, quarantined, safety_stock = read_numbers(stock_key(sku, found[i]))
    if on_hand then
      records[#records + 1] = cmsgpack.pack(found[i], on_hand, held, quarantined, safety_stock)
    end
  end
  lines_done = lines_done + #found
  return #records == 1 and records[1] or records
end

return {head.now, decide_each(skus, starts_every(1, skus), read_all), damaged}
