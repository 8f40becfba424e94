-- wrk -t1 -c64 -d10 -s bench/wrk/reserve.lua http://127.0.0.1:8080: one reservation a request.
-- The sku `hot` must have stock: see README, "Figures".
local count, run = 0, ''

function init()
  run = tostring(os.time()) .. '-' .. tostring(math.random(1e9))
end

function request()
  count = count + 1
  return wrk.format('POST', '/v1/reservations', {['Content-Type'] = 'application/json'}, string.format(
    '{"reservation_id":"w%s-%d","order_id":"order-%d","lines":[{"sku":"hot","quantity":1,"location":"MAIN"}]}',
    run, count, count))
end
