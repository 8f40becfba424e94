-- wrk -t1 -c8 -d10 -s bench/wrk/batch.lua http://127.0.0.1:8080: 200 reservations a request.
-- The sku `hot` must have stock: see README, "Figures".
local OPERATIONS = 200
local count, run = 0, ''

function init()
  run = tostring(os.time()) .. '-' .. tostring(math.random(1e9))
end

function request()
  local operations = {}
  for i = 1, OPERATIONS do
    count = count + 1
    operations[i] = string.format(
      '{"op":"reserve","reservation_id":"b%s-%d","order_id":"order-%d","lines":[{"sku":"hot","quantity":1,"location":"MAIN"}]}',
      run, count, count)
  end
  return wrk.format('POST', '/v1/batch', {['Content-Type'] = 'application/json'},
    '{"operations":[' .. table.concat(operations, ',') .. ']}')
end
