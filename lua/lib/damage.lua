-- Records that can't be read are passed over and told, never raised: one bad value must not stop
-- every sale. The reply names at most 20 of them a call.
local damaged, is_told = {}, {}

local function tell_damaged(key)
  if #damaged < 20 and not is_told[key] then
    damaged[#damaged + 1], is_told[key] = key, true
  end
end
