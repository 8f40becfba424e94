-- Stock records, read once a call and written once a call.
-- A record is {key, sku, location, on_hand, held, quarantined, safety_stock, available, seq}; `false` where
-- none exists (ask with stock(), make with create_stock()). One that can't be read offers nothing (`damaged`) and is never written.
--- @include damage.lua
--- @include keys.lua
--- @include open.lua
--- @include ranking.lua
local stocks = {}
local touched = {}

-- on_hand, held, quarantined and safety_stock as they are kept; nil where there is no record, false where it
-- can't be read.
local function read_fields(key)
  local fields = redis.pcall('HMGET', key, 'on_hand', 'held', 'quarantined', 'safety_stock')
  if fields[1] and fields[2] and fields[3] and fields[4] then
    return fields
  end
  if fields.err or fields[1] or fields[2] or fields[3] or fields[4] then
    tell_damaged(key)
    return false
  end
  return nil
end

-- The same as numbers.
local function read_numbers(key)
  local fields = read_fields(key)
  if not fields then
    return fields
  end
  local on_hand, held, quarantined, safety_stock =
    whole(fields[1]), whole(fields[2]), whole(fields[3]), whole(fields[4])
  if not (on_hand and held and quarantined and safety_stock) then
    tell_damaged(key)
    return false
  end
  return on_hand, held, quarantined, safety_stock
end

local function read_stock(sku, location)
  local key = stock_key(sku, location)
  local on_hand, held, quarantined, safety_stock = read_numbers(key)
  if on_hand == nil then
    return false
  elseif not on_hand then
    return {key = key, sku = sku, location = location, damaged = true, available = 0}
  end
  local available = on_hand - held - quarantined - safety_stock
  return {key = key, sku = sku, location = location, on_hand = on_hand, held = held,
    quarantined = quarantined, safety_stock = safety_stock, seq = false, moved = false,
    available = available, ranked = available}
end

local function stock(sku, location)
  local of_sku = stocks[sku]
  if of_sku == nil then
    of_sku = {}
    stocks[sku] = of_sku
  end
  local s = of_sku[location]
  if s == nil then
    s = read_stock(sku, location)
    of_sku[location] = s
  end
  return s
end

local function hold(s, quantity)
  s.held, s.available = s.held + quantity, s.available - quantity
end

-- For the ranking of its sku, where this call uses that.
local function note_change(s)
  local rank = ranks[s.sku]
  rank.sum = nil
  if rank.leader ~= s then
    rank.leader = nil
  end
  if rank.changed[#rank.changed] ~= s then
    rank.changed[#rank.changed + 1] = s
  end
end

local function touch(s, seq)
  if not s.seq then
    touched[#touched + 1] = s
  end
  s.seq = seq
  if ranks[s.sku] then
    note_change(s)
  end
end

-- Take `quantity` off held, and off on_hand too when the units have left. A record that is missing
-- or unreadable is passed over: the event still tells the ledger, and reconcile names the drift.
local function take_off(sku, location, quantity, off_on_hand, seq)
  local s = stock(sku, location)
  if not s then
    return tell_damaged(stock_key(sku, location))
  end
  if s.damaged then
    return
  end
  if off_on_hand then
    s.held, s.on_hand, s.moved = s.held - quantity, s.on_hand - quantity, true
  else
    hold(s, -quantity)
  end
  touch(s, seq)
end

-- What a movement changes.
local function apply(s, on_hand, quarantined, seq)
  s.on_hand, s.quarantined, s.moved = s.on_hand + on_hand, s.quarantined + quarantined, true
  s.available = s.available + on_hand - quarantined
  touch(s, seq)
end

-- A record for a sku at a location that never had it; written by write_stocks once it is touched.
local function create_stock(sku, location)
  local s = {key = stock_key(sku, location), sku = sku, location = location, created = true,
    on_hand = 0, held = 0, quarantined = 0, safety_stock = 0, available = 0}
  stocks[sku][location] = s
  return s
end

-- Numbers go as numbers: Redis writes them with 17 digits, exactly up to 2^53.
local function write_stocks()
  for i = 1, #touched do
    local s = touched[i]
    if s.created then
      redis.call('HSET', s.key, 'safety_stock', 0, 'reorder_point', 0)
      if type(redis.pcall('SADD', locations_key(s.sku), s.location)) == 'table' then
        tell_damaged(locations_key(s.sku))
      end
    end
    if s.moved then
      redis.call('HSET', s.key, 'on_hand', s.on_hand, 'held', s.held, 'quarantined', s.quarantined,
        'seq', s.seq)
    else
      redis.call('HSET', s.key, 'held', s.held, 'seq', s.seq)
    end
  end
  write_ranks(touched)
end
