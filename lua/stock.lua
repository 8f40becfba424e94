#!lua flags=no-writes
-- Read the stock of many skus at once.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  msgpack [sku, …]
-- RETURNS {now_ms, answers, damaged keys}, an answer a sku, in order: flat, five values a location:
--         location, on_hand, held, quarantined, safety_stock; empty for an unknown_sku. A record
--         that can't be read is left out | more_due; partition_closed for the whole call
--- @include lib/batch.lua
--- @include lib/sourcing.lua
local skus = cmsgpack.unpack(ARGV[1])

if not is_open() then
  return 'partition_closed'
end

local function read_all(at)
  local sku, answer, n = skus[at], nil, 0
  for _, location in ipairs(locations(sku)) do
    local on_hand, held, quarantined, safety_stock = read_numbers(stock_key(sku, location))
    if on_hand and n == 0 then
      answer, n = {location, on_hand, held, quarantined, safety_stock}, 5 -- a table of the right size
    elseif on_hand then
      answer[n + 1], answer[n + 2], answer[n + 3] = location, on_hand, held
      answer[n + 4], answer[n + 5], n = quarantined, safety_stock, n + 5
    end
    lines_done = lines_done + 1
  end
  return answer or {}
end

return {head.now, decide_each(skus, starts_every(1, skus), read_all), damaged}
