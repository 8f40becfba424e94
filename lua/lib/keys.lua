-- Names of the keys of one partition that only a script learns (engine/keys.py builds the same ones;
-- tests/lua/test_keys.py compares the two). All share the hash tag of KEYS[1], `hf:{p}:head`.
local prefix = string.sub(KEYS[1], 1, -5)

local function integer(n)
  return string.format('%.0f', n) -- `..` alone would give 1.795e+15
end

local function stock_key(sku, location)
  return prefix .. 'stock:' .. sku .. ':' .. location
end

local function locations_key(sku)
  return prefix .. 'locations:' .. sku
end

local function available_key(sku)
  return prefix .. 'available:' .. sku
end

local function reservation_key(id)
  return prefix .. 'reservation:' .. id
end

local function due_key(deadline_ms)
  return prefix .. 'due:' .. integer(deadline_ms)
end

local function movement_request_key(movement_id)
  return prefix .. 'request:movement:' .. movement_id
end

local function part_request_key(reservation_id, request_id)
  return prefix .. 'request:part:' .. reservation_id .. ':' .. request_id
end
