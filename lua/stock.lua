#!lua flags=no-writes
-- Read the stock of many skus at once.
--
-- KEYS  1 head      hash    epoch, seq, run_id, last_ms
-- ARGV  1 commands  msgpack [sku, …]
-- RETURNS {now_ms, answers, damaged keys}, an answer a sku, in order: a record a location, each the text
--         'on_hand held quarantined safety_stock location'; one record as it is, several in a list, 0 for an
--         unknown_sku. One that can't be read is left out | more_due; partition_closed for the whole call
--- @include lib/batch.lua
--- @include lib/locations.lua
--- @include lib/open.lua
--- @include lib/stock.lua
local DIGITS = 19 -- of four numbers together: then none of them has more than the 16 that whole() allows
local skus = cmsgpack.unpack(ARGV[1])

if not is_open() then
  return 'partition_closed'
end

-- All four are checked at a glance; whatever that doesn't settle, one by one.
local function read_record(sku, location)
  local key = stock_key(sku, location)
  local fields = read_fields(key)
  if not fields then
    return nil
  end
  fields[5] = location
  local record = table.concat(fields, ' ')
  local _, ends = string.find(record, '^%-?%d+ %-?%d+ %-?%d+ %-?%d+ ')
  if ends == #record - #location and ends <= DIGITS + 4 then
    return record
  end
  for i = 1, 4 do
    if not whole(fields[i]) then
      return tell_damaged(key)
    end
  end
  return record
end

-- The one location of the next skus where they have no other, as in many shops: one lookup for all of them
-- costs much less than one each (docs/performance.md). Else nil or false.
local LOOKED_UP_AT_ONCE = 32
local looked_up_to, only_location = 0, nil

local function location_of_all(at)
  if at > looked_up_to then
    looked_up_to = math.min(at + LOOKED_UP_AT_ONCE - 1, #skus)
    local sets = {}
    for i = at, looked_up_to do
      sets[#sets + 1] = locations_key(skus[i])
    end
    local found = redis.pcall('SUNION', unpack(sets))
    only_location = #found == 1 and found[1]
  end
  return only_location
end

local function read_all(at)
  local sku, only = skus[at], location_of_all(at)
  if only then
    lines_done = lines_done + 1
    return read_record(sku, only) or 0
  end
  local found = read_locations(sku)
  lines_done = lines_done + #found
  local records = {}
  for i = 1, #found do
    records[#records + 1] = read_record(sku, found[i])
  end
  return #records == 1 and records[1] or #records > 0 and records or 0
end

return {head.now, decide_each(skus, starts_every(1, skus), read_all), damaged}
